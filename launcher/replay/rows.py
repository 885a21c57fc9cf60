"""Which samples a step had, each with its loss: where a spike came from."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch.utils.data import default_collate

from launcher.data.fetching import Fetcher
from launcher.data.randomness import SampleRandom, indices_of
from launcher.data.sampler import Part
from launcher.data.streaming import StreamFetcher
from launcher.ranks.alone import NoCollectives
from launcher.ranks.gathering import HERE
from launcher.recipe.base import StepSums, is_base
from launcher.run.rows import finite
from launcher.train.training import Training

Row = dict[str, Any]  # index, describe, loss
NOTE = "each by itself, in eval mode, as loaded and not mixed: they need not add up to the step's"


def rows_of_step(training: Training, method: Callable[..., Any]) -> list[Row]:
    """Return the samples of the step that is about to be made, the worst first; collective.

    `method` is the recipe's `train_step`. A `loss` is None where it is no finite number, and in
    all rows where samples cannot be taken one by one.
    """
    sampler, fetcher = copy(training.train_loader.sampler), training.train_loader.fetcher
    progress = training.progress
    sampler.seek(progress.epoch, progress.steps_into_epoch)
    indices = next(iter(sampler))
    rows: list[Row] = []
    losses: list[float] = []
    with _aside(training) as model:
        for part in indices.parts() if indices.own else ():
            rows += _named(fetcher, part)
            losses += _losses(training, model, fetcher, part, method)
    for row, loss in zip(rows, losses or [None] * len(rows), strict=True):
        row["loss"] = loss
    everyones = training.context.gather(rows)
    return sorted((row for rows in everyones for row in rows), key=_badness)


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
