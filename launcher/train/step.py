"""One optimizer step from one global batch, sharded and exact."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from launcher.data.fetching import Shard
from launcher.errors import RecipeError
from launcher.model.pieces import in_pieces, own
from launcher.model.returned import expect_sums
from launcher.ranks.context import unwrapped
from launcher.ranks.gathering import HERE
from launcher.ranks.gradients import average_gradients
from launcher.recipe.base import StepSums
from launcher.sharding.together import BACKWARD
from launcher.train.training import Measured, Training


def train_step(run: Training, shard: Shard, *, measure: bool = False) -> None:
    """Make one optimizer step from one global batch; collective through DDP, or torch's shards.

    `measure` notes the step's learning rate and gradient norm for a report.

    Both average gradients over ranks whatever the sizes of their shards. So the loss is summed
    over the shard and scaled by world / (samples in the global batch): the average over ranks is
    then the gradient of the global batch's mean loss.
    """
    HERE.shard = shard  # for `launcher.gather`
    count: int | Tensor = 0
    if run.moving:
        run.moving.share()
    batches = run.passes(shard, run.train_loader)
    run.times.own.start()
    for number, (batch, counts) in enumerate(batches, start=1):
        scale, last = run.context.world_size if counts else 0, number == len(batches)
        with run.context.gradients(run.model, synchronise=last):
            passes = partial(_passes, run, scale, shard.size, last)
            replayed = run.graphs and run.graphs.run(passes, batch, scale, shard.size)
            sums = replayed or passes(batch)
        if counts:
            run.sums.add(sums)
            count = count + sums.count
    run.sums.end_step(shard.own, left_out(run, shard))
    run.context.together.leave_unused()
    if run.not_reduced:
        average_gradients(run.not_reduced, run.context)
    if not run.begun:
        _begin(run)
    if not run.samples_count:
        divide_by_count(run, shard.size, count, run.parameters)
    # From here on gradients are those of the global batch, on every rank.
    norm = clipped(run, run.parameters, measure=measure)
    if measure:  # all ranks have it alike, and nothing waits for it
        run.measured = Measured(run.optimizers.rates(), norm)
    run.optimizers.step()
    run.optimizers.zero_grad()
    end_step(run)


def end_step(run: Training) -> None:
    """Do what follows from new weights."""
    if run.average:
        run.average.update()
    run.schedules.step("step")
    run.marker.tick()


def _passes(run: Training, scale: int, size: int, last: bool, batch: Any) -> StepSums:
    """Run a micro-batch, of a global batch of `size` samples, forward and backward."""
    with run.context.together.blaming():
        sums = expect_sums(run.recipe.train_step(run.model, batch, run.loss_fn), "train_step")
    if last:
        run.times.own.stop()
        run.marker.tick()  # from here on this rank waits for the others
    run.context.together(BACKWARD)
    backward(sums.loss, scale * sums.scale / size)
    return sums


def backward(loss: Tensor, weight: float | Tensor) -> None:
    """Do what `(loss * weight).backward()` does; 1 is what torch starts from by itself, faster."""
    if isinstance(weight, Tensor):
        start: Tensor | None = weight.to(loss.dtype).reshape(loss.shape)
    else:
        start = None if weight == 1 else torch.full_like(loss, weight)  # ()
    loss.backward(start)  # type: ignore[no-untyped-call]  # torch's own


def left_out(run: Training, shard: Shard) -> int:
    """Return how many labels the loss has left out of its mean without being told to."""
    return shard.left_out if run.loss_watch.by_default and shard.own else 0


def _begin(run: Training) -> None:
    """Look at what the first step of a session has shown; collective where the model is sharded."""
    run.begun = True
    if run.progress.step == 0:
        _refuse_unused(run)
    if run.moving:
        run.moving.look()


def _refuse_unused(run: Training) -> None:
    """Raise RecipeError where parameters take no part in the loss: DDP would fail a step later."""
    if run.recipe.find_unused_parameters:
        return
    named = [(f"{n} of the loss", p) for n, p in run.loss_fn.named_parameters()]
    named = named if run.loss_parameters else []
    if run.sharded or isinstance(run.model, DistributedDataParallel):
        named += unwrapped(run.model).named_parameters()
    if unused := [name for name, p in named if p.requires_grad and p.grad is None]:
        raise RecipeError(
            f"these parameters take no part in the loss: {', '.join(unused)}",
            hint=("" if run.sharded else "give find_unused_parameters=true, ")
            + "remove them, or set requires_grad to False",
        )


def divide_by_count(
    run: Training, size: int, count: int | Tensor, parameters: Sequence[Tensor]
) -> None:
    """Make gradients that were divided by the samples means over the recipe's own count."""
    device = run.context.device
    if isinstance(count, Tensor):
        local = count.to(device, torch.float64, non_blocking=True).reshape(1)
    else:  # filled there: a copy from the host would wait for the device
        local = torch.full((1,), float(count), dtype=torch.float64, device=device)
    total = run.context.reduce(local)  # (1,)
    factor = torch.where(total > 0, size / total, 0)
    gradients = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            gradients[parameter.grad.dtype].append(own(parameter.grad))
    for dtype, several in gradients.items():
        torch._foreach_mul_(several, factor.to(dtype).squeeze())


def clipped(run: Training, parameters: Sequence[Tensor], *, measure: bool) -> Tensor | None:
    """Shorten gradients as the recipe asks for; returns the norm that they had, where anybody asks.

    It is (), on the device.
    """
    clip_norm = run.recipe.clip_norm
    if clip_norm is None and not measure:
        return None
    norm = gradient_norm(run, parameters)
    if clip_norm is not None:
        _shorten(run, parameters, clip_norm, norm)
    return norm


def _shorten(run: Training, parameters: Sequence[Tensor], most: float, norm: Tensor) -> None:
    if not run.sharded:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return
    factor = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch does it
    for parameter in parameters:
        if parameter.grad is not None:
            own(parameter.grad).mul_(factor)


def gradient_norm(run: Training, parameters: Sequence[Tensor]) -> Tensor:
    """Return the norm of gradients, (), on the device; collective where some are in pieces."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = _norm([g for g in gradients if not in_pieces(g)])
    if not run.sharded:
        return whole
    pieces = _norm([own(g) for g in gradients if in_pieces(g)])
    squared = run.context.reduce(pieces.to(run.context.device).double() ** 2)
    return (whole.to(squared) ** 2 + squared).sqrt()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of gradients, (); torch 2.8 knows none of sparse ones."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return torch.nn.utils.get_total_norm(dense)
