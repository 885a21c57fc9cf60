"""What can go wrong between steps: stop requests that all ranks agree on, and broken numbers."""

import math
import os
import signal
from types import FrameType
from typing import Any, Self

from torch import nn

from launcher.errors import NonFiniteLoss
from launcher.model.pieces import own
from launcher.processes import PARENT, stop_signals
from launcher.recipe.totals import Totals


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


def check_finite(totals: Totals, first_step: int, epoch: int, what: str = "the loss at") -> None:
    """Raise NonFiniteLoss that names the first step whose loss is NaN or infinite."""
    for offset, loss in enumerate(totals.losses):
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"{what} step {first_step + offset} (epoch {epoch}) is {loss}",
                step=first_step + offset,
                hint="try a smaller learning_rate",
            )


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of trained parameters that hold NaN or infinity; waits for the device.

    Of a weight in pieces this rank looks at its own.
    """
    named = {n: own(p).detach() for n, p in model.named_parameters() if p.requires_grad}
    trained = {name: tensor for name, tensor in named.items() if tensor.numel()}
    # One number tells, nearly always, that all is well.
    if not trained or nn.utils.get_total_norm(trained.values(), math.inf).isfinite():
        return []
    return [name for name, parameter in trained.items() if not parameter.isfinite().all()]
