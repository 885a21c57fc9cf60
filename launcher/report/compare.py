"""Two runs beside each other: the first report that differs, and all that they differ in.

A run is a function of recipe and seed, so two runs that should be alike are alike to the last
digits; where they part is the first thing to know of a change.
"""

import filecmp
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import BadInput
from launcher.masks import shown_value
from launcher.run.directory import RunDir
from launcher.run.listing import rows_of
from launcher.run.told import read_config

# What says how fast a run was, and when: no two runs are alike in it.
_OF_TIME = {
    "time",
    "samples_per_second",
    "step_time",
    "data_wait",
    "rank_time_median",
    "rank_time_slowest",
    "slowest_rank",
    "rank_time_of",
    "gpu_memory",
    "eta_seconds",
    "steps_in_all",
    "tflops",
    "mfu",
}
_KEY = ("split", "step", "line")
_OF_MACHINES = {
    "processes": "world_size",
    "machines": "nodes",
    "threads": "threads",
    "cpu": "cpu",
    "host": "host",
}
_MOST_NAMES = 3
_NONE = "-"


class Difference(NamedTuple):
    """A number of a report that is not the same in both runs."""

    split: str
    step: int
    name: str
    values: tuple[Any, Any]
    relative: float  # |a - b| / max(|a|, |b|); infinite where one of them is no finite number


@dataclass(frozen=True)
class Comparison:
    """How the reports of two runs differ, and what else does."""

    reports: int  # that both runs have
    only: tuple[int, int]  # reports that only one of them has
    first: Difference | None  # the first at all
    first_beyond: Difference | None  # the first by more than the tolerance
    largest: Difference | None
    differ_in: dict[str, dict[str, tuple[Any, Any]]]  # by subject and name

    @property
    def equal(self) -> bool:
        """Whether all reports are there twice, and equal within the tolerance."""
        return self.first_beyond is None and self.only == (0, 0)


def compare(a: RunDir, b: RunDir, tolerance: float) -> Comparison:
    """Compare what two runs reported, number by number, and everything that made them.

    Raises RunDirError where a folder holds no run, BadInput where they have no report in common.
    """
    configs = read_config(a.config), read_config(b.config)
    ours, theirs = _reports(a), _reports(b)
    common = [key for key in ours if key in theirs]
    if not common:
        without = [run.path for run, rows in ((a, ours), (b, theirs)) if not rows]
        raise BadInput(
            "there is nothing to compare: "
            + (
                f"`{without[0]}` has reported nothing"
                if without
                else "no step was reported by both"
            ),
            hint="runs can be compared where both reported: `log_every` and `test_every` say when",
        )
    found = [d for key in common for d in _differences(key[:2], ours[key], theirs[key])]
    return Comparison(
        reports=len(common),
        only=(len(ours) - len(common), len(theirs) - len(common)),
        first=next(iter(found), None),
        first_beyond=next((d for d in found if d.relative > tolerance), None),
        largest=max(found, key=lambda d: d.relative, default=None),
        differ_in=_made_of(a, b, *configs),
    )


def _reports(run: RunDir) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return the reports of a run by split, step, and which of those it is, as they came."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for row in rows_of(run):
        if isinstance(row.get("step"), int):
            place = (str(row.get("split")), row["step"])
            found[*place, counts[place]] = row
            counts[place] += 1
    return found


def _differences(
    key: tuple[str, int], a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[Difference]:
    for name in dict.fromkeys([*a, *b]):
        if name not in _OF_TIME and name not in _KEY:
            yield from _apart(key, name, a.get(name), b.get(name))


def _apart(key: tuple[str, int], name: str, a: Any, b: Any) -> Iterator[Difference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for inner in dict.fromkeys([*a, *b]):
            yield from _apart(key, f"{name} {inner}", a.get(inner), b.get(inner))
    elif a != b:
        yield Difference(*key, name, (a, b), _relative(a, b))


def _relative(a: Any, b: Any) -> float:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b)]
    return abs(a - b) / max(abs(a), abs(b)) if all(numbers) else float("inf")


def _made_of(
    a: RunDir, b: RunDir, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return what two runs were made of that is not the same, by subject."""
    texts = (_texts(a), _texts(b))
    subjects = {
        "hyperparameters": _masked(_unlike(ours["hyperparameters"], theirs["hyperparameters"])),
        "recipe": _unlike({"name": ours.get("recipe")}, {"name": theirs.get("recipe")})
        | dict.fromkeys(_unlike(*texts), ("text", "another text")),
        "git": _unlike(_mapping(ours.get("git")), _mapping(theirs.get("git"))),
        "snapshot": _trees(a.snapshot, b.snapshot),
        "versions": _unlike(_mapping(ours.get("versions")), _mapping(theirs.get("versions"))),
        "machines": _unlike(_machines(a, ours), _machines(b, theirs)),
    }
    return {subject: found for subject, found in subjects.items() if found}


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*a, *b])
    return {n: (a.get(n, _NONE), b.get(n, _NONE)) for n in names if a.get(n, ...) != b.get(n, ...)}


def _masked(found: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    def shown(name: str, value: Any) -> Any:
        return value if value == _NONE else shown_value(name, value)

    return {n: (shown(n, a), shown(n, b)) for n, (a, b) in found.items()}


def _texts(run: RunDir) -> dict[str, bytes]:
    """Return the program of a run as it was when the run was made, by file."""
    files = [run.recipe, run.path / "script.py"]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _machines(run: RunDir, config: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: config.get(key) for name, key in _OF_MACHINES.items()}
    on_gpu = any(row.get("gpu_memory") is not None for row in islice(rows_of(run), 1))
    return told | {"device": "cuda" if on_gpu else "cpu", "sessions": 1 + len(_resumed(config))}


def _resumed(config: Mapping[str, Any]) -> list[Any]:
    found = config.get("resumed", [])
    return found if isinstance(found, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _trees(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """Return the files of two snapshots that are not the same in both, the first few by name."""
    ours, theirs = _files(a), _files(b)
    there = ("there", _NONE), (_NONE, "there")
    found = {name: there[name in theirs] for name in sorted(ours ^ theirs)}
    for name in sorted(ours & theirs):
        if not filecmp.cmp(a / name, b / name, shallow=False):
            found[name] = ("text", "another text")
    shown = dict(islice(found.items(), _MOST_NAMES))
    more = len(found) - len(shown)
    return shown | ({"and more": (more, more)} if more else {})


def _files(folder: Path) -> set[str]:
    return {
        str((Path(here) / name).relative_to(folder))
        for here, _, names in os.walk(folder)
        for name in names
        if (Path(here) / name).is_file()
    }
