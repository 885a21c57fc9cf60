"""Checkpoints as files: whole or not at all, verified, listed, pruned. Never imports torch.

A checkpoint is a folder `checkpoints/step-S-epoch-E`, or `step-S` of a script, which has no epochs,
with a manifest of sizes and checksums. It is written beside its place, flushed, and renamed; the
manifest comes last.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RunDirError
from launcher.files import set_mode, sync
from launcher.run.best import in_facts, score

# A script may have folders of its own beside: `step-100` is none of ours.
_NAME = re.compile(r"step-(?:(\d+)-epoch-(\d+)(-before-test)?|(\d{8,}))")
_HALF = re.compile(rf"\.{_NAME.pattern}\.(tmp|old)")
MODEL = "model.safetensors"
TRAINING = "training.pt"
_SHARE = re.compile(r"rank-(\d+)-of-(\d+)\.safetensors")
_MANIFEST = "manifest.json"
_GONE = (FileNotFoundError, NotADirectoryError)

Note = Mapping[str, Any]  # of a file: its `size` and its `sha256`


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: optimizer steps done, and the epoch that training goes on with."""

    path: Path
    step: int
    epoch: int
    facts: Mapping[str, Any]  # test_loss and others, world_size, time: {} when unreadable
    size: int  # bytes

    def score(self, best_by: str | None = None) -> float | None:
        """How good its test was, larger is better; None: untested, or without such a metric."""
        return score(in_facts(self.facts), best_by)


def name_of(step: int, epoch: int | None = None, *, before_test: bool = False) -> str:
    """Return the name of the checkpoint at a position, whose test may be still to be made."""
    if epoch is None:
        return f"step-{step:08d}"
    return f"step-{step:08d}-epoch-{epoch:04d}" + "-before-test" * before_test


def share_name(rank: int, ranks: int) -> str:
    """Return the name of the file of a checkpoint with what one of several ranks holds."""
    return f"rank-{rank}-of-{ranks}.safetensors"


def shares_in(folder: Path) -> list[Path]:
    """Return the files that each rank has written of a checkpoint, by rank; none: rank 0 did all.

    They are as many as the first says: one that is missing is an error for who opens it.
    """
    found = [match for path in folder.glob("rank-*") if (match := _SHARE.fullmatch(path.name))]
    ranks = int(found[0][2]) if found else 0
    return [folder / share_name(rank, ranks) for rank in range(ranks)]


def all_of(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, oldest first, valid or not.

    Raises RunDirError where one may not be read, and OSError where a disk fails: to go on without
    it would be to go back.
    """
    found = []
    for path in folder.glob("step-*"):
        if match := _NAME.fullmatch(path.name):
            try:
                facts = (_manifest(path) or {}).get("facts", {})
                size = sum(_sizes(path))
            except _GONE:  # a file of that name, or one that has just been pruned
                continue
            except PermissionError as error:
                raise RunDirError(f"`{path}` cannot be read: {error.strerror}") from error
            step, epoch = int(match[1] or match[4]), int(match[2] or 0)
            found.append(Checkpoint(path, step, epoch, facts, size))
    # A name that goes on comes first: before its test.
    return sorted(found, key=lambda one: (one.step, one.epoch, -len(one.path.name)))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _sizes(path)
        else:
            yield path.stat().st_size


def problem(checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with a checkpoint, None where every byte is as it was written."""
    try:
        return _harm(checkpoint)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _harm(checkpoint: Checkpoint) -> str | None:
    """Return what has been done to a checkpoint; raises OSError where a disk does not tell."""
    manifest = _manifest(checkpoint.path)
    if manifest is None:
        return "its manifest is missing or broken"
    for name, written in manifest["files"].items():
        path = checkpoint.path / name
        try:
            if path.stat().st_size != written["size"]:
                return f"{name} has {path.stat().st_size} bytes of {written['size']}"
            if _checksum(path) != written["sha256"]:
                return f"{name} is not what was written (its checksum differs)"
        except _GONE as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def newest_valid(
    folder: Path, warn: Callable[[str], None], look_inside: Callable[[Checkpoint], str | None]
) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, None when there is none.

    `look_inside` says what is wrong with the contents of one that is. Newer ones that are broken
    get a warning and another name; raises OSError where a disk fails. For the one writer of a run.
    """
    for checkpoint in reversed(all_of(folder)):
        wrong = _harm(checkpoint) or look_inside(checkpoint)
        if wrong is None:
            return checkpoint
        warn(f"checkpoint {checkpoint.path.name} is not valid: {wrong}; trying the one before it")
        set_aside(checkpoint)
    return None


def set_aside(checkpoint: Checkpoint) -> None:
    """Rename a checkpoint, out of the way of what will be saved at the same step."""
    place = checkpoint.path.with_name(f"broken-{checkpoint.path.name}")
    number = 1
    while place.exists():
        number += 1
        place = checkpoint.path.with_name(f"broken-{checkpoint.path.name}-{number}")
    with suppress(OSError):
        checkpoint.path.rename(place)


def best(
    checkpoints: list[Checkpoint], count: int = 1, best_by: str | None = None
) -> list[Checkpoint]:
    """Return the `count` best of the tested checkpoints, the best first, the older of equals."""
    tested = [c for c in checkpoints if c.score(best_by) is not None]
    return sorted(tested, key=lambda c: -(c.score(best_by) or 0))[:count]


def write(
    folder: Path, name: str, write_files: Callable[[Path], None], facts: Mapping[str, Any]
) -> Path:
    """Write a checkpoint: `write_files` fills a folder, which then appears whole under its name.

    Raises OSError, and whatever `write_files` raises, with nothing left behind.
    """

    def filled(beside: Path) -> Mapping[str, Note]:
        write_files(beside)
        return {}

    return fill(begin(folder, name), folder / name, filled, facts)


def begin(folder: Path, name: str) -> Path:
    """Make the empty folder in which a checkpoint is written until it is whole, and return it."""
    folder.mkdir(exist_ok=True)
    beside = beside_of(folder / name)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    return beside


def fill(
    beside: Path,
    place: Path,
    write_files: Callable[[Path], Mapping[str, Note]],
    facts: Mapping[str, Any],
) -> Path:
    """Have a folder filled, which then appears whole at its place; nothing is left of it else.

    `write_files` returns what others have noted of files that they have written into it.
    """
    try:
        seal(beside, place, facts, write_files(beside))
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def beside_of(place: Path) -> Path:
    """Return where a checkpoint is written until it is whole."""
    return place.with_name(f".{place.name}.tmp")


def seal(
    beside: Path, place: Path, facts: Mapping[str, Any], noted: Mapping[str, Note] | None = None
) -> None:
    """Make what stands in a folder a checkpoint: flushed, with a manifest, at its place.

    One that is there already gives way to it. `noted` are files of others, which are taken at their
    word. Raises RunDirError where there is a manifest.
    """
    if (beside / _MANIFEST).exists():
        raise RunDirError(
            f"a checkpoint was saved with a file `{_MANIFEST}`, which is the name of its own list",
            hint="give the file another name, or a folder inside of the checkpoint's",
        )
    files: dict[str, Any] = dict(noted or {})
    for path in sorted(beside.rglob("*")):
        name = path.relative_to(beside).as_posix()
        if path.is_file() and name not in files:
            files[name] = note(path, beside)
        elif path.is_dir():
            sync(path)
    if odd := [n for n, told in files.items() if (beside / n).stat().st_size != told["size"]]:
        raise RunDirError(f"`{beside / odd[0]}` is not as it was written")
    manifest: dict[str, Any] = {"files": files, "facts": {**facts, "time": time.time()}}
    manifest["sha256"] = _own_checksum(manifest)
    (beside / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sync(beside / _MANIFEST)
    sync(beside)
    if place.exists():
        _remove(place)
    beside.rename(place)
    sync(place.parent)


def note(path: Path, beside: Path) -> Note:
    """Return size and checksum of a file that stands in the folder `beside`, and flush it.

    Who may read it follows from who may read the folder.
    """
    set_mode(path, path.stat().st_mode | beside.stat().st_mode & 0o666)
    told: Note = {"size": path.stat().st_size, "sha256": _checksum(path)}
    sync(path)
    return told


def prune(folder: Path, keep_last: int, keep_best: int, best_by: str | None = None) -> None:
    """Delete all but the newest `keep_last` and the best `keep_best` checkpoints."""
    everything = all_of(folder)
    kept = {c.path for c in [*everything[-keep_last:], *best(everything, keep_best, best_by)]}
    for checkpoint in everything:
        if checkpoint.path not in kept:
            _remove(checkpoint.path)


def _remove(place: Path) -> None:
    """Delete a checkpoint. Renamed first: a deletion cut short must not look like one."""
    doomed = place.with_name(f".{place.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    place.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for path in folder.glob(".step-*"):
        if _HALF.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, None where it is not as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        told = manifest.pop("sha256", None)
    except (*_GONE, ValueError, AttributeError, TypeError):
        return None
    return dict(manifest) if told == _own_checksum(manifest) else None


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
