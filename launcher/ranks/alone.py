"""What rank 0 does alone, while the others wait: collectives would hang, so they raise."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from launcher.errors import TrainingFailed
from launcher.files import sync


class NoCollectives(TorchDispatchMode):
    """Raises TrainingFailed where something inside would talk to other ranks."""

    def __init__(self, method: str) -> None:
        """`method` is the recipe's, which runs inside."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._method = method

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            raise TrainingFailed(
                f"`{self._method}` talks to other processes ({func.__name__}), and runs on one "
                "alone",
                hint="what all processes know is summed up in `test_step`, or kept there",
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Give a folder to be filled that then takes the place of another, whole or not at all."""
    beside, before = (folder.with_name(f".{folder.name}.{word}") for word in ("tmp", "old"))
    for left in (beside, before):
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in beside.rglob("*"):
            sync(path)
        if folder.exists():
            folder.rename(before)
        beside.rename(folder)
        sync(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
