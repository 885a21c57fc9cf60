"""Which samples a step had, each with its loss: where a spike came from."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch

from launcher.data.device import to_device
from launcher.data.fetching import Fetcher
from launcher.data.randomness import SampleRandom, indices_of
from launcher.data.sampler import Part
from launcher.data.streaming import StreamFetcher
from launcher.errors import LauncherError
from launcher.model.state import undisturbed_buffers
from launcher.ranks.alone import NoCollectives
from launcher.ranks.gathering import HERE
from launcher.recipe.base import StepSums, is_base
from launcher.run.rows import finite
from launcher.train.training import Training

Row = dict[str, Any]  # index, describe, loss
NOTE = "each by itself, in eval mode, as loaded and not mixed: they need not add up to the step's"


def rows_of_step(training: Training, method: Callable[..., Any]) -> list[Row]:
    """Return the samples of the step that is about to be made, the worst first; collective.

    `method` is the recipe's `train_step`. A `loss` is None where samples cannot be taken alone.
    """
    sampler, fetcher = copy(training.train_loader.sampler), training.train_loader.fetcher
    progress = training.progress
    sampler.seek(progress.epoch, progress.steps_into_epoch)
    indices = next(iter(sampler))
    rows: list[Row] = []
    losses: list[float | None] = []
    with _aside(training) as model:
        for part in indices.parts() if indices.own else ():
            rows += _named(fetcher, part)
            losses += _losses(training, model, fetcher, part, method)
    for row, loss in zip(rows, losses, strict=True):
        row["loss"] = loss
    everyones = training.context.gather(rows)
    return sorted((row for rows in everyones for row in rows), key=_badness)


def finite_losses(rows: list[Row]) -> list[Row]:
    """Return samples as JSON has them."""
    return [row | {"loss": finite(row["loss"])} for row in rows]


def words_of(rows: list[Row]) -> str:
    """Return a table of samples, for people."""
    lines = ["samples of the step, the worst first"]
    for row in rows:
        loss = "" if row["loss"] is None else f"  loss {row['loss']:.9f}"
        lines.append(f"{row['index']!s:>8}{loss}  {row['describe'] or ''}".rstrip())
    known = any(row["loss"] is not None for row in rows)
    return "\n".join([*lines, NOTE if known else "samples of this recipe have no loss one by one"])


def _badness(row: Row) -> float:
    loss = row["loss"]
    return 0 if loss is None else -math.inf if math.isnan(loss) else -float(loss)


@contextmanager
def _aside(training: Training) -> Iterator[Any]:
    """Give the model in eval mode; nothing of the step, nor its random numbers, changes by it."""
    shard = HERE.shard
    try:
        with training.testing() as model, undisturbed_buffers(model), torch.no_grad():
            HERE.shard = None  # rows are gathered of a step
            with NoCollectives("train_step"):
                yield model
    finally:
        HERE.shard = shard


def _named(fetcher: Fetcher, part: Part) -> list[Row]:
    """Return the samples of a micro-batch by index, or by name where they are a Stream's."""
    if isinstance(fetcher, StreamFetcher):
        return [{"index": name, "describe": None} for name in fetcher.listed(part.names)]
    describe = getattr(fetcher.dataset, "describe", None)
    told = [(i, describe(i) if callable(describe) else None) for i in _indices(part)]
    return [{"index": i, "describe": None if said is None else str(said)} for i, said in told]


def _indices(part: Part) -> list[int]:
    return [int(index) for index in indices_of(part.names)]


def _losses(
    training: Training, model: Any, fetcher: Fetcher, part: Part, method: Callable[..., Any]
) -> list[float | None]:
    """Return the loss of each sample; None for all where they cannot be taken one by one."""
    nothing: list[float | None] = [None] * len(part.names)
    turns = inspect.isgeneratorfunction(method)
    if isinstance(fetcher, StreamFetcher) or turns or training.sharded:  # it gathers its weights
        return nothing
    losses: list[float | None] = []
    for at in range(len(part.names)):
        single = part._replace(names=part.names[at : at + 1], partners=None)
        try:
            batch = to_device([_batch(fetcher, single)], training.context.device)[0]
            made = method(model, batch, training.loss_fn)
        except LauncherError:  # it gathers, or talks to other ranks
            return nothing
        if not isinstance(made, StepSums):
            return nothing
        losses.append(float(made.loss * made.scale) / (float(made.count) or 1))
    return losses


def _batch(fetcher: Fetcher, part: Part) -> Any:
    """Return a batch of a single sample, as the dataset gives it; what mixes is left out."""
    recipe, plain = fetcher.recipe, is_base(fetcher.recipe, "collate")
    if fetcher.arrays is not None:
        numbers = SampleRandom(recipe.seed, part.epoch, part.names, fetcher.device)
        batch = fetcher.arrays.batch(indices_of(part.names), numbers)
        if plain or fetcher.joiner.takes_random or not is_base(recipe, "partners"):
            return batch
        return recipe.collate(list(zip(*(array.unbind() for array in batch), strict=True)))
    samples = fetcher.draws.load(part.epoch, part.names, get=fetcher.dataset.__getitem__)
    if fetcher.joiner.takes_random or not is_base(recipe, "partners"):
        return recipe.test_collate(samples)
    return recipe.collate(samples)
