"""Loss and accuracy as sums and counts on the device, reduced over all ranks once a report."""

from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.data.device import moved
from launcher.recipe.base import StepSums

_MOST_ASIDE = 1000


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks since the last report."""

    losses: list[float]  # summed loss of each step
    count: float  # what the loss is a mean over
    correct: int | None  # None where the recipe has no accuracy
    samples: int
    left_out: int = 0  # labels that a mean has left out although nobody said so

    @property
    def loss(self) -> float:
        """Mean loss."""
        return sum(self.losses) / (self.count or 1)

    @property
    def accuracy(self) -> float | None:
        """Share of what was counted that was right, None where the recipe has no accuracy."""
        return None if self.correct is None else self.correct / (self.count or 1)


class Sums:
    """What one rank has summed since the last report, for up to `capacity` steps.

    Losses are kept step by step (float64), so that one all-reduce also tells in which step a
    loss became NaN. A step costs no operation: its numbers are put aside, where they are, and added
    up together. Nothing is copied to the host before `vector` is reduced and read.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._losses = torch.zeros(capacity, dtype=torch.float64, device=device)  # of each step
        self._correct = self._losses.new_zeros(())  # (); whole numbers, exact up to 2**53
        self.reset()

    def reset(self) -> None:
        """Forget everything; done after a report."""
        self._aside: list[tuple[int, Tensor, float]] = []  # step, loss (), its scale
        self._right: list[Tensor] = []  # () each
        self._losses.zero_()
        self._correct.zero_()
        self._step = 0
        self._count: float | Tensor = 0
        self._samples = self._left_out = 0
        self._has_accuracy = True

    def restore(self, totals: Totals, *, mine: bool) -> None:
        """Go on from sums over all ranks; one rank takes them as its own, the others none."""
        self.reset()
        self._step = len(totals.losses)
        # Room for a window that was longer: `log_every` may have been changed.
        self._losses = self._losses.new_zeros(len(self._losses) + self._step)
        self._has_accuracy = totals.correct is not None
        if mine:
            self._losses[: self._step] = torch.tensor(totals.losses, dtype=torch.float64)
            self._count, self._samples = totals.count, totals.samples
            self._correct.fill_(totals.correct or 0)

    def add(self, sums: StepSums) -> None:
        """Add a micro-batch of the current step."""
        loss, scale = sums.loss.detach(), sums.scale
        if isinstance(scale, Tensor):
            loss, scale = loss.double() * scale, 1.0
        self._aside.append((self._step, loss, scale))
        self._count = self._count + sums.count
        if sums.correct is None:
            self._has_accuracy = False
        else:
            self._right.append(sums.correct.detach())
        if len(self._aside) >= _MOST_ASIDE:
            self._add_up()

    def _add_up(self) -> None:
        """Add what was put aside: a few operations for many steps."""
        if self._aside:
            steps, losses, scales = zip(*self._aside, strict=True)
            places = moved(torch.tensor(steps), self._losses.device)
            factors = moved(torch.tensor(scales, dtype=torch.float64), self._losses.device)
            values = torch.stack(losses).reshape(-1).double() * factors
            self._losses.index_add_(0, places, values)
            self._aside.clear()
        if self._right:
            self._correct.add_(torch.stack(self._right).double().sum())
            self._right.clear()

    def end_batch(self, samples: int, left_out: int = 0) -> None:
        """Count the samples of this rank's shard, once all its micro-batches were added."""
        self._samples += samples
        self._left_out += left_out

    def end_step(self, samples: int, left_out: int = 0) -> None:
        """End a batch and go on to the next step."""
        self.end_batch(samples, left_out)
        self._step += 1

    def vector(self) -> Tensor:
        """Return everything as one float64 tensor to be summed over ranks, (capacity + 4,)."""
        self._add_up()
        tail = [self._count, self._correct, self._samples, self._left_out]
        values = [torch.as_tensor(v, dtype=torch.float64).to(self._losses.device) for v in tail]
        return torch.cat([self._losses, *(value.reshape(1) for value in values)])

    def totals(self, reduced: list[float]) -> Totals:
        """Read a reduced vector back."""
        *losses, count, correct, samples, left_out = reduced
        right = round(correct) if self._has_accuracy else None
        return Totals(losses[: self._step], count, right, round(samples), round(left_out))
