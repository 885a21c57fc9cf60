"""Where a run is that was submitted to another host: RUN_DIR/remote.json, all that is kept here."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, LauncherError, RunDirError
from launcher.files import read_json, write_json
from launcher.remote.connection import in_shell, output_of, pass_on, tied_env
from launcher.run.directory import RunDir


@dataclass(frozen=True)
class Place:
    """A run at another host."""

    host: str  # as ssh takes it
    folder: str  # of the code there, absolute
    python: str  # that has launcher there
    path: str  # of the run directory there, absolute
    jobs: tuple[str, ...] = ()  # none: it is not known whether it was queued

    def write(self, run_dir: Path) -> None:
        """Note it in the run's folder here."""
        write_json(RunDir(run_dir).remote, asdict(self))


def of(path: Path) -> Place | None:
    """Return where a run is, None for one that is here; a run of an array is where the array is.

    Raises RunDirError where the note is broken.
    """
    for folder, inner in ((path, ""), (path.absolute().parent, f"/{path.name}")):
        file = RunDir(folder).remote
        if file.exists() and (not inner or path.name.isdigit()):
            noted = read_json(file) or {}
            try:
                one = Place(**noted | {"jobs": tuple(noted.get("jobs", ()))})
            except TypeError as error:
                raise RunDirError(f"`{file}` is not the remote.json of a run: {error}") from error
            return Place(**asdict(one) | {"path": f"{one.path}{inner}"})
    return None


def below(folder: Path) -> dict[Path, Place]:
    """Return the runs in a folder that are at other hosts."""
    paths = [file.parent for file in sorted(folder.glob("*/remote.json"))]
    return {path: place for path in paths if (place := of(path))}


def together(places: Iterable[Place]) -> list[list[Place]]:
    """Return places by host and launcher there: one command is enough for each."""
    found: dict[tuple[str, str], list[Place]] = {}
    for one in places:
        found.setdefault((one.host, one.python), []).append(one)
    return list(found.values())


def run_there(words: Sequence[str], named: Sequence[int]) -> int | None:
    """Run a command of launcher where the runs are that words of it name; returns its exit code.

    `named` are the positions of those words. None where all are here; raises BadInput for runs in
    several places.
    """
    places = {at: place for at in named if (place := of(Path(words[at])))}
    if not places:
        return None
    if len(places) < len(named) or len(together(places.values())) > 1:
        raise BadInput("these runs are in different places", hint="name those of one place")
    there = [places[at].path if at in places else word for at, word in enumerate(words)]
    return ask(next(iter(places.values())), there, on_terminal=words[0] == "watch" and _terminal())


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def told(place: Place, words: Sequence[str]) -> Any:
    """Return what a command there says with --json."""
    said = output_of(place.host, _line(place, [*words, "--json"], {}))
    try:
        return json.loads(said.splitlines()[-1])  # greetings of a login may come before
    except (ValueError, IndexError) as error:
        raise LauncherError(f"`launcher {words[0]}` at {place.host} said: {said}") from error


def rows_of(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return how runs of one place are, as `launcher status --json` there says."""
    rows: list[dict[str, Any]] = told(places[0], ["status", *(one.path for one in places)])
    return rows


def ask(place: Place, words: Sequence[str], *, on_terminal: bool = False) -> int:
    """Run a command of launcher there, which prints for itself; returns its exit code."""
    line = _line(place, words, tied_env(on_terminal=on_terminal))
    return pass_on(place.host, line, on_terminal=on_terminal)


def _line(place: Place, words: Sequence[str], env: Mapping[str, str]) -> str:
    return in_shell([place.python, "-m", "launcher", *words], place.folder, env)
