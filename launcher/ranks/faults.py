"""What can go wrong between steps: stop requests that all ranks agree on, and broken numbers."""

import math
import os
import signal
import time
from types import FrameType
from typing import Any, Self

from torch import nn

from launcher.errors import NonFiniteLoss
from launcher.processes import PARENT, stop_signals
from launcher.recipe.totals import Totals

_MOST_STEPS = 1 << 20  # between two exchanges


class StopRequest:
    """Whether this process was asked to stop: a flag set by a signal, read between steps.

    A second Ctrl-C raises KeyboardInterrupt at once, but under the launcher, to whom it belongs:
    a scheduler says everything to everybody, and more than once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested and PARENT not in os.environ:
            raise KeyboardInterrupt
        self.requested = True


class Pulse:
    """When ranks talk to each other apart from gradients: at reports, else about once a second.

    A stop request on one rank must stop all at the same step, but an all-reduce a step would cost
    fast models dearly. So the next exchange is a number of steps away that all ranks compute from
    the same reduced step time. Reports of steps that take milliseconds are closer than a second:
    there is then nothing between them.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
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
        self._steps_since = 0
        self._since = time.perf_counter()


def check_finite(totals: Totals, first_step: int, epoch: int, what: str = "the loss at") -> None:
    """Raise NonFiniteLoss that names the first step whose loss is NaN or infinite."""
    for offset, loss in enumerate(totals.losses):
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"{what} step {first_step + offset} (epoch {epoch}) is {loss}",
                step=first_step + offset,
                hint="try a smaller learning_rate; `launcher debug` finds the operation",
            )


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of trained parameters that hold NaN or infinity; waits for the device."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    # One number tells, nearly always, that all is well.
    if not trained or nn.utils.get_total_norm(trained.values(), math.inf).isfinite():
        return []
    return [name for name, parameter in trained.items() if not parameter.isfinite().all()]
