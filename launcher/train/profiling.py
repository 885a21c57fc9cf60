"""`launcher run --profile`: what some steps of each rank spend their time on, for Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile, schedule

from launcher.run.directory import RunDir
from launcher.train.training import Training

_STEPS = 20


@contextmanager
def profiling(training: Training, run: RunDir) -> Iterator[None]:
    """Trace some of the first steps in the block; each rank writes a file of its own.

    The first steps are left out: they allocate and warm up.
    """
    rank, device = training.context.rank, training.context.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(skip_first=3, wait=0, warmup=2, active=_STEPS, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(run.trace(rank))),
    ) as training.profiler:
        yield
    training.profiler = None
