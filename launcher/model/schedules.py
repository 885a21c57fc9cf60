"""When learning rates move: each step, each epoch or after each test, as the recipe says.

PyTorch's schedulers do not say what they count. Stepped each step, one that was written for epochs
silently trains at next to no rate at all; so it is asked for.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils import _pytree as pytree

from launcher.errors import RecipeError

Every = Literal["step", "epoch", "test"]


class Steps(int):
    """How many optimizer steps a run has in all; a number like any other."""

    per_epoch: int | None  # how many an epoch has, None where epochs differ

    def __new__(cls, steps: int, per_epoch: int | None) -> Self:
        """Make the number."""
        made = super().__new__(cls, steps)
        made.per_epoch = per_epoch
        return made


@dataclass(frozen=True)
class Schedule:
    """A scheduler of torch's, and when it is stepped: after each step, epoch or test."""

    scheduler: LRScheduler
    every: Every


def warmup_cosine(optimizer: Optimizer, steps: int, *, warmup: float = 0.05) -> Schedule:
    """Return a rate that grows for a share of the steps, then falls to 0 like half a cosine wave.

    The n-th of w steps of the warm-up has n / w of the optimizer's rate. Raises RecipeError for a
    `warmup` that is no share.
    """
    if not 0 <= warmup <= 1:
        raise RecipeError(f"`warmup` is a share of the steps, 0 to 1, not {warmup}")
    total, grows = int(steps), round(warmup * steps)

    def factor(step: int) -> float:
        if step < grows:
            return (step + 1) / grows
        return (1 + math.cos(math.pi * min(1.0, (step - grows) / max(1, total - grows)))) / 2

    return Schedule(LambdaLR(optimizer, factor), every="step")


class Schedules:
    """The schedules of a run, in the order in which the recipe gives them."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self._schedules = schedules

    def __iter__(self) -> Iterator[Schedule]:
        return iter(self._schedules)

    def step(self, every: Every, metric: float | None = None) -> None:
        """Step those that count this; ReduceLROnPlateau looks at the metric of a test."""
        for schedule in self._schedules:
            if schedule.every == every:
                if isinstance(schedule.scheduler, ReduceLROnPlateau):
                    assert metric is not None
                    schedule.scheduler.step(metric)
                else:
                    schedule.scheduler.step()

    def refuse_other_mode(self, name: str, *, larger_is_better: bool) -> None:
        """Raise RecipeError for a ReduceLROnPlateau that takes better tests for worse ones."""
        mode = "max" if larger_is_better else "min"
        for schedule in self._schedules:
            theirs = getattr(schedule.scheduler, "mode", mode)
            if isinstance(schedule.scheduler, ReduceLROnPlateau) and theirs != mode:
                raise RecipeError(
                    f'ReduceLROnPlateau has mode="{theirs}" and gets the {name} of each test, of '
                    f"which {'more' if larger_is_better else 'less'} is better",
                    hint=f'give it mode="{mode}", or choose another metric with `best_by`',
                )

    def refuse_others(self, optimizers: Iterable[Optimizer]) -> None:
        """Raise RecipeError for one of an optimizer that the run does not step."""
        known = set(optimizers)
        for schedule in self._schedules:
            if schedule.scheduler.optimizer not in known:
                raise RecipeError(
                    f"{type(schedule.scheduler).__name__} is a schedule of an optimizer that "
                    "`optimizer` has not returned"
                )

    def refuse_too_short(self, steps: int, per_epoch: int) -> None:
        """Raise RecipeError for a schedule that ends before so many steps are made."""
        counts = {"step": steps, "epoch": steps // per_epoch, "test": 0}
        for schedule in self._schedules:
            length, count = getattr(schedule.scheduler, "total_steps", None), counts[schedule.every]
            if length and length < count:
                raise RecipeError(
                    f"the {type(schedule.scheduler).__name__} of this run ends after {length} "
                    f"{schedule.every}s, and the run has {count}: it cannot be extended",
                    hint="make it from the `steps` that `scheduler` is told; a run that has begun "
                    "with it keeps its length",
                )

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint keeps."""
        return [state_of(schedule.scheduler) for schedule in self._schedules]

    def load(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Go on from where a checkpoint was."""
        for schedule, state in zip(self._schedules, saved, strict=True):
            schedule.scheduler.load_state_dict(dict(state))


def state_of(scheduler: LRScheduler) -> dict[str, Any]:
    """Return the state of a scheduler, of plain numbers."""
    plain: dict[str, Any] = pytree.tree_map_only(Steps, int, scheduler.state_dict())
    return plain


def asked_for(method: Callable[..., Any], optimizer: Any, steps: Steps) -> Schedules:
    """Return what a recipe's `scheduler` returns, one or several.

    Raises RecipeError for anything else, a bare scheduler among it.
    """
    try:
        given = inspect.signature(method).bind(optimizer, steps)
    except TypeError:  # of old, not told how many steps there are
        given = inspect.signature(method).bind(optimizer)
    made = method(*given.args)
    several = made.values() if isinstance(made, Mapping) else made
    several = [several] if not isinstance(made, Mapping | Sequence) else list(several)
    return Schedules([_checked(one) for one in several if one is not None])


def _checked(made: Any) -> Schedule:
    if isinstance(made, LRScheduler):
        _refuse_bare(made)
    if not isinstance(made, Schedule):
        raise RecipeError(
            f"`scheduler` returned {type(made).__name__}, not a launcher.Schedule",
            hint='return Schedule(StepLR(optimizer, 1), every="epoch"), or several in a list',
        )
    if not isinstance(made.scheduler, LRScheduler):
        kind = type(made.scheduler).__name__
        raise RecipeError(f"`scheduler` returned a Schedule of {kind}, not of an LRScheduler")
    if made.every not in get_args(Every):
        raise RecipeError(
            f"`every` of a Schedule is {made.every!r}", hint='it is "step", "epoch" or "test"'
        )
    if isinstance(made.scheduler, ReduceLROnPlateau) and made.every != "test":
        raise RecipeError(
            f'ReduceLROnPlateau looks at tests, and `every` is "{made.every}"',
            hint='write Schedule(ReduceLROnPlateau(…), every="test")',
        )
    return made


def _refuse_bare(scheduler: LRScheduler) -> None:
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        hint = f'return Schedule({kind}(…), every="test")'
    else:
        hint = (
            f'return Schedule({kind}(…), every="step") to step it after each optimizer step, or '
            f'every="epoch" after each epoch'
        )
    raise RecipeError(
        f"`scheduler` returned a bare {kind}, which does not say what it counts", hint=hint
    )
