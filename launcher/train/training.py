"""The state of one run in one process: the parts that the loops work on, and how far they are."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.profiler import profile

from launcher.data.fetching import Shard
from launcher.data.loader import Loader
from launcher.data.randomness import undisturbed
from launcher.data.streams import Positions
from launcher.model.averaging import Average
from launcher.model.graphs import Graphs
from launcher.model.losses import LossWatch
from launcher.model.made import Made
from launcher.model.optimizers import Optimizers
from launcher.model.pieces import in_pieces
from launcher.model.schedules import Schedules
from launcher.pulse import Pulse
from launcher.ranks.context import Context, unwrapped
from launcher.ranks.drift import Drift
from launcher.ranks.faults import StopRequest
from launcher.ranks.gathering import HERE
from launcher.ranks.metrics import Sums
from launcher.ranks.timing import StepTimes
from launcher.recipe.base import Recipe
from launcher.run.best import larger_is_better, name_of
from launcher.run.mark import Marker
from launcher.sharding.buffers import MovingBuffers
from launcher.sharding.passes import Pass, passes_of
from launcher.times.slow import SlowRanks
from launcher.train.trackers import Position, Trackers


@dataclass
class Progress:
    """How far a run is, the same on all ranks; a checkpoint holds all of it."""

    epoch: int = 0
    step: int = 0  # optimizer steps done since the start of the run
    steps_into_epoch: int = 0
    samples_into_epoch: int = 0
    epoch_loss: float = 0.0  # summed over all ranks, as far as reported
    epoch_count: float = 0.0  # what it is a mean over
    train_loss: float | None = None  # mean over the last whole epoch
    test: dict[str, Any] | None = None  # the last: loss, accuracy, correct, samples, metrics
    tested: int = 0  # after how many steps that was
    best: float | None = None  # score of the best test, larger is better
    best_by: str | None = None  # by which metric that was
    best_step: int = 0  # after how many steps that was
    without_better: int = 0  # tests since
    seconds: float = 0.0  # wall clock, over all sessions of the run

    @property
    def mean_loss(self) -> float:
        """Mean loss of the epoch so far, as far as reported."""
        return self.epoch_loss / (self.epoch_count or 1)

    def end_test(self, test: dict[str, Any] | None) -> None:
        """Note a test, None where there is nothing to test on."""
        self.tested, self.test = self.step, test

    def end_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.train_loss = self.mean_loss
        self.epoch += 1
        self.steps_into_epoch = self.samples_into_epoch = 0
        self.epoch_loss = self.epoch_count = 0.0


@dataclass
class Measured:
    """What the last step before a report was made with."""

    learning_rates: dict[str, float | Tensor] = field(default_factory=dict)
    gradient_norm: Tensor | None = None  # (), on the device


@dataclass
class Work:
    """What a step computes, where that is wanted: known on rank 0 after the first report."""

    wanted: bool  # and not yet known
    peak: float | None  # dense TFLOP/s of a device
    of_a_sample: float | None = None  # FLOP of a forward and a backward pass

    def tflops(self, samples_per_second: float, devices: int) -> float | None:
        """Return TFLOP/s of a device."""
        made = self.of_a_sample
        return None if made is None else made * samples_per_second / devices / 1e12

    def mfu(self, tflops: float | None) -> float | None:
        """Return TFLOP/s as a share of the peak."""
        return None if tflops is None or self.peak is None else tflops / self.peak


@dataclass
class Training:
    """What the loops work on: one rank's view of the run."""

    recipe: Recipe
    context: Context
    model: nn.Module  # in DDP where there are several ranks, or in pieces
    loss_fn: nn.Module
    optimizers: Optimizers
    schedules: Schedules
    train_loader: Loader
    test_loader: Loader | None  # None: the recipe has nothing to test on
    stop: StopRequest
    sums: Sums
    loss_watch: LossWatch
    work: Work
    samples_count: bool  # a mean is over samples: no rank has to ask for the others' counts
    drift: Drift
    marker: Marker
    trackers: Trackers = field(default_factory=Trackers)
    pulse: Pulse = field(default_factory=Pulse)
    times: StepTimes = field(default_factory=StepTimes)
    slow: SlowRanks = field(default_factory=SlowRanks)
    measured: Measured = field(default_factory=Measured)
    progress: Progress = field(default_factory=Progress)
    began: float = field(default_factory=time.perf_counter)  # less the seconds of other sessions
    average: Average | None = None
    made: Made = field(default_factory=dict)  # optimizer and schedule before the first step
    odd: list[str] = field(default_factory=list)  # parameters that were never finite
    lanes: Positions = field(default_factory=dict)  # of a Stream, on all ranks, at a checkpoint
    graphs: Graphs | None = None
    moving: MovingBuffers | None = None  # of a model in pieces
    begun: bool = False  # a step was made in this session
    tests_gather: bool | None = None  # `test_step` has ranks exchange rows; None: not known yet
    profiler: profile | None = None
    folder: Path | None = None  # of the run; None: it leaves nothing
    keep: bool = False  # rows of test samples are to go to a file
    most_steps: int | None = None  # of each loop, and of one epoch only: for debugging

    def __post_init__(self) -> None:
        self.log_s = self.recipe.log_every_s
        of_model = list(self.model.parameters())
        known = set(map(id, of_model))
        others = [p for p in self.loss_fn.parameters() if id(p) not in known and p.requires_grad]
        self.loss_parameters = others  # which DDP does not know
        self.parameters = of_model + others
        whole = [p for p in of_model if p.requires_grad and not in_pieces(p)]
        self.not_reduced = others + (whole if self.sharded else [])  # by backward passes

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a piece of the model: each forward pass is then collective."""
        return self.recipe.shard

    @property
    def waits_in_passes(self) -> bool:
        """Whether ranks wait for each other in forward passes, too."""
        synced = (isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())
        return self.sharded or HERE.used or any(synced)

    def passes(self, shard: Shard, loader: Loader) -> list[Pass]:
        """Return the micro-batches of a step, or of a test batch, and whether they count."""
        return passes_of(shard, loader.sampler, alike=self.sharded)

    def tested_weights(self) -> AbstractContextManager[None]:
        """Have in the model, for a while, what is tested and kept: the average, if there is one."""
        return self.average.in_the_model() if self.average else nullcontext()

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        steps = self.train_loader.sampler.steps
        return min(steps, self.most_steps or steps)

    @property
    def length(self) -> int:
        """Steps of the run in all."""
        asked, progress = self.recipe.steps, self.progress
        epochs = self.recipe.epochs if self.most_steps is None else 1
        before = progress.step - progress.steps_into_epoch  # the batch size may have been another
        whole = before + (epochs - progress.epoch) * self.per_epoch
        return whole if asked is None else asked if self.most_steps is None else min(asked, whole)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.progress.step >= self.length or self.out_of_patience

    def tests(self) -> Callable[[int, int], bool]:
        """Return what tells whether there is a test after so many steps, so many in their epoch."""
        every, per_epoch, length = self.recipe.test_every, self.per_epoch, self.length

        def after(step: int, into_epoch: int) -> bool:
            due = step % every == 0 if every else into_epoch == per_epoch
            return due or step == length

        return after

    def reports_after(self, into_epoch: int) -> bool:
        """Whether `log_every` asks for a report after the next step, so many in its epoch."""
        if self.log_s is None:
            return into_epoch % int(self.recipe.log_every) == 0
        return self.sums.ends_next or self.pulse.reaches(self.log_s)

    @property
    def test_is_due(self) -> bool:
        """Whether the test after the last step has not been made."""
        progress = self.progress
        due = self.tests()(progress.step, progress.steps_into_epoch)
        return due and progress.tested != progress.step

    @property
    def whole_epochs(self) -> int:
        """How many epochs are over, the current one too where its last step is done."""
        return self.progress.epoch + (self.progress.steps_into_epoch == self.per_epoch)

    def end_whole_epoch(self) -> None:
        """Go on to the next epoch where this one is over."""
        if self.progress.steps_into_epoch == self.per_epoch:
            self.progress.end_epoch()

    @property
    def out_of_patience(self) -> bool:
        """Whether the last tests were no better than one before them, too often."""
        patience = self.recipe.patience
        return patience is not None and self.progress.without_better >= patience

    @property
    def why_it_ended(self) -> str | None:
        """Why a run ended before its length was reached, for people; None where it did not."""
        if not self.out_of_patience:
            return None
        progress, name = self.progress, self.recipe.best_by
        test = progress.test or {}
        name = name or ("-loss" if name_of(None, test) == "loss" else "accuracy")
        why = f"no better {name} in {progress.without_better} tests (patience): "
        if progress.best is None:
            return f"{why}none was a finite number"
        best = progress.best if larger_is_better(self.recipe.best_by, test) else -progress.best
        return f"{why}the best, {best:.6g}, was after step {progress.best_step}"

    @contextmanager
    def testing(self) -> Iterator[nn.Module]:
        """Give the model to test, outside of DDP; each module of it is then in the mode it was in.

        Some are in eval mode while training: batch norm that a recipe has frozen.
        """
        model = unwrapped(self.model)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with undisturbed():
                yield model
        finally:
            model.train()  # a module may do more then than note it
            for module, mode in modes:
                if module.training != mode:
                    module.train(mode)

    @property
    def position(self) -> Position:
        """How far the epoch is, for people; the last one of a run may be short."""
        progress, sampler = self.progress, self.train_loader.sampler
        left = self.length - progress.step + progress.steps_into_epoch  # from this epoch's start
        epochs = progress.epoch + -(-left // self.per_epoch)
        size = sampler.size
        if self.most_steps is None:
            size = min(size, min(left, self.per_epoch) * sampler.batch_size)
        where = (progress.epoch, epochs, progress.samples_into_epoch, size)
        return Position(*where, step=progress.step, steps=self.length)
