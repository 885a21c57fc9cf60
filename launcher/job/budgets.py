"""How often a job may start again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.run.job import Attempt


@dataclass(frozen=True)
class Budgets:
    """How often a job may start again, by reason, and whether anything starts it again at all."""

    max_requeues: int  # after time limits; and as often after nodes were taken away
    max_failures: int
    restart: bool  # by requeueing, or by the next job of a chain

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "Budgets":
        """Return what was asked for."""
        return cls(asked["max_requeues"], asked["max_failures"], asked["restart"] != "never")

    def used_up(self, attempts: Sequence[Attempt]) -> str | None:
        """Return why the job may not start again after these attempts, None where it may."""
        last = attempts[-1]
        count = sum(one.verdict == last.verdict for one in attempts)
        if last.verdict == "failed" and count > self.max_failures:
            return f"failed {count} times; --max-failures allows {self.max_failures}"
        if last.verdict in ("timeout", "interrupted") and count > self.max_requeues:
            words = {"timeout": "came to its time limit", "interrupted": "was interrupted"}
            what = words[last.verdict]
            return f"{what} {count} times; --max-requeues allows {self.max_requeues}"
        # Where nodes were taken away nobody knows how far it might have come.
        alike = [one.step for one in attempts[:-1] if one.verdict == last.verdict]
        got_on = not alike or last.step > max(alike) or last.bad_nodes
        where = f": step {last.step} is no farther than before"
        if last.got_on is not None:  # a script that does not say which step it is in
            got_on, where = not alike or last.got_on or last.bad_nodes, ""
        if last.verdict in ("timeout", "failed") and not got_on:
            return f"the last start made no progress{where}"
        return None
