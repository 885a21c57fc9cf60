"""Loss and accuracy as sums and counts on the device, reduced over all ranks once a report."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from launcher.data.device import moved
from launcher.ranks.context import Context
from launcher.ranks.named_sums import NamedSums
from launcher.recipe.base import StepSums
from launcher.recipe.totals import Totals

_MOST_ASIDE = 1000
_MOST_IN_SHARES = 1 << 20  # numbers, of all ranks


class Sums:
    """What one rank has summed since the last report, for up to `capacity` steps.

    Losses are kept step by step (float64), so that one all-reduce also tells in which step a
    loss became NaN. A step costs no operation: its numbers are put aside, where they are, and added
    up together. Nothing is copied to the host before `vector` is reduced and read.
    """

    def __init__(self, capacity: int, device: torch.device, turns: Sequence[str] = ()) -> None:
        """`turns` are names of optimizers; each has a named sum of its loss and of its count."""
        self.turns = turns
        self.named = NamedSums(device)  # what the recipe sums up besides
        self._losses = torch.zeros(capacity, dtype=torch.float64, device=device)  # of each step
        self._correct = self._losses.new_zeros(())  # (); whole numbers, exact up to 2**53
        self.reset()

    def reset(self) -> None:
        """Forget everything; done after a report."""
        self._aside: list[tuple[int, Tensor, float]] = []  # step, loss (), its scale
        self._right: list[Tensor] = []  # () each
        self._losses.zero_()
        self._correct.zero_()
        self.named.reset()
        self._step = 0
        self._count: float | Tensor = 0
        self._samples = self._left_out = 0
        self._has_accuracy = True

    def shares(self, context: Context) -> Tensor | None:
        """Return what each rank has of count and named sums, None where that is much; collective.

        (ranks, numbers), on the host. Numbers that are not whole add up to others, by their last
        bits, in another order: so ranks go on from their own.
        """
        count = torch.as_tensor(self._count, dtype=torch.float64, device=self._losses.device)
        own = torch.cat([count.reshape(1), self.named.flat()])
        if len(own) * context.world_size > _MOST_IN_SHARES:
            return None
        table = own.new_zeros(context.world_size, len(own))
        table[context.rank] = own
        return context.reduce(table).cpu()

    def restore(self, totals: Totals, *, rank: int, world_size: int) -> None:
        """Go on from sums over all ranks: each from its share; of other ranks rank 0 has all."""
        mine = rank == 0
        self.reset()
        self._step = len(totals.losses)
        # Room for a window that was longer: `log_every` may have been changed.
        self._losses = self._losses.new_zeros(len(self._losses) + self._step)
        self._has_accuracy = totals.correct is not None
        if mine:
            self._losses[: self._step] = torch.tensor(totals.losses, dtype=torch.float64)
            self._count, self._samples = totals.count, totals.samples
            self._correct.fill_(totals.correct or 0)
        self.named.restore(totals.sums, mine=mine)
        if totals.shares is not None and len(totals.shares) == world_size:
            share = totals.shares[rank]
            self._count = float(share[0])
            self.named.fill(share[1:])

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
        self.named.add(sums.sums)
        if len(self._aside) >= _MOST_ASIDE:
            self._add_up()

    @property
    def ends_next(self) -> bool:
        """Whether there is room for the next step, and for none after it."""
        return self._step + 1 >= len(self._losses)

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
        """Return all but the named sums as a float64 tensor to sum over ranks, (capacity + 5,)."""
        self._add_up()
        tail = [self._count, self._correct, self._samples, self._left_out, self.named.there]
        values = [torch.as_tensor(v, dtype=torch.float64).to(self._losses.device) for v in tail]
        return torch.cat([self._losses, *(value.reshape(1) for value in values)])

    def totals(self, reduced: list[float]) -> Totals:
        """Read a reduced vector back."""
        *losses, count, correct, samples, left_out, _ = reduced
        right = round(correct) if self._has_accuracy else None
        return Totals(losses[: self._step], count, right, round(samples), round(left_out))

    def whole(self, reduced: list[float], context: Context) -> Totals:
        """Read a reduced vector back, with the named sums; collective where any rank has some."""
        named = self.named.reduced(context) if reduced[-1] else {}
        return replace(self.totals(reduced), sums=named, turns=self.turns if named else ())
