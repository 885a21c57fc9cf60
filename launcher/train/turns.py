"""One step of a recipe whose optimizers take turns: a GAN's, say.

A step is one global batch through all turns. Each turn is a whole forward pass, its exact mean over
all ranks, and a step of its own optimizer. DDP is not asked: which parameters a turn is about, and
when, is the recipe's own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from launcher.data.fetching import Shard
from launcher.data.randomness import seed_step
from launcher.errors import RecipeError
from launcher.model.returned import expect_sums
from launcher.ranks.context import unwrapped
from launcher.ranks.gathering import HERE
from launcher.ranks.gradients import average_gradients
from launcher.recipe.base import StepSums
from launcher.train.step import (
    backward,
    clipped,
    divide_by_count,
    end_step,
)
from launcher.train.training import Measured, Training

Turn = tuple[str, StepSums]

_OF_TURNS = ("loss", "count", "correct")  # of which each has a sum of its own


def take_turns(run: Training, shard: Shard, *, measure: bool = False) -> None:
    """Make a step of each optimizer that has a turn, from one global batch; collective.

    `measure` notes the step's learning rates, and the gradient norm over all turns, for a report.
    """
    model, taken = unwrapped(run.model), list[list[Turn]]()
    HERE.shard = shard  # for `launcher.gather`
    run.context.share_buffers(model)  # as DDP does
    started = [_started(run, model, batch) for batch in shard.micro_batches]
    norms: list[Tensor] = []
    rates = run.optimizers.rates() if measure else {}
    while turns := _passes(run, shard, started, len(taken)):
        taken.append(turns)
        norm = _step(run, shard, turns, measure=measure)
        norms += [] if norm is None else [norm]
    if run.progress.step == 0:
        _refuse_idle(run, {turns[0][0] for turns in taken})
    for micro_batch in zip(*taken, strict=True) if shard.own else ():
        run.sums.add(_together(micro_batch, run.context.device))
    run.sums.end_step(shard.own)
    if measure:
        run.measured = Measured(rates, torch.nn.utils.get_total_norm(norms))
    end_step(run)


def _started(run: Training, model: nn.Module, batch: Any) -> Iterator[Turn]:
    made = run.recipe.train_step(model, batch, run.loss_fn)
    if not isinstance(made, Iterator):
        raise RecipeError(
            f"`optimizer` returned a dict, and `train_step` {type(made).__name__}: no turns",
            hint="`yield name, StepSums(…)` for each turn of an optimizer; or return optimizers "
            "that are stepped together in a list",
        )
    return made


def _passes(run: Training, shard: Shard, started: list[Iterator[Turn]], number: int) -> list[Turn]:
    """Run the next turn of each micro-batch forward and backward; none where all turns are over."""
    seed_step(run.recipe.seed, run.progress.step, run.context.rank, number)
    scale = run.context.world_size if shard.own else 0
    turns: list[Turn] = []
    run.times.own.start()
    for passes in started:
        with run.context.accelerator.autocast():
            made = next(passes, None)
        if made is not None:
            name, sums = _checked(run, made)
            backward(sums.loss, scale * sums.scale / shard.size)
            turns.append((name, dataclasses.replace(sums, loss=sums.loss.detach())))
    if len(turns) not in (0, len(started)) or len({name for name, _ in turns}) > 1:
        raise RecipeError("`train_step` takes other turns for other micro-batches")
    run.times.own.stop()
    run.marker.tick()  # from here on this rank waits for the others
    return turns


def _checked(run: Training, made: Any) -> Turn:
    if not isinstance(made, tuple) or len(made) != 2 or made[0] not in run.optimizers.named:
        names = ", ".join(run.optimizers.named)
        raise RecipeError(
            f"`train_step` yielded {made!r:.60}, not the name of an optimizer and StepSums",
            hint=f"`yield name, StepSums(…)`; there are the optimizers {names}",
        )
    name, sums = str(made[0]), expect_sums(made[1], "train_step")
    own = {f"{of}_{each}" for of in _OF_TURNS for each in run.optimizers.named}
    if taken := own.intersection(sums.sums):
        raise RecipeError(
            f"the turn `{name}` gives a sum called `{min(taken)}`, and turns have one of their own",
            hint="give it another name",
        )
    return name, sums


def _step(run: Training, shard: Shard, turns: list[Turn], *, measure: bool) -> Tensor | None:
    """Step the optimizer whose turn it is; collective. Returns what `clipped` does."""
    name = turns[0][0]
    named = run.optimizers.parameters_of(name, run.parameters)
    average_gradients(named, run.context)
    if run.progress.step == 0 and not run.recipe.find_unused_parameters:
        names = {id(p): n for n, p in unwrapped(run.model).named_parameters()}
        unused = [names.get(id(p), "one of the loss") for p in named if p.grad is None]
        if unused:
            raise RecipeError(
                f"these parameters take no part in the turn `{name}`: {', '.join(unused)}",
                hint="give find_unused_parameters=true, or another optimizer these parameters",
            )
    count = sum((sums.count for _, sums in turns if shard.own), 0)
    divide_by_count(run, shard.size, count, named)
    norm = clipped(run, named, measure=measure)
    run.optimizers.named[name].step()
    run.optimizers.zero_grad()  # what other parts of the model got as gradient is not kept
    return norm


def _refuse_idle(run: Training, names: set[str]) -> None:
    """Raise RecipeError where an optimizer has had no turn in the first step."""
    if idle := [name for name in run.optimizers.named if name not in names]:
        raise RecipeError(
            f"`train_step` has no turn for {', '.join(idle)}",
            hint="each of the optimizers that `optimizer` returns has a turn in each step",
        )


def _together(turns: tuple[Turn, ...], device: torch.device) -> StepSums:
    """Return what the turns of a micro-batch add up to, each with its own loss and count."""
    named: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        named[name] = named[name] + value if name in named else value

    loss = torch.zeros((), dtype=torch.float64, device=device)
    for name, sums in turns:
        own = sums.loss.double() * sums.scale
        loss = loss + own
        add(f"loss_{name}", own)
        count = sums.count
        if not isinstance(count, Tensor):  # filled there: a copy would wait for the device
            count = torch.full((), float(count), dtype=torch.float64, device=device)
        add(f"count_{name}", count.double())
        if sums.correct is not None:
            add(f"correct_{name}", sums.correct.detach().double())
        for other, value in sums.sums.items():
            add(other, value.detach())
    return StepSums(loss, turns[0][1].count, sums=named)
