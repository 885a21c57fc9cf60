"""When ranks talk to each other between steps. Never imports torch."""

import time

_MOST_STEPS = 1 << 20  # between two exchanges


class Pulse:
    """When ranks talk to each other apart from gradients: at reports, else about once a second.

    A stop request on one rank must stop all at the same step, but an all-reduce a step would cost
    fast models dearly. So the next exchange is a number of steps away that all ranks compute from
    the same reduced step time. Reports of steps that take milliseconds are closer than a second:
    there is then nothing between them.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self._unreported_s = self._ahead_s = 0.0
        self.start()

    def start(self) -> None:
        """Start anew: what follows may take another time than what was before."""
        self._steps_left = 1
        self._steps_since = 0
        self._reach = 1
        self._since = time.perf_counter()

    def due(self) -> bool:
        """Count a step; return whether ranks talk after it."""
        self._steps_left -= 1
        self._steps_since += 1
        return self._steps_left <= 0

    def reaches(self, seconds: float) -> bool:
        """Whether ranks talk after the next step, and so long after the last report, by then."""
        return self._steps_left <= 1 and self._unreported_s + self._ahead_s >= seconds

    def reported(self) -> None:
        """Note that there was a report."""
        self._unreported_s = 0.0

    def elapsed_s(self) -> float:
        """Seconds on this rank since the last exchange."""
        return time.perf_counter() - self._since

    def beat(self, mean_elapsed_s: float) -> None:
        """Plan the next exchange; `mean_elapsed_s` must be the same on all ranks."""
        step_s = max(mean_elapsed_s / max(self._steps_since, 1), 1e-6)
        self._reach = min(
            2 * self._reach, _MOST_STEPS
        )  # the first steps say little: grow step by step
        self._steps_left = max(1, min(int(self.interval_s / step_s), self._reach))
        self._unreported_s += mean_elapsed_s
        self._ahead_s = self._steps_left * step_s
        self._steps_since = 0
        self._since = time.perf_counter()
