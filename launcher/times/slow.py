"""Ranks that are slower than the others: judged at each report, noted in the run directory.

All wait for the slowest in every step. `launcher status` and `watch` tell of it, and a job with
`--exclude-slow` leaves its node out of the next start.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median_low

from launcher.files import read_json, write_json
from launcher.run.directory import RunDir
from launcher.run.record import Record

# Machines of one kind are within some percent of each other; one that is throttled, or shared with
# somebody, is far beyond. A single report may have met anything, a few in a row have not.
_TIMES, _IN_A_ROW = 1.4, 3
_LEAST_SHARE = 0.05  # of a step that all could be faster: else nobody would notice
_LEAST_S = 1.0  # that these reports could have been faster: less is a machine's noise


@dataclass(frozen=True)
class Slow:
    """A rank that was too slow in a row of reports."""

    rank: int
    node: str  # "" where its record cannot be seen
    words: str  # for people


@dataclass
class RankTimes:
    """Seconds of a step that each rank has for itself, mean since the last report.

    With `data_alone` they are those of waiting for data: in forward passes ranks wait for each
    other, and nobody can tell who for whom.
    """

    each: Sequence[float]  # by rank, of two and more
    data_alone: bool

    @property
    def median(self) -> float:
        """The rank in the middle; of an even number the faster one of two: of two the faster."""
        return median_low(self.each)

    @property
    def slowest(self) -> int:
        """The rank that the others wait for."""
        return max(range(len(self.each)), key=lambda rank: self.each[rank])

    @property
    def of(self) -> str:
        """What is counted."""
        return "data" if self.data_alone else "data, compute"


class SlowRanks:
    """Judges each rank by the last reports in a row; for rank 0."""

    def __init__(self) -> None:
        self._in_a_row: dict[int, tuple[int, float]] = {}  # reports, and seconds lost in them
        self._noted: list[int] | None = None  # None: what an earlier start has noted may be there
        self._warned: set[int] = set()

    def judge(
        self, run: RunDir, times: RankTimes, *, steps: int, step_s: float, uneven: float
    ) -> None:
        """Judge by a report over so many steps, of so many seconds each; warn, once a rank.

        `uneven` is how many times the samples of another rank one may have.
        """
        found = self._found(times, steps, step_s, uneven)
        ranks = [one.rank for one in found]
        if ranks != self._noted:
            self._noted = ranks
            found = [_placed(run, one) for one in found]
            with suppress(OSError):  # a full or lost disk is found by others
                if found:
                    write_json(run.slow, {"slow": [asdict(one) for one in found]})
                else:
                    run.slow.unlink(missing_ok=True)
        for one in found:
            if one.rank not in self._warned:
                self._warned.add(one.rank)
                print(f"WARNING: {one.words}", flush=True)

    def _found(self, times: RankTimes, steps: int, step_s: float, uneven: float) -> list[Slow]:
        median, found = times.median, []
        for rank, own_s in enumerate(times.each):
            lost_s, ratio = own_s - median, own_s / max(median, 1e-9)
            if ratio < _TIMES * uneven or lost_s < _LEAST_SHARE * step_s:
                self._in_a_row.pop(rank, None)
                continue
            reports, lost_before_s = self._in_a_row.get(rank, (0, 0.0))
            row = self._in_a_row[rank] = reports + 1, lost_before_s + lost_s * steps
            if row[0] >= _IN_A_ROW and row[1] >= _LEAST_S:
                how = "waited for data" if times.data_alone else "was"
                length = f"{row[0]} reports in a row"
                found.append(Slow(rank, "", f"{how} {ratio:.1f} times the median, {length}"))
        return found


def _placed(run: RunDir, slow: Slow) -> Slow:
    """Return the same with the name of its node."""
    node = next((one.host for one in Record.read_all(run, [slow.rank])), "")
    where = f" on {node}" if node else ""
    return Slow(slow.rank, node, f"rank {slow.rank}{where} {slow.words}")


def read(run: RunDir) -> list[Slow]:
    """Return the ranks that were too slow at the last report, as far as it is noted."""
    told = (read_json(run.slow) or {}).get("slow")
    try:
        return [Slow(**one) for one in told] if isinstance(told, list) else []
    except TypeError:  # not ours
        return []
