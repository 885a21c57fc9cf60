"""Build everything a recipe describes, and check that it can be trained by these ranks."""

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import nn

import launcher
from launcher.data.device import set_arithmetic
from launcher.data.loader import Loader
from launcher.data.orders import sampler_for
from launcher.data.sampler import ShardSampler
from launcher.errors import RecipeError, TrainingFailed
from launcher.masks import masked
from launcher.model.averaging import Average
from launcher.model.graphs import Graphs
from launcher.model.initial import start_from
from launcher.model.losses import (
    LossWatch,
    leaves_out,
    refuse_warned_broadcasts,
)
from launcher.model.made import as_made
from launcher.model.optimizers import Optimizers
from launcher.model.optimizers import asked_for as optimizers_of
from launcher.model.peaks import peak_tflops
from launcher.model.schedules import Schedules, Steps
from launcher.model.schedules import asked_for as schedules_of
from launcher.ranks.batch_norm import refuse_lone_samples, refuse_parts
from launcher.ranks.context import Context, unwrapped
from launcher.ranks.drift import Drift
from launcher.ranks.faults import StopRequest, not_finite
from launcher.ranks.gathering import HERE
from launcher.ranks.metrics import Sums
from launcher.ranks.shared_memory import share_gradients
from launcher.ranks.timing import DeviceClock, HostClock, StepTimes, leave_out_buffers
from launcher.recipe.base import Recipe, is_base
from launcher.sharding.buffers import MovingBuffers
from launcher.sharding.building import built, sharded
from launcher.train.parts import Parts, model_of, parts_of
from launcher.train.training import Training, Work

_MOST_UNREPORTED = 1 << 14  # steps between reports that a clock asks for: their losses are kept


def prepare(
    recipe: Recipe,
    context: Context,
    stop: StopRequest,
    *,
    source: str = "",
    most_steps: int | None = None,
    init_from: Path | None = None,
    alone: bool = False,
) -> Training:
    """Build everything a recipe describes and check it; collective. Nothing is reported yet.

    `source` is the text of the recipe's file, which must be the same on all ranks; `init_from` a
    file of weights to start from. `alone`: no data workers but those that are asked for.
    """
    first = context.rank == 0
    say = first and most_steps is None  # nothing in the middle of a debugger's session
    parts = context.local_first(lambda: parts_of(recipe, say=say))
    model = parts.model or built(context, lambda: model_of(recipe, say=say))
    if init_from:
        _start_from(init_from, model, recipe, context)
    set_arithmetic(tf32=recipe.tf32, deterministic=recipe.deterministic)
    refuse_warned_broadcasts()
    samplers = _samplers(recipe, context, parts)
    _refuse_divergence(recipe, context, *samplers, source)
    model = sharded(model, recipe, context) if recipe.shard else context.wrap(model)
    loss_fn = parts.loss_fn.to(context.device)
    on_device = context.device.type == "cuda" and context.world_size > 1
    times = StepTimes(DeviceClock() if on_device else HostClock())
    leave_out_buffers(model, times.own)
    if recipe.shared_gradients:
        share_gradients(model, context, times)
    optimizers = _optimizers(recipe, unwrapped(model), loss_fn)
    refuse_lone_samples(unwrapped(model), *samplers)
    HERE.context, HERE.micro_batch_size = context, recipe.most_at_once
    if recipe.micro_batch_size == "auto":
        HERE.may_be_cut = True
        refuse_parts(unwrapped(model))
    train_loader, test_loader = _loaders(
        recipe, context, parts, samplers, alone or most_steps is not None
    )
    return Training(
        recipe=recipe,
        context=context,
        model=model,
        loss_fn=loss_fn,
        optimizers=optimizers,
        schedules=_schedules(recipe, optimizers, train_loader.sampler.steps),
        train_loader=train_loader,
        test_loader=test_loader,
        stop=stop,
        sums=_sums(recipe, context, optimizers, train_loader.sampler.steps),
        loss_watch=LossWatch(recipe, loss_fn),
        work=_work(recipe, context),
        samples_count=recipe.counts_samples() and not leaves_out(loss_fn),
        drift=Drift(context, model, loss_fn),
        times=times,
        marker=context.marker,
        average=None if recipe.ema_decay is None else Average(unwrapped(model), recipe.ema_decay),
        graphs=_graphs(recipe, context, model, loss_fn),
        most_steps=most_steps,
        moving=MovingBuffers(model, context) if recipe.shard else None,
    )


def _start_from(path: Path, model: nn.Module, recipe: Recipe, context: Context) -> None:
    """Load weights to start from; only rank 0 has those of a model that will be sharded."""
    first = context.rank == 0
    if recipe.shard:
        context.turn(lambda: start_from(model, path, say=True), mine=first)
    else:
        context.local_first(lambda: start_from(model, path, say=first))


def note_how_made(training: Training) -> None:
    """Note what training begins with, before a checkpoint is loaded; collective."""
    training.made = as_made(training.optimizers, training.schedules, training.length)
    odd = not_finite(unwrapped(training.model))
    if training.sharded:  # each rank knows of its pieces
        odd = sorted({name for theirs in training.context.gather(odd) for name in theirs})
    training.odd = odd


def _samplers(
    recipe: Recipe, context: Context, parts: Parts
) -> tuple[ShardSampler, ShardSampler | None]:
    """Return what tells this rank its samples, of training and of tests."""
    of = partial(sampler_for, recipe=recipe, rank=context.rank, world_size=context.world_size)
    train = of(parts.train_data, test=False)
    return train, None if parts.test_data is None else of(parts.test_data, test=True)


def _loaders(
    recipe: Recipe,
    context: Context,
    parts: Parts,
    samplers: tuple[ShardSampler, ShardSampler | None],
    alone: bool,  # in one process, but for data workers that are asked for
) -> tuple[Loader, Loader | None]:
    load = partial(Loader, recipe=recipe, device=context.device, alone=alone)
    train, test = samplers
    tests = None
    if test is not None and parts.test_data is not None:
        tests = load(parts.test_data, test, test=True)
    return load(parts.train_data, train), tests


def _optimizers(recipe: Recipe, model: nn.Module, loss_fn: nn.Module) -> Optimizers:
    """Return the recipe's optimizers; raises RecipeError for what cannot be trained by them."""
    optimizers = optimizers_of(recipe.optimizer, model, loss_fn)
    if recipe.fused_optimizer:
        optimizers.fuse()
    if optimizers.in_turns:
        _refuse_turns(recipe)
    return optimizers


def _sums(recipe: Recipe, context: Context, optimizers: Optimizers, per_epoch: int) -> Sums:
    turns = list(optimizers.named) if optimizers.in_turns else []
    window = _MOST_UNREPORTED if recipe.log_every_s else int(recipe.log_every)
    return Sums(min(window, recipe.steps or per_epoch), context.device, turns)


def _work(recipe: Recipe, context: Context) -> Work:
    """Return what to count of a step: on GPUs, and where somebody knows the device's peak."""
    on_gpu = context.device.type == "cuda"
    known = peak_tflops(torch.cuda.get_device_name(context.device)) if on_gpu else None
    peak = recipe.peak_tflops or known
    return Work(wanted=on_gpu or peak is not None, peak=peak)


def _graphs(
    recipe: Recipe, context: Context, model: nn.Module, loss_fn: nn.Module
) -> Graphs | None:
    """Return what replays steps, None where that is not asked for or cannot be here."""
    if not recipe.cuda_graphs:
        return None
    if (recipe.most_at_once or recipe.batch_size) < recipe.batch_size:
        raise RecipeError(
            "`cuda_graphs` records whole steps, and `micro_batch_size` cuts them up",
            hint="leave out one of them",
        )
    if context.device.type == "cuda" and unwrapped(model) is model:
        return Graphs([*model.parameters(), *loss_fn.parameters()])
    if context.rank == 0:
        print("cuda_graphs: not used, it is for one process on a GPU; the numbers are the same")
    return None


def _refuse_turns(recipe: Recipe) -> None:
    """Raise RecipeError for what does not go with optimizers in turns."""
    if is_base(recipe, "test_step") and not is_base(recipe, "test_data"):
        raise RecipeError(
            "`optimizer` returned a dict, and turns are for training",
            hint="write `test_step(self, model, batch, loss_fn)`, which returns StepSums, or leave "
            "`test_data` out",
        )
    if recipe.shard:
        raise RecipeError(
            "`optimizer` returned a dict, and turns call parts of a model, which `shard` gathers "
            "when the model is called",
            hint="return optimizers that are stepped together in a list, or leave shard out",
        )
    if recipe.cuda_graphs:
        raise RecipeError(
            "`cuda_graphs` records whole steps, and optimizers take turns in them",
            hint="leave cuda_graphs out",
        )


def _schedules(recipe: Recipe, optimizers: Optimizers, per_epoch: int) -> Schedules:
    """Return the recipe's schedules; with an own order and `steps` epochs may be of any length."""
    alike = not recipe.steps or is_base(recipe, "order")
    steps = Steps(recipe.steps or recipe.epochs * per_epoch, per_epoch if alike else None)
    schedules = schedules_of(recipe.scheduler, optimizers.given, steps)
    schedules.refuse_others(optimizers)
    if is_base(recipe, "test_data") and any(s.every == "test" for s in schedules):
        raise RecipeError(
            '`scheduler` returned a Schedule with every="test", and there is no `test_data`',
            hint='write `test_data`, or step it by every="step" or "epoch"',
        )
    return schedules


def _refuse_divergence(
    recipe: Recipe, context: Context, train: ShardSampler, test: ShardSampler | None, source: str
) -> None:
    """Raise TrainingFailed where ranks are about to train different things; collective."""
    mine = {
        "hyperparameters": repr(masked(parameters := recipe.hyperparameters())),
        "secrets (checksums)": hashlib.sha256(repr(parameters).encode()).hexdigest(),
        "recipe file": hashlib.sha256(source.encode()).hexdigest(),
        "dataset sizes": repr((train.size, test and test.size)),
        "the order of samples": repr(train.order(0)),
        "torch version": torch.__version__,
        "launcher version": launcher.__version__,
    }
    everyones = context.gather(mine)
    for what in mine:
        values = [theirs[what] for theirs in everyones]
        usual = Counter(values).most_common(1)[0][0]
        odd = [rank for rank, value in enumerate(values) if value != usual]
        if odd:
            raise TrainingFailed(
                f"ranks differ in {what}: rank {odd[0]} has {values[odd[0]]}, others {usual}",
                hint="start every node with the same files and the same command line",
            )
