"""times.jsonl: what a launcher notes, as it goes on, of what the time of its run goes into.

Lines are only ever added: each stands where it was written, whatever is killed behind it.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from launcher.errors import LauncherError, Stopped, TrainingFailed
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.times.goodput import EVERY_S, goodput, words

_LOOK_S = 0.5  # between two looks at what rank 0 does
_DIGITS = 3  # milliseconds
_AT = {"time": int | float}
_SPENT = {"spent": dict, "steps": int}
# What a line of each event has to tell.
_NEEDED: dict[str, dict[str, Any]] = {
    "start": _AT,
    **dict.fromkeys(("job", "job end"), _AT | {"name": str}),
    **dict.fromkeys(("note", "first step"), _SPENT),
    "begin": _SPENT | {"step": int},
    "checkpoint": _SPENT | {"step": int, "trained": int | float},
    "end": _SPENT | {"how": str},
}


def append(run: RunDir, event: str, **told: Any) -> None:
    """Add a line; a disk that is full or lost is no reason to end a run."""
    whole = {"event": event} | {name: _short(value) for name, value in told.items()}
    with suppress(OSError), run.times.open("ab+") as file:
        torn = file.tell() > 0 and file.seek(-1, 2) and file.read(1) != b"\n"
        file.write(b"\n" * bool(torn) + json.dumps(whole).encode() + b"\n")


def read(run: RunDir) -> list[dict[str, Any]]:
    """Return the lines; of notes in a row the last: each says all that those before it do."""
    found: list[dict[str, Any]] = []
    try:
        lines = run.times.read_bytes().splitlines()
    except OSError:
        return found
    for line, behind in zip(lines, [*lines[1:], b""], strict=False):
        if _is_note(line) and _is_note(behind):
            continue  # a week has a hundred thousand of them
        with suppress(ValueError):  # cut short by a full disk
            told = json.loads(line)
            if isinstance(told, dict) and _is_whole(told):
                found.append(told)
    return found


def spent(run: RunDir, *, alive: bool) -> dict[str, float]:
    """Return the seconds of all starts of a run by what they went into, {} where nobody noted it.

    `alive`: whether it goes on; what nobody has noted yet is then left out.
    """
    return goodput(read(run), now=None if alive else time.time())


def said(run: RunDir, *, alive: bool = False) -> str:
    """Return in a line where the time of all starts went, "" where nobody noted it."""
    lines = read(run)
    count = Counter(line["event"] for line in lines)  # processes may not have come to a start
    spent = goodput(lines, now=None if alive else time.time())
    return words(spent, max(count["start"], count["job"]))


def _is_whole(told: Mapping[str, Any]) -> bool:
    """Whether a line tells what it has to, as numbers."""
    needed = _NEEDED.get(str(told.get("event")))
    if needed is None or not all(isinstance(told.get(name), needed[name]) for name in needed):
        return False
    if not isinstance(told.get("queued") or 0, int | float):
        return False
    return all(isinstance(seconds, int | float) for seconds in told.get("spent", {}).values())


def _is_note(line: bytes) -> bool:
    return line.startswith(b'{"event": "note"')


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    return round(value, _DIGITS) if isinstance(value, float) else value


class Times:
    """What the launcher of the first machine notes of one launch; None for a run: nothing.

    Where rank 0 marks what it does, its clock counts; else all is `running`. What rank 0 does not
    tell is `starting` before it can, and `ending` when the processes have ended.
    """

    def __init__(
        self, run: RunDir | None = None, *, script: bool = False, in_job: bool = False
    ) -> None:
        self._run, self._in_job = run, in_job
        self._without_mark = "running" if script else "starting"
        self._began, self._looked, self._noted = time.monotonic_ns(), 0.0, 0.0
        self._open = False
        self._forget()

    def _forget(self) -> None:
        self._ended: int | None = None  # when the processes had ended
        self._last: mark.Spending | None = None
        self._steps = 0
        self._told: set[str] = set()

    def start(self) -> None:
        """Note that processes are started; marks of others are gone."""
        if self._open:  # one behind the other, without a gap
            self.end(TrainingFailed("to be started again"))
        self._forget()
        self._open, self._noted = True, time.monotonic()
        if self._run:
            at = time.time() - (time.monotonic_ns() - self._began) / 1e9
            append(self._run, "start", time=at, in_job=self._in_job)

    def look(self) -> None:
        """Note what is new, or that time passes; called many times a second."""
        now = time.monotonic()
        if self._run and now - self._looked >= _LOOK_S:
            self._looked = now
            self._look(self._run)
            if now - self._noted >= EVERY_S:
                self._note(self._run, "note", time.monotonic_ns())

    def processes_ended(self) -> None:
        """Say that the processes have ended."""
        if self._run:
            self._ended = time.monotonic_ns()
            self._look(self._run)

    def end(self, error: LauncherError | None) -> None:
        """Note that a start is over, and how; None: it completed."""
        if not self._open:
            return
        how = "stopped" if isinstance(error, Stopped) else "failed" if error else "completed"
        now, self._open = time.monotonic_ns(), False
        if self._run:
            self._note(self._run, "end", now, how=how)
        self._began = now

    def _look(self, run: RunDir) -> None:
        """Note what rank 0 has done for the first time, and what it saves."""
        before, found = self._last, mark.read_spending(run.mark(0))
        marked = mark.read(run.mark(0))
        if found is None or marked is None:
            return
        self._last, self._steps = found, marked.steps
        if found.gone_on_from is not None and "begin" not in self._told:
            self._told.add("begin")
            self._note(run, "begin", time.monotonic_ns(), step=found.gone_on_from)
        if found.kind and "first step" not in self._told and marked.steps:
            self._told.add("first step")
            self._note(run, "first step", time.monotonic_ns())
        if found.saved and found.saved != (before.saved if before else None):
            step, trained_s = found.saved
            self._note(run, "checkpoint", time.monotonic_ns(), step=step, trained=trained_s)

    def _note(self, run: RunDir, event: str, now: int, **told: Any) -> None:
        self._noted = time.monotonic()
        append(run, event, spent=self._spent(now), steps=self._steps, **told)

    def _spent(self, now: int) -> Mapping[str, float]:
        """Return the seconds of this start by kind: together they are all of them."""
        until = self._ended or now
        found = self._last.until(until) if self._last else {}
        others = max(0.0, (until - self._began) / 1e9 - sum(found.values()))
        before = "starting" if found else self._without_mark
        found[before] = found.get(before, 0.0) + others
        found["ending"] = found.get("ending", 0.0) + (now - until) / 1e9
        return {kind: seconds for kind, seconds in found.items() if seconds}
