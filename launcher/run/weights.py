"""Weights that a run starts from: which file is meant. Never imports torch."""

import json
from pathlib import Path

from launcher.errors import BadInput
from launcher.run.checkpoint_files import MODEL, all_of, problem
from launcher.run.directory import RunDir

_LENGTH = 8  # bytes in front of the header of a safetensors file: its length, little-endian


def weights_of(given: Path) -> Path:
    """Return the file of weights that a run directory, a checkpoint or a file stands for.

    A run's are its final weights, else those of its newest checkpoint that is whole. Raises
    BadInput where there are none, and for a file of another format.
    """
    given = given.absolute()
    if not given.is_dir():
        return _checked(given)
    run = RunDir(given)
    if run.weights.is_file():
        return _checked(run.weights)
    for checkpoint in reversed(all_of(run.checkpoints)):
        if problem(checkpoint) is None:
            return checkpoint.path / MODEL
    raise BadInput(
        f"`{given}` has no weights to start from",
        hint="give the directory of a run that has a checkpoint, or a file of safetensors",
    )


def _checked(path: Path) -> Path:
    """Return a file; raises BadInput where it is not one of safetensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            whole = _LENGTH + length <= path.stat().st_size
            header = json.loads(file.read(length)) if whole else None
    except OSError as error:
        raise BadInput(f"weights `{path}` cannot be read: {error.strerror}") from error
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BadInput(
            f"`{path}` is no file of safetensors",
            hint="write one with safetensors.torch.save_file(model.state_dict(), FILE)",
        )
    return path
