"""`micro_batch_size=auto`: what ran out of memory at once starts again with less at a time."""

import sys
from collections.abc import Sequence

from launcher.errors import LauncherError, TrainingFailed
from launcher.masks import clean
from launcher.run.directory import RunDir
from launcher.run.record import Record


def has_to_be_smaller(error: LauncherError | None, run: RunDir, ranks: Sequence[int]) -> bool:
    """Whether micro-batches have to be smaller than some ranks' were; it is said, and noted.

    What was found stands in config.json, where the next processes look for it.
    """
    sizes = [record.smaller for record in Record.read_all(run, ranks) if record.smaller]
    if not sizes or not isinstance(error, TrainingFailed):
        return False
    run.write_config(run.read_config() | {"micro_batch_size": min(sizes)})
    said = f"{clean(error.message)}: starting again with micro_batch_size={min(sizes)}"
    print(said, file=sys.stderr)
    return True
