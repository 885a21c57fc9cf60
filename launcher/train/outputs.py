"""What a run, or a test of it, leaves behind: weights, rows that were kept, traces."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile, schedule

from launcher.errors import RecipeError
from launcher.files import written
from launcher.model.files import bytes_of
from launcher.model.state import captured
from launcher.ranks.context import unwrapped
from launcher.ranks.kept import Rows, as_file
from launcher.run.directory import RunDir
from launcher.run.weights import forget, index_of
from launcher.sharding import shares
from launcher.train.checkpoint import copied
from launcher.train.training import Training

_TRACED_STEPS = 20


def save_weights(training: Training, run: RunDir) -> None:
    """Save what was tested last, and the plain weights too where that was their average.

    Rank 0 writes; of a sharded model all ranks send their pieces: collective.
    """
    if training.average:
        _save(training, run.plain_weights)
    with training.tested_weights():
        _save(training, run.weights, run.weights_others)


def _save(training: Training, path: Path, others: Path | None = None) -> None:
    """Save the weights that are in the model, and beside them what safetensors has no form for."""
    state, first = captured(unwrapped(training.model)), training.context.rank == 0
    rest = copied(training, state.others)
    if others and rest and first:
        with written(others) as beside, beside.open("wb") as file:
            torch.save(rest, file)
    if training.sharded and bytes_of(state.tensors) > shares.LARGE:
        shares.save_large(state.tensors, path, training.context)
        return
    tensors = copied(training, state.tensors)
    if first:
        if index_of(path).exists():
            forget(path)
        shares.save_whole(tensors, path)


def save_rows(rows: Rows, path: Path) -> None:
    """Write the rows of a test; raises RecipeError where there are none."""
    if not rows:
        raise RecipeError(
            "the recipe keeps nothing of its test samples",
            hint='return StepSums(..., kept={"name": rows}) from `test_step`',
        )
    with written(path) as beside:
        save_file(as_file(rows), beside, metadata={"format": "pt"})


@contextmanager
def profiling(training: Training, run: RunDir) -> Iterator[None]:
    """Trace some of the first steps in the block, for Perfetto; each rank writes a file of its own.

    The first steps are left out: they allocate and warm up.
    """
    rank, device = training.context.rank, training.context.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(skip_first=3, wait=0, warmup=2, active=_TRACED_STEPS, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(run.trace(rank))),
    ) as training.profiler:
        yield
    training.profiler = None
