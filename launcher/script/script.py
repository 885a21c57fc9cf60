"""A script as a run has it: what is started, again and again, and how that is told."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import BadInput
from launcher.run.told import is_script


@dataclass(frozen=True)
class Script:
    """Any Python program, and how it is to be treated."""

    file: str | None  # its path
    word: str | None = None  # it, or its folder, as it was named, from where it was started
    module: str | None = None  # or this instead, as `python -m` starts it
    args: Sequence[str] = ()
    nproc: int | None = None  # processes on each machine; None: not asked for, one like any program
    progress: str | None = None  # the file or folder in which it is seen to get on
    on_resume: Sequence[str] = ()  # arguments that are added at later starts
    stop_signal: str = "TERM"  # what asks its processes to stop
    grace: float | None = None  # seconds from then to their end; None: what others leave
    hang_timeout: float | None = None  # seconds without a sign; None: it is not watched

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Script | None":
        """Return the script that a config.json tells of; None where it is a recipe's."""
        if not is_script(told):
            return None
        known = [one.name for one in fields(cls)]
        return cls(**{name: value for name, value in told["script"].items() if name in known})

    def told(self) -> dict[str, Any]:
        """Return what config.json says of it."""
        return asdict(self)

    def command(self, start: int) -> list[str]:
        """Return the command of each of its processes at a start, counted from 1."""
        # Its `sys.argv[0]` is as python would have it, where the word still leads to the file, or
        # to the folder whose `__main__.py` it is.
        file = Path(str(self.file))
        named = self.word and Path(self.word).absolute() in (file, file.parent)
        program = ["-m", self.module] if self.module else [str(self.word if named else file)]
        added = self.on_resume if start > 1 and (not self.progress or self.newest()) else ()
        return [sys.executable, *program, *self.args, *added]

    def newest(self) -> "Sign | None":
        """Return the newest file in which it is seen to get on, None where there is none."""
        return max(_signs(Path(self.progress)), default=None) if self.progress else None


class Sign(NamedTuple):
    """A file, and what shows that it has changed."""

    time_ns: int
    size: int
    path: str


def _signs(path: Path) -> Iterator[Sign]:
    """Give the files at or below a path."""
    folders = [(str(folder), names) for folder, _, names in os.walk(path)]
    for folder, names in folders or [(str(path.parent), [path.name])]:
        for name in names:
            with suppress(OSError):  # it has just been renamed
                found = Path(folder, name).stat()
                yield Sign(found.st_mtime_ns, found.st_size, str(Path(folder, name)))


def words(text: str | None) -> list[str]:
    """Split words as a shell does; raises BadInput where it could not."""
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise BadInput(f"--on-resume {text!r}: {error}", hint="close what is quoted") from error


def file_of_module(name: str) -> Path:
    """Return the file that `python -m NAME` would run here; nothing is imported to find out.

    Raises BadInput where there is none.
    """
    spec = _found(name)
    if spec and spec.submodule_search_locations is not None:
        name += ".__main__"
        spec = _found(name)
    if spec is None or not str(spec.origin).endswith(".py"):
        hint = "it is looked for from the current folder on, as `python -m` does"
        raise BadInput(f"there is no module `{name}` to run", hint=hint)
    return Path(str(spec.origin))


def _found(name: str) -> ModuleSpec | None:
    """Return where a module is; unlike importlib's, without running the packages around it."""
    first, *inner = name.split(".")
    if not all([first, *inner]):
        return None
    before = sys.path.copy()
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = (finder.find_spec(first, None) for finder in sys.meta_path)
        spec = next(filter(None, found), None)
        for part in inner:
            place = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(part, place) if place is not None else None
        return spec
    finally:
        sys.path[:] = before
