"""What run directories tell: which there are, how each one is, and in what they differ.

Reads only, and takes what it finds: folders may be torn, foreign or older than this version.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from launcher.files import read_json
from launcher.masks import masked_config
from launcher.recipe.hyperparameters import shown
from launcher.run import lock
from launcher.run.best import name_of, score
from launcher.run.directory import RunDir
from launcher.run.rows import metrics_in
from launcher.run.told import is_script, read_config

# "killed": it has begun, tells no end, and nobody living holds its lock. "new": it has not begun.
State = Literal["running", "completed", "stopped", "failed", "killed", "new"]

DEEPEST = 4  # levels below a folder in which runs are looked for
_AT_ONCE = 1 << 20  # bytes of metrics.jsonl that become rows together
_BLOCK = 1 << 24  # and in which only some are looked for
_TEST = b'"test"'


@dataclass(frozen=True)
class RunSummary:
    """One run in a few numbers; None is what its files do not say."""

    path: Path
    recipe: str
    state: State
    created: float  # seconds since 1970
    world_size: int | None
    epochs: int  # finished
    step: int
    train_loss: float | None  # the newest
    test_loss: float | None  # the newest
    best_test_loss: float | None
    test_accuracy: float | None  # the newest; 0 to 1
    best_test_accuracy: float | None
    metrics: Mapping[str, float]  # of the newest test, the recipe's own
    best_metric: Mapping[str, float]  # the one that `best_by` names, of the best test: {} if none
    seconds: float | None  # wall clock, over all sessions
    samples_per_second: float | None
    error: str | None  # what ended it
    hyperparameters: Mapping[str, Any]
    config: Mapping[str, Any] = field(repr=False)  # all of config.json, secrets masked
    kind: Literal["recipe", "script"] = "recipe"


def find_runs(folder: Path) -> Iterator[Path]:
    """Give every folder with a config.json, `folder` itself or up to DEEPEST levels below.

    Looks into no run (machines of a run keep copies of its configuration there), behind no link,
    and into nothing hidden.
    """
    for path, inner, files in os.walk(folder):
        here = Path(path)
        is_run = "config.json" in files
        if is_run:
            yield here
        deep = len(here.relative_to(folder).parts) >= DEEPEST
        inner[:] = [] if is_run or deep else sorted(n for n in inner if not n.startswith("."))


def summary(path: Path) -> RunSummary:
    """Return a run in a few numbers; raises RunDirError where a folder holds none."""
    run = RunDir(path)
    config = masked_config(read_config(run.config, to_look=True))
    state, result = _ending(run)
    train, tests = _newest(run.metrics)
    test = tests[-1] if tests else {}
    best_by = str(config["hyperparameters"].get("best_by") or "")
    scored = [row for row in tests if score(row, best_by) is not None]
    top = max(scored, key=lambda row: score(row, best_by) or 0, default={})
    own = metrics_in(top).keys() & {name_of(best_by, top)}
    best = {name: _numbers(row.get(name) for row in tests) for name in ("loss", "accuracy")}
    created = number(config.get("created")) or 0
    return RunSummary(
        path=path,
        recipe=word(config.get("recipe", "?")),
        state=state,
        created=created if 0 < created < 1e11 else run.config.stat().st_mtime,
        world_size=_whole(result.get("world_size", config.get("world_size"))),
        epochs=max(map(whole_epochs, (train, test))),
        step=max(_whole(row.get("step"), 0) for row in (train, test, result)),
        train_loss=_first(result.get("train_loss"), train.get("loss")),
        test_loss=_first(result.get("test_loss"), test.get("loss")),
        best_test_loss=min(best["loss"], default=None),
        test_accuracy=_first(result.get("test_accuracy"), test.get("accuracy")),
        best_test_accuracy=max(best["accuracy"], default=None),
        metrics={n: v for n, told in metrics_in(test).items() if (v := number(told)) is not None},
        best_metric={name: top[name] for name in own},
        seconds=number(result.get("seconds")),
        samples_per_second=_first(
            result.get("samples_per_second"), train.get("samples_per_second")
        ),
        error=str(result["error"]) if result.get("error") else None,
        hyperparameters=config["hyperparameters"],
        config=config,
        kind="script" if is_script(config) else "recipe",
    )


def rows_of(run: RunDir) -> Iterator[dict[str, Any]]:
    """Give all rows of metrics.jsonl; lines that cannot be read are left out."""
    rest = b""
    with suppress(OSError), run.metrics.open("rb") as file:
        while block := file.read(_AT_ONCE):
            whole, _, rest = (rest + block).rpartition(b"\n")
            yield from _rows(whole)
        yield from _rows(rest)


def differing(those: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hyperparameters that are not the same in all, in the order of their first."""
    names = dict.fromkeys(name for one in those for name in one)
    return [name for name in names if len({word(one.get(name, ...)) for one in those}) > 1]


def differences(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return of each run the hyperparameters in which runs of its recipe differ."""
    recipes: dict[str, list[RunSummary]] = {}
    for run in runs:
        recipes.setdefault(run.recipe, []).append(run)
    names = {
        recipe: differing([run.hyperparameters for run in group])
        for recipe, group in recipes.items()
    }
    return [
        {n: run.hyperparameters[n] for n in names[run.recipe] if n in run.hyperparameters}
        for run in runs
    ]


def number(value: Any) -> float | None:
    """Return a finite number that was read from a file, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None  # False for NaN, too


def word(value: Any) -> str:
    """Return a value as the command line takes it, on one line and without control characters."""
    text = shown(value)
    return text if text.isprintable() else json.dumps(text)


def whole_epochs(row: Mapping[str, Any]) -> int:
    """Return how many epochs were over at a report; in rows of old tests were where one ended."""
    of_old = _whole(row.get("epoch", 0), 0) + (row.get("split") == "test")
    return int(_whole(row.get("epochs"), of_old))


def age(seconds: float) -> str:
    """Return a time span in its largest whole unit: `5 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _ending(run: RunDir) -> tuple[State, dict[str, Any]]:
    """Return the state of a run and its result.json.

    The lock is looked at first: a run that ends in between has then left its result.
    """
    if _is_held(run.lock):
        return "running", {}
    result = read_json(run.result) or {}
    if result.get("state") in get_args(State):
        return result["state"], result
    begun = run.metrics.exists() or any(run.logs.glob("rank-*"))
    alive: State = "running" if run.is_copy else "killed"  # as it was when it was pulled
    return (alive if begun else "new"), result


def _is_held(path: Path) -> bool:
    with suppress(
        OSError, psutil.Error, KeyError, TypeError, ValueError
    ):  # an odd lock is nobody's
        return path.exists() and lock.holder(path) is not None
    return False


def _newest(metrics: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the newest train row and all test rows.

    The best test may be anywhere, so all lines are looked at; but only those that matter are taken
    apart from the others, and parsed.
    """
    tests, train, rest = list[dict[str, Any]](), b"", b""
    with suppress(OSError), metrics.open("rb") as file:
        while block := file.read(_BLOCK):
            whole, _, rest = (rest + block).rpartition(b"\n")
            tests += _tests(whole)
            train = _last_train(whole) or train
        tests += _tests(rest)
    return _row(train), tests


def _tests(lines: bytes) -> Iterator[dict[str, Any]]:
    at = 0
    while (at := lines.find(_TEST, at)) >= 0:
        start, end = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        at = end if end >= 0 else len(lines)
        if (row := _row(lines[start:at])).get("split") == "test":
            yield row


def _last_train(lines: bytes) -> bytes:
    end = len(lines)
    while end > 0:
        start = lines.rfind(b"\n", 0, end) + 1
        line = lines[start:end]
        if line.startswith(b"{") and line.endswith(b"}") and _TEST not in line:  # not torn
            return line
        end = start - 1
    return b""


def _rows(lines: bytes) -> list[dict[str, Any]]:
    """Return the rows in some lines: read at once, but where one of them cannot be read.

    Nor can orjson read NaN, which json can.
    """
    import orjson  # noqa: PLC0415  # not for commands that read none

    try:
        found = orjson.loads(b"[" + lines.replace(b"\n", b",") + b"]")
    except ValueError:
        found = map(_row, lines.split(b"\n"))
    return [row for row in found if row and isinstance(row, dict)]


def _row(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return {}


def _numbers(values: Iterable[Any]) -> list[float]:
    return [found for value in values if (found := number(value)) is not None]


def _first(*values: Any) -> float | None:
    return next(iter(_numbers(values)), None)


def _whole(value: Any, otherwise: Any = None) -> Any:
    return int(found) if (found := number(value)) is not None else otherwise
