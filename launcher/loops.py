"""The train and test loops: the algorithm of the quickstart, sharded and exact."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from launcher.context import Context, unwrapped
from launcher.data import Loader, Shard
from launcher.errors import Stopped
from launcher.faults import Pulse, StopRequest, check_finite
from launcher.metrics import Sums, Totals
from launcher.randomness import seed_step
from launcher.recipe import Recipe
from launcher.tracking import Position, Report, Trackers


@dataclass
class Training:
    """What the loops work on: one rank's view of the run, and how far it is."""

    recipe: Recipe
    context: Context
    model: nn.Module  # in DDP where there are several ranks
    loss_fn: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    train_loader: Loader
    test_loader: Loader
    trackers: Trackers
    stop: StopRequest
    sums: Sums
    most_steps: int | None = None  # of each loop, for debugging
    pulse: Pulse = field(default_factory=Pulse)
    epoch: int = 0
    step: int = 0  # optimizer steps done since the start of the run
    steps_into_epoch: int = 0
    samples_into_epoch: int = 0
    epoch_loss: float = 0.0  # summed over all ranks, as far as reported
    epoch_count: float = 0.0  # what it is a mean over

    @property
    def position(self) -> Position:
        """How far the epoch is."""
        size = self.train_loader.sampler.size
        return Position(self.epoch, self.recipe.epochs, self.samples_into_epoch, size)

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.steps_into_epoch = self.samples_into_epoch = 0
        self.epoch_loss = self.epoch_count = 0.0


def train_loop(run: Training) -> None:
    """Train for one epoch, or for what is left of it; collective.

    Raises Stopped and NonFiniteLoss, each on all ranks after the same step.
    """
    run.model.train()
    run.trackers.progress(run.position)
    run.train_loader.sampler.seek(run.epoch, run.steps_into_epoch)
    steps = min(len(run.train_loader), run.most_steps or len(run.train_loader))
    end = run.steps_into_epoch + steps
    for shard in islice(run.train_loader, steps):  # one global batch a step
        seed_step(run.recipe.seed, run.step, run.context.rank)
        train_step(run, shard)
        run.step += 1
        run.steps_into_epoch += 1
        run.samples_into_epoch += shard.size
        due = run.pulse.due()
        report = run.steps_into_epoch % run.recipe.log_every == 0 or run.steps_into_epoch == end
        if report or due:
            exchange(run, report=report)


def train_step(run: Training, shard: Shard) -> None:
    """Make one optimizer step from one global batch; collective through DDP.

    DDP averages gradients over ranks whatever the sizes of their shards. So the loss is summed
    over the shard and scaled by world / (samples in the global batch): the average over ranks is
    then the gradient of the global batch's mean loss.
    """
    scale = run.context.world_size / shard.size if shard.own else 0.0
    count: int | Tensor = 0
    for number, batch in enumerate(shard.micro_batches, start=1):
        with run.context.gradients(run.model, synchronise=number == len(shard.micro_batches)):
            sums = run.recipe.train_step(run.model, batch, run.loss_fn)
            (sums.loss * scale).backward()  # type: ignore[no-untyped-call]  # torch's own
        if shard.own:
            run.sums.add(sums)
            count = count + sums.count
    run.sums.end_step(shard.own)
    if not run.recipe.counts_samples():
        _divide_by_count(run, shard.size, count)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.scheduler:
        run.scheduler.step()


def _divide_by_count(run: Training, size: int, count: int | Tensor) -> None:
    """Make gradients that were divided by the samples means over the recipe's own count."""
    local = torch.as_tensor(count, dtype=torch.float64).to(run.context.device).reshape(1)
    factor = size / run.context.reduce(local).clamp(min=1)  # (1,)
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.dtype))


def exchange(run: Training, *, report: bool) -> None:
    """Sum over ranks what they measured and whether any was asked to stop; collective.

    The one all-reduce of a report. Raises NonFiniteLoss or Stopped on all ranks alike.
    """
    words = [float(run.stop.requested), run.pulse.elapsed_s()]
    own = torch.tensor(words, dtype=torch.float64).to(run.context.device)
    reduced = run.context.reduce(torch.cat([run.sums.vector(), own])).tolist()
    *vector, stops, elapsed_s = reduced
    totals = run.sums.totals(vector)
    check_finite(totals, run.step - len(totals.losses), run.epoch)
    run.pulse.beat(elapsed_s / run.context.world_size)
    if report:
        run.epoch_loss += sum(totals.losses)
        run.epoch_count += totals.count
        run.trackers.report(_report("train", run, totals), run.position)
        run.sums.reset()
    else:
        run.trackers.progress(run.position)
    if stops:
        raise Stopped(f"stopped on request after step {run.step} (epoch {run.epoch})")


@torch.no_grad()
def test_loop(run: Training) -> Totals:
    """Test on every sample of the test set exactly once; collective.

    The model is not in DDP here: ranks may have different numbers of batches, and none waits.
    """
    model = unwrapped(run.model)
    run.context.share_buffers(model)
    model.eval()
    sums = Sums(1, run.context.device)
    sampler = run.test_loader.sampler
    sampler.seek(run.epoch)
    for shard in islice(run.test_loader, run.most_steps):
        if shard.own:
            for batch in shard.micro_batches:
                sums.add(run.recipe.test_step(model, batch, run.loss_fn))
        sums.end_batch(shard.own)
    totals = sums.totals(run.context.reduce(sums.vector()).tolist())
    if run.most_steps is None and totals.samples != sampler.size:
        raise AssertionError(f"tested {totals.samples} of {sampler.size} samples")
    run.trackers.report(_report("test", run, totals), run.position)
    return totals


def _report(split: Literal["train", "test"], run: Training, totals: Totals) -> Report:
    return Report(split, run.epoch, run.step, totals.samples, totals.loss, totals.accuracy)
