"""What this process makes on a disk, and may therefore remove again: nothing else ever is."""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, innermost first.

    Raises OSError where it cannot; then none is left.
    """
    made: list[Path] = []
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                made = [*_made(folder), *made]
    except OSError:
        remove_empty(made)
        raise
    return made


def _made(folder: Path) -> list[Path]:
    try:
        folder.mkdir()
    except FileExistsError as error:
        if folder.is_dir():  # somebody else has just made it
            return []
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    return [folder]


def make_new_folder(path: Path) -> list[Path]:
    """Make a folder as `make_folders` does; raises FileExistsError where it is there already."""
    above = make_folders(path.parent)
    try:
        path.mkdir()
    except OSError:
        remove_empty(above)
        raise
    return [path, *above]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that this process has made: what somebody has put there keeps them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
