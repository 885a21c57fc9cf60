"""What optimizer and schedule were made with: a checkpoint keeps it, to see what has changed.

`load_state_dict` gives an optimizer its old options back and a schedule its old constants, so a
hyperparameter changed for a resume would have no effect, without a word. And a state that has
moved does not tell the constants it began with.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from launcher.errors import RecipeError
from launcher.model.schedules import Schedule, state_of

Made = dict[str, Any]

_POINTS = 10  # of a run, at which schedules that are functions are compared
_HOW = ("fused", "foreach", "capturable", "differentiable")  # an optimizer computes
# What a schedule reads from the optimizer or moves there.
_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
_REMEMBERS_NOTHING = ("lr", "weight_decay")  # no optimizer keeps a state because of these


def as_made(optimizers: Iterable[Optimizer], schedules: Iterable[Schedule], steps: int) -> Made:
    """Describe optimizers and their schedules before the first of a run's `steps` steps."""
    spread = {steps * point // (_POINTS - 1) for point in range(_POINTS)}
    warm_up = {1 << power for power in range(steps.bit_length())}
    points = sorted(spread | warm_up)
    several = list(optimizers)
    groups = [
        {k: _copied(v) for k, v in group.items() if k != "params"}
        for optimizer in several
        for group in optimizer.param_groups
    ]
    return {
        "optimizer": " and ".join(type(optimizer).__qualname__ for optimizer in several),
        "groups": groups,
        "points": points,
        "schedule": _schedule(schedules, groups, points),
    }


def with_changes(groups: list[dict[str, Any]], made: Made, now: Made) -> list[dict[str, Any]]:
    """Return the groups of saved optimizers, with those options that are made otherwise now.

    What schedule and recipe have moved since it was made stays where it is. Raises RecipeError
    where it cannot be changed: it is of another kind, or would remember something else.
    """
    if made["optimizer"] != now["optimizer"]:
        _refuse("optimizer", [f"it was {made['optimizer']} and is {now['optimizer']}"])
    triples = zip(groups, made["groups"], now["groups"], strict=True)
    return [
        {name: _option(name, value, before, after) for name, value in group.items()}
        for group, before, after in triples
    ]


def refuse_other_schedule(made: Made, now: Made, schedules: Iterable[Schedule]) -> None:
    """Raise RecipeError, with the differences, where a schedule is not the one that was saved."""
    before = made["schedule"]
    after = _schedule(schedules, now["groups"], made["points"])
    # A name that only one of them has came with another version of torch.
    names = [name for name in before if name in after and not _same(before[name], after[name])]
    _refuse("schedule", [f"{name} was {before[name]} and is {after[name]}" for name in names])


def _refuse(what: str, differences: list[str]) -> None:
    if differences:
        raise RecipeError(
            f"the {what} of a run cannot be changed: {'; '.join(differences[:3])}",
            hint="leave the hyperparameters it is made from as they were (`epochs` or `steps` may "
            "be one), or start a new run",
        )


def _option(name: str, value: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
    if name in _HOW and name in after:
        return after[name]
    if name not in before or name not in after or _same(before[name], after[name]):
        return value
    number = isinstance(after[name], float | int | None)
    if number and bool(before[name]) != bool(after[name]) and name not in _REMEMBERS_NOTHING:
        _refuse("optimizer", [f"{name} was {before[name]} and is {after[name]}"])
    return _moved(value, before[name], after[name])


def _moved(value: Any, before: Any, after: Any) -> Any:
    """Return what was changed as it is now, and the rest (of betas) as it was saved."""
    if isinstance(after, tuple | list) and len(value) == len(before) == len(after):
        return type(after)(map(_moved, value, before, after))
    return value if _same(before, after) else after


def _schedule(
    schedules: Iterable[Schedule], groups: list[dict[str, Any]], points: list[int]
) -> dict[str, Any]:
    """Name every constant of schedules, of those nested in them, and values of their functions."""
    parts: list[LRScheduler] = []
    counted: dict[str, Any] = {}
    for schedule in schedules:
        counted[f"every of schedule {len(counted)}"] = schedule.every
        parts += _parts(schedule.scheduler)
    described: dict[str, Any] = {"it": " and ".join(type(p).__qualname__ for p in parts) or "none"}
    for number, part in enumerate(parts):
        prefix = f"{type(part).__qualname__}{f' {number}' if number else ''}"
        state = {k: v for k, v in state_of(part).items() if k != "_schedulers"}
        described |= {f"{prefix}.{name}": _copied(value) for name, value in state.items()}
        for name, functions in _functions(part):
            for point in points:
                described[f"{prefix}.{name} at step {point}"] = [
                    _value(f, point) for f in functions
                ]
    if parts:
        described |= counted | {
            f"{name} of group {number}": group[name]
            for number, group in enumerate(groups)
            for name in _SCHEDULED
            if name in group
        }
    return described


def _parts(scheduler: Any) -> Iterator[LRScheduler]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", []):
        yield from _parts(part)


def _functions(scheduler: Any) -> Iterator[tuple[str, list[Any]]]:
    """Give the functions that a schedule is made from, which its state leaves out."""
    if functions := getattr(scheduler, "lr_lambdas", None):
        yield "lr_lambda", functions
    if function := getattr(scheduler, "_scale_fn_custom", None):
        yield "scale_fn", [function]


def _value(function: Any, point: int) -> float | str:
    try:
        return float(function(point))
    except Exception as error:  # noqa: BLE001  # nested, it may never be asked for this step
        return type(error).__name__


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, tuple | list) and isinstance(after, tuple | list):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return torch.equal(torch.as_tensor(before).cpu(), torch.as_tensor(after).cpu())
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-12)  # another libm may round otherwise
    return bool(before == after)


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
