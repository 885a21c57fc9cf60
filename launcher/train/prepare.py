"""Build everything a recipe describes, and check that it can be trained by these ranks."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import torch

import launcher
from launcher.data.device import set_arithmetic
from launcher.data.fetching import SizedData
from launcher.data.loader import Loader, sized
from launcher.data.orders import sampler_for
from launcher.data.randomness import seed_init
from launcher.data.sampler import ShardSampler
from launcher.data.streams import Stream
from launcher.errors import RecipeError, TrainingFailed
from launcher.masks import masked
from launcher.model.averaging import Average
from launcher.model.graphs import Graphs
from launcher.model.initial import start_from
from launcher.model.losses import (
    LossWatch,
    NoLoss,
    leaves_out,
    refuse_other_means,
    refuse_warned_broadcasts,
)
from launcher.model.optimizers import Optimizers
from launcher.model.optimizers import asked_for as optimizers_of
from launcher.model.schedules import Schedules, Steps
from launcher.model.schedules import asked_for as schedules_of
from launcher.ranks.batch_norm import refuse_lone_samples
from launcher.ranks.context import Context, unwrapped
from launcher.ranks.drift import Drift
from launcher.ranks.faults import StopRequest
from launcher.ranks.gathering import HERE
from launcher.ranks.metrics import Sums
from launcher.ranks.shared_memory import share_gradients
from launcher.ranks.timing import StepTimes
from launcher.recipe.base import Recipe
from launcher.train.training import Training

_SAY_AFTER_S = 5.0


def prepare(
    recipe: Recipe,
    context: Context,
    stop: StopRequest,
    *,
    source: str = "",
    most_steps: int | None = None,
    init_from: Path | None = None,
) -> Training:
    """Build everything a recipe describes and check it; collective. Nothing is reported yet.

    `source` is the text of the recipe's file, which must be the same on all ranks; `init_from` a
    file of weights to start from.
    """
    say = context.rank == 0 and most_steps is None  # nothing in the middle of a debugger's session
    train_data, test_data, model, loss_fn = context.local_first(lambda: _parts(recipe, say=say))
    if init_from:
        first = context.rank == 0
        context.local_first(lambda: start_from(model, init_from, say=first))
    set_arithmetic(tf32=recipe.tf32, deterministic=recipe.deterministic)
    loss_fn = loss_fn.to(context.device)
    refuse_warned_broadcasts()
    ranks = context.rank, context.world_size
    train_sampler = sampler_for(train_data, recipe, *ranks, test=False)
    test_sampler = None
    if test_data is not None:
        test_sampler = sampler_for(test_data, recipe, *ranks, test=True)
    _refuse_divergence(recipe, context, train_sampler, test_sampler, source)
    model = context.wrap(model)
    times = StepTimes()
    if recipe.shared_gradients:
        share_gradients(model, context, times)
    optimizers = optimizers_of(recipe.optimizer, unwrapped(model), loss_fn)
    if recipe.fused_optimizer:
        optimizers.fuse()
    turns = list(optimizers.named) if optimizers.in_turns else []
    if turns:
        _refuse_turns(recipe)
    debugged = most_steps is not None  # in one process, but for data workers that are asked for
    load = partial(Loader, recipe=recipe, device=context.device, alone=debugged)
    train_loader = load(train_data, train_sampler)
    test_loader = None
    if test_data is not None and test_sampler is not None:
        test_loader = load(test_data, test_sampler, test=True)
    refuse_lone_samples(unwrapped(model), train_sampler, test_sampler)
    HERE.context, HERE.micro_batch_size = context, recipe.micro_batch_size
    return Training(
        recipe=recipe,
        context=context,
        model=model,
        loss_fn=loss_fn,
        optimizers=optimizers,
        schedules=_schedules(recipe, optimizers, train_sampler.steps),
        train_loader=train_loader,
        test_loader=test_loader,
        stop=stop,
        sums=Sums(
            min(recipe.log_every, recipe.steps or train_sampler.steps), context.device, turns
        ),
        loss_watch=LossWatch(recipe, loss_fn),
        samples_count=recipe.counts_samples() and not leaves_out(loss_fn),
        drift=Drift(context, model, loss_fn),
        times=times,
        marker=context.marker,
        average=None if recipe.ema_decay is None else Average(unwrapped(model), recipe.ema_decay),
        graphs=_graphs(recipe, context, model, loss_fn),
        most_steps=most_steps,
    )


def _graphs(
    recipe: Recipe, context: Context, model: torch.nn.Module, loss_fn: torch.nn.Module
) -> Graphs | None:
    """Return what replays steps, None where that is not asked for or cannot be here."""
    if not recipe.cuda_graphs:
        return None
    if (recipe.micro_batch_size or recipe.batch_size) < recipe.batch_size:
        raise RecipeError(
            "`cuda_graphs` records whole steps, and `micro_batch_size` cuts them up",
            hint="leave out one of them",
        )
    if context.device.type == "cuda" and unwrapped(model) is model:
        return Graphs([*model.parameters(), *loss_fn.parameters()])
    if context.rank == 0:
        print("cuda_graphs: not used, it is for one process on a GPU; the numbers are the same")
    return None


def _parts(
    recipe: Recipe, *, say: bool
) -> tuple[SizedData | Stream, SizedData | Stream | None, torch.nn.Module, torch.nn.Module]:
    """Return data, model and loss, which may be downloaded or computed; say so if it takes long."""
    others = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    first = ", first in one process of each machine" if others else ""
    told = Timer(_SAY_AFTER_S, print, [f"preparing data and model{first}"], {"flush": True})
    told.daemon = True
    if say:
        told.start()
    began = time.monotonic()
    try:
        train_data = sized(_seeded(recipe, recipe.train_data), "train_data")
        test_data = _test_data(recipe)
        model = _model(recipe, say=say)
        loss_fn = _loss(recipe)
        if recipe.counts_samples():
            refuse_other_means(loss_fn)
    finally:
        told.cancel()
    took = time.monotonic() - began
    if say and others and took > _SAY_AFTER_S:
        print(f"prepared in {took:.0f} s; now the other processes do", flush=True)
    return train_data, test_data, model, loss_fn


def _test_data(recipe: Recipe) -> SizedData | Stream | None:
    """Return the test data, None where a recipe has left them out, and all that needs them."""
    if type(recipe).test_data is not Recipe.test_data:
        return sized(_seeded(recipe, recipe.test_data), "test_data")
    for name in ("best_by", "patience", "test_every"):
        if getattr(recipe, name, None) is not None:
            raise RecipeError(
                f"`{name}` is about tests, and the recipe has no `test_data`",
                hint="write the method `test_data`, or leave it out",
            )
    return None


def _loss(recipe: Recipe) -> torch.nn.Module:
    """Return the loss; where it is left out, what says so when it is called."""
    if type(recipe).loss is Recipe.loss:
        return NoLoss()
    loss: torch.nn.Module = _expect(_seeded(recipe, recipe.loss), torch.nn.Module, "loss")
    return loss


def _model(recipe: Recipe, *, say: bool = False) -> torch.nn.Module:
    model: torch.nn.Module = _expect(_seeded(recipe, recipe.model), torch.nn.Module, "model")
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # inputs follow in the first convolution
    if recipe.compile:
        model.compile()  # in place: it stays the user's own module, with its own names
    # What a recipe has put in eval mode by itself stays so; a whole model is only as it was loaded.
    frozen = {n: m for n, m in model.named_modules() if not m.training} if model.training else {}
    model.train()
    for module in frozen.values():
        module.eval()
    if say and frozen:
        print(f"in eval mode while training, as `model` left them: {', '.join(frozen)}", flush=True)
    return model


def _refuse_turns(recipe: Recipe) -> None:
    """Raise RecipeError for what does not go with optimizers in turns."""
    own = type(recipe)
    if own.test_step is Recipe.test_step and own.test_data is not Recipe.test_data:
        raise RecipeError(
            "`optimizer` returned a dict, and turns are for training",
            hint="write `test_step(self, model, batch, loss_fn)`, which returns StepSums, or leave "
            "`test_data` out",
        )
    if recipe.cuda_graphs:
        raise RecipeError(
            "`cuda_graphs` records whole steps, and optimizers take turns in them",
            hint="leave cuda_graphs out",
        )


def _schedules(recipe: Recipe, optimizers: Optimizers, per_epoch: int) -> Schedules:
    """Return the recipe's schedules; with an own order and `steps` epochs may be of any length."""
    alike = not recipe.steps or type(recipe).order is Recipe.order
    steps = Steps(recipe.steps or recipe.epochs * per_epoch, per_epoch if alike else None)
    schedules = schedules_of(recipe.scheduler, optimizers.given, steps)
    schedules.refuse_others(optimizers)
    if type(recipe).test_data is Recipe.test_data and any(s.every == "test" for s in schedules):
        raise RecipeError(
            '`scheduler` returned a Schedule with every="test", and there is no `test_data`',
            hint='write `test_data`, or step it by every="step" or "epoch"',
        )
    return schedules


def _expect(made: Any, kind: type, method: str) -> Any:
    if not isinstance(made, kind):
        raise RecipeError(
            f"`{method}` returned {type(made).__name__}, not a {kind.__module__}.{kind.__name__}",
            hint=f"does the method `{method}` of the recipe end in `return`?",
        )
    return made


def _seeded(recipe: Recipe, make: Callable[[], Any]) -> Any:
    """Call a method of the recipe with all generators seeded, the same on every rank."""
    seed_init(recipe.seed)
    return make()


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
