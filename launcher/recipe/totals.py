"""What `StepSums` of all ranks add up to, as `metrics` gets it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.errors import TrainingFailed, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks: since the last report, or over a whole test.

    `totals["name"]` is what the `sums` of that name add up to: float64, on the host, of the shape
    that they have.
    """

    losses: list[float]  # summed loss of each step
    count: float  # what the loss is a mean over
    correct: int | None  # None where the recipe has no accuracy
    samples: int
    left_out: int = 0  # labels that a mean has left out although nobody said so
    sums: "Mapping[str, Tensor]" = field(default_factory=dict)
    turns: Sequence[str] = ()  # names of optimizers, each with a loss of its own
    shares: "Tensor | None" = None  # (ranks, numbers), in checkpoints: count and sums of each rank

    @property
    def loss(self) -> float:
        """Mean loss; in turns the sum of theirs."""
        if self.turns:
            return sum(self._of_turn("loss", name) for name in self.turns)
        return self.summed / (self.count or 1)

    @property
    def summed(self) -> float:
        """The loss, summed over what it is a mean over."""
        return self.loss * self.count if self.turns else sum(self.losses)

    def of_turns(self) -> dict[str, float]:
        """Return `loss_NAME` of each turn, a mean, and `accuracy_NAME` of those that have one."""
        found = {f"loss_{name}": self._of_turn("loss", name) for name in self.turns}
        counted = [name for name in self.turns if f"correct_{name}" in self.sums]
        return found | {f"accuracy_{name}": self._of_turn("correct", name) for name in counted}

    def _of_turn(self, what: str, name: str) -> float:
        return float(self.sums[f"{what}_{name}"]) / (float(self.sums[f"count_{name}"]) or 1)

    @property
    def accuracy(self) -> float | None:
        """Share of what was counted that was right, None where the recipe has no accuracy."""
        return None if self.correct is None else self.correct / (self.count or 1)

    def numbers(self) -> dict[str, float | None]:
        """Return what there is to tell of a test, by name."""
        names = ("loss", "accuracy", "correct", "samples")
        return {name: getattr(self, name) for name in names}

    def __getitem__(self, name: str) -> "Tensor":
        """Return the sum of a name; raises TrainingFailed where a step gives none of that name."""
        if name in self.sums:
            return self.sums[name]
        names = ", ".join(self.sums) or "none"
        raise TrainingFailed(
            f"there is no sum `{name}` among those that `StepSums` were given: {names}",
            hint=f"{did_you_mean(name, self.sums)}what only training or only tests sum up is asked "
            f'for behind `if "{name}" in totals`',
        )

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)
