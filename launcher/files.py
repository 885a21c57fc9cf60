"""Files and folders: whole or not at all, and never removed but by the process that made them."""

import errno
import json
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, LauncherError

# How a file system says that it cannot do a thing at all, and not just now or here.
CANNOT = {
    *(errno.EPERM, errno.EACCES, errno.EINVAL, errno.EBADF, errno.ENODEV),
    *(errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EMLINK),
}
# What is somebody's else, or not what its name says; and what a disk refuses to whoever asks.
_NOT_YOURS = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_SO = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}


def refused_by_disk(error: OSError) -> LauncherError | None:
    """Return an error of a file or its disk in words; None for any other, which is our mistake."""
    known = _NOT_YOURS | _NOT_SO | _DISK
    if error.errno not in known or not isinstance(error.filename, str | os.PathLike):
        return None
    path = Path(error.filename)
    message, hint = f"`{path}`: {error.strerror}", None
    if error.errno in _NOT_YOURS:
        hint = f"it is {_owner(path)}'s: work on a copy, or have the right given to you"
    return (LauncherError if error.errno in _DISK else BadInput)(message, hint=hint)


def _owner(path: Path) -> str:
    """Return whose a file is, or the nearest folder that is there."""
    for one in (path, *path.parents):
        with suppress(OSError, KeyError):
            return one.owner()
    return "somebody else"


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


@contextmanager
def written(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a file to write to; when done it is flushed to disk and renamed to `path`.

    A reader sees the old file or the new one, whole; after an error the old one. Who may read it
    is as it was, or follows from umask, whatever writes it; a private one is for its owner alone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.touch(0o600 if private else 0o666)
        mode = (path if path.exists() and not private else beside).stat().st_mode
        yield beside
        set_mode(beside, mode)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def set_mode(path: Path, mode: int) -> None:
    """Set who may read a file, where its file system knows such a thing."""
    if path.stat().st_mode != mode:
        with suppress(PermissionError):
            path.chmod(stat.S_IMODE(mode))


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a power cut.

    Some file systems cannot flush a folder (see `without`); there it is done without.
    """
    try:
        flush(path)
    except OSError as error:
        if error.errno not in CANNOT or not path.is_dir():
            raise


def without(folder: Path) -> str:
    """Return what the file system of a folder cannot do that a run would use, and what it costs.

    CIFS, 9p and FUSE may lack it; a run does without. "" where nothing is lacking. Raises OSError
    where nothing can be written.
    """
    with tempfile.TemporaryDirectory(prefix=".lacks-", dir=folder) as place:
        file = Path(place, "file")
        file.write_bytes(bytes(8))
        tries: dict[str, Callable[[], object]] = {
            "hard links": lambda: Path(place, "link").hardlink_to(file),
            "flushing of folders": lambda: flush(Path(place)),
            "shared memory maps": lambda: _map(file),
        }
        missing = [what for what, use in tries.items() if _cannot(use)]
    if not missing:
        return ""
    cost = "a power cut may cost what was written last, and a test copies its checkpoint first"
    return f"no {', no '.join(missing)}: runs do without, but {cost}"


def warn_of_disk(folder: Path) -> None:
    """Say once what the disk of a run directory lacks; where it cannot be written others say so."""
    with suppress(OSError):
        if said := without(folder):
            print(f"WARNING: the disk of the run directory has {said}", file=sys.stderr)


def _cannot(use: Callable[[], object]) -> bool:
    try:
        use()
    except OSError as error:
        return error.errno in CANNOT
    return False


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        pass


def seen_file(folder: Path, env: Mapping[str, str]) -> Path:
    """Return the file with which rank 0 asks whether all machines see the same folder."""
    return folder / f".seen-{env['PET_RDZV_ID']}.tmp"


def assets(kind: str) -> Path:
    """Return the folder `recipes` or `slurm`: packed in the wheel, else of the checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "_assets" / kind
    return packed if packed.is_dir() else package.parent / kind


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is none that can be read."""
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def json_object(text: str) -> dict[str, Any]:
    """Return a JSON object; raises ValueError where it is none."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004  # as for any other wrong text
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; a number that JSON lacks (NaN) is an error."""
    write_text(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """Return a JSON object as files have it; a number that JSON lacks (NaN) is an error."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside it, flushed to disk, renamed over it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with written(path) as beside:
        beside.write_bytes(content)
