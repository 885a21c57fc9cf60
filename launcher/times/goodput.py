"""Where the time of all starts of a run went, from the lines of times.jsonl. Pure.

A line has an `event`, and most have what the start they belong to has `spent` so far: seconds by
kind, which together are all of its seconds. `note` lines say nothing else. Others are:

    job         a job's script begins: `time`, its `name`, and since when the job was `queued`, or
                that it starts `again` on the nodes it has
    start       processes are started: `time`, and whether a job's script did it (`in_job`)
    begin       rank 0 has all it needs, and goes on from a `step`
    first step  is done
    checkpoint  of a `step` is being saved, `trained` seconds after the start
    end         of a start, and `how`: completed, stopped or failed
    job end     the job's script ends: `time` and `name`
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

EVERY_S = 5.0  # between two notes: who is killed leaves no more than that untold

# `training` is what the run has gone on from or may go on from, `lost` what was made again or has
# to be; of `running` nobody told more. `ending` is what comes behind training and the last save.
NAMES = (
    *("queued", "starting", "training", "lost", "testing", "saving", "running"),
    *("ending", "unknown"),
)
_WORDS = {"training": "training that was kept", "lost": "training that was lost"}
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


@dataclass
class _Start:
    """One start of the processes."""

    began: float  # seconds since 1970
    spent: Mapping[str, float] = field(default_factory=dict)
    gone_on_from: int | None = None
    saved: int | None = None  # the step of the newest checkpoint
    how: str = ""  # it ended; "": it was killed, or goes on
    points: list[tuple[float, float]] = field(default_factory=list)  # steps, seconds of training

    @property
    def until(self) -> float:
        """Up to when it has told what it did, in seconds since 1970."""
        return self.began + sum(self.spent.values())

    def take(self, line: Mapping[str, Any]) -> None:
        """Take a line of this start."""
        event, spent = line["event"], line.get("spent", {})
        self.spent = {(kind if kind in NAMES else "unknown"): s for kind, s in spent.items()}
        trained = self.spent.get("training", 0.0)
        if event == "begin":
            self.gone_on_from = line["step"]
            self.points.append((line["step"], trained))
        elif event == "checkpoint":
            self.saved = line["step"]
            self.points.append((line["step"], line["trained"]))
        elif event == "end":
            self.how = line["how"]
        self.points.append((line.get("steps", 0), trained))

    def own_limit(self, *, alive: bool) -> float:
        """Return up to which step its training counts if nothing goes on from it."""
        if alive or self.how == "completed":
            return inf
        return (self.gone_on_from or 0) if self.saved is None else self.saved

    def trained_until(self, step: float) -> float:
        """Return the seconds of training that it took to come to a step, all if it did not."""
        trained = self.spent.get("training", 0.0)
        steps = seconds = 0.0
        points = [(0.0, 0.0)]
        for at, after in self.points:  # in order, whatever a reader saw half
            steps, seconds = max(steps, at), max(seconds, after)
            points.append((steps, seconds))
        if step > steps:
            return trained
        first = bisect_left(points, step, key=lambda point: point[0])
        (a, began), (b, ended) = points[max(0, first - 1)], points[first]
        share = (step - a) / (b - a) if b > a else 1.0
        return min(trained, began + share * (ended - began))


def goodput(lines: Sequence[Mapping[str, Any]], *, now: float | None = None) -> dict[str, float]:
    """Return the seconds of all starts by NAMES, without those of no time; {} for no start.

    `now` is the time, in seconds since 1970, where the run has ended, and None while it goes on:
    then it is told up to the last line. Who was killed may have lived for EVERY_S after its last
    line: as far as there is time, that is unknown. Between a start and one by hand that goes on
    from it there is no time of the run's.
    """
    told = _Told()
    for line in lines:
        told.take(line)
    if now is not None:
        told.killed(now)
    _share_training(told, alive=now is None and told.open)
    total = {name: told.total.get(name, 0.0) for name in NAMES}
    return {name: seconds for name, seconds in total.items() if seconds > 0}


class _Told:
    """What lines have told so far."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.starts: list[_Start] = []
        self.open = False  # whether the last start goes on, for all that is known
        self._at = 0.0  # up to when all is named, in seconds since 1970
        self._job: str | None = None  # that runs
        self._begun = False  # processes were started in it

    def take(self, line: Mapping[str, Any]) -> None:
        """Take the next line; one of a start whose own first line is lost says nothing."""
        match line.get("event"):
            case "job":
                self.killed(line["time"])
                self._at = max(self._at, line.get("queued") or line["time"])
                self._name_until(line["time"], "starting" if line.get("again") else "queued")
                self._job, self._begun = line["name"], False
            case "start":
                self.killed(line["time"])
                if line.get("in_job"):
                    self._name_until(line["time"], "starting")
                self.starts.append(_Start(line["time"]))
                self.open, self._begun, self._at = True, True, line["time"]
            case "job end":
                if line["name"] == self._job:  # another's start was over before it began
                    self._job = None
                    self.killed(line["time"])
                    self._name_until(line["time"], "ending" if self._begun else "starting")
            case event if self.open:
                self.starts[-1].take(line)
                self._at = self.starts[-1].until
                self.open = event != "end"

    def killed(self, next_time: float) -> None:
        """Note that the start that went on was killed, if there is one."""
        if self.open:
            self.open = False
            self._name_until(min(next_time, self._at + EVERY_S), "unknown")

    def _name_until(self, when: float, name: str) -> None:
        self._at = self._at or when  # the line before it was lost: nothing tells since when
        self.total[name] = self.total.get(name, 0.0) + max(0.0, when - self._at)
        self._at = max(self._at, when)


def _share_training(told: _Told, *, alive: bool) -> None:
    """Add up what starts have spent; training is kept or lost by where later ones went on."""
    limit: float | None = None
    for start in reversed(told.starts):
        spent = dict(start.spent)
        if start.gone_on_from is None:
            spent["running"] = spent.get("running", 0.0) + spent.pop("training", 0.0)
        trained = spent.get("training", 0.0)
        own = start.own_limit(alive=alive and start is told.starts[-1])
        kept = start.trained_until(own if limit is None else limit)
        spent |= {"training": min(kept, trained), "lost": trained - min(kept, trained)}
        for name, seconds in spent.items():
            told.total[name] = told.total.get(name, 0.0) + seconds
        if start.gone_on_from is not None:
            limit = start.gone_on_from if limit is None else min(limit, start.gone_on_from)


def words(seconds: Mapping[str, float], starts: int) -> str:
    """Return in a line where time went, the largest first; "" for none."""
    whole = sum(seconds.values())
    if not whole:
        return ""
    parts = [
        f"{_percent(part / whole)} {_WORDS.get(name, name)}"
        for name, part in sorted(seconds.items(), key=lambda row: -row[1])
    ]
    count = "1 start" if starts == 1 else f"{starts} starts"
    return f"time of {count}, {_long(whole)}: {', '.join(parts)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.1f}%"


def _long(seconds: float) -> str:
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
