"""The train and test loops: the algorithm of the quickstart, sharded and exact."""

from collections import defaultdict
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from launcher.data.fetching import Shard
from launcher.data.randomness import seed_step, seed_test
from launcher.errors import NonFiniteLoss, PeerFailed, RecipeError, Stopped, TrainingFailed
from launcher.model.losses import refuse_left_out
from launcher.ranks.context import unwrapped
from launcher.ranks.faults import check_finite, not_finite
from launcher.ranks.metrics import Sums, Totals
from launcher.recipe.base import StepSums
from launcher.train.checkpoint import MOST_FAILURES, Saver, refuse_unsaveable
from launcher.train.trackers import Report
from launcher.train.training import Training


def train_loop(run: Training, saver: Saver | None) -> None:
    """Train for one epoch, or for what is left of it; collective.

    Raises Stopped and NonFiniteLoss, each on all ranks after the same step.
    """
    recipe, progress, sampler = run.recipe, run.progress, run.train_loader.sampler
    run.trackers.progress(run.position)
    sampler.seek(progress.epoch, progress.steps_into_epoch)
    end = min(sampler.steps, run.most_steps or sampler.steps)
    run.times.start()
    run.loss_watch.look()
    batches = islice(run.train_loader, end - progress.steps_into_epoch)
    for shard in run.times.waiting(batches):  # one global batch
        run.marker.tick()
        seed_step(recipe.seed, progress.step, run.context.rank)
        steps = progress.steps_into_epoch + 1
        last = steps == end
        report = last or steps % recipe.log_every == 0
        train_step(run, shard, measure=report)
        progress.step += 1
        progress.steps_into_epoch = steps
        progress.samples_into_epoch += shard.size
        run.times.end_step(shard.size)
        run.marker.step(progress.step)
        if saver and progress.step == 1:
            refuse_unsaveable(run)  # again: now the optimizer remembers something
        if run.profiler:
            run.profiler.step()
        if run.pulse.due() or report:
            with run.times.spending("tracking"):
                exchange(run, saver, report=report)
            if saver:
                saver.reserve(run)
        if recipe.checkpoint_every and progress.step % recipe.checkpoint_every == 0 and not last:
            checkpoint(run, saver)


def train_step(run: Training, shard: Shard, *, measure: bool = False) -> None:
    """Make one optimizer step from one global batch; collective through DDP.

    `measure` notes the step's learning rate and gradient norm for a report.

    DDP averages gradients over ranks whatever the sizes of their shards. So the loss is summed
    over the shard and scaled by world / (samples in the global batch): the average over ranks is
    then the gradient of the global batch's mean loss.
    """
    scale = run.context.world_size if shard.own else 0
    count: int | Tensor = 0
    for number, batch in enumerate(shard.micro_batches, start=1):
        last = number == len(shard.micro_batches)
        with run.context.gradients(run.model, synchronise=last):
            passes = partial(_passes, run, scale, shard.size, last)
            replayed = run.graphs and run.graphs.run(passes, batch, scale, shard.size)
            sums = replayed or passes(batch)
        if shard.own:
            run.sums.add(sums)
            count = count + sums.count
    run.sums.end_step(shard.own, _left_out(run, shard))
    if run.progress.step == 0:
        _refuse_unused(run)
    if not run.samples_count:
        _divide_by_count(run, shard.size, count)
    if measure:
        _measure(run)
    if run.recipe.clip_norm is not None:  # gradients are those of the global batch on every rank
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip_norm)
    run.optimizer.step()
    if run.average:
        run.average.update()
    run.optimizer.zero_grad()
    if run.scheduler:
        run.scheduler.step()
    run.marker.tick()


def _passes(run: Training, scale: int, size: int, last: bool, batch: Any) -> StepSums:
    """Run a micro-batch, of a global batch of `size` samples, forward and backward."""
    sums = _expect_sums(run.recipe.train_step(run.model, batch, run.loss_fn), "train_step")
    if last:
        run.marker.tick()  # from here on this rank waits for the others
    _backward(sums.loss, scale * sums.scale / size)
    return sums


def _backward(loss: Tensor, weight: float | Tensor) -> None:
    """Do what `(loss * weight).backward()` does; 1 is what torch starts from by itself, faster."""
    if isinstance(weight, Tensor):
        start: Tensor | None = weight.to(loss.dtype).reshape(loss.shape)
    else:
        start = None if weight == 1 else torch.full_like(loss, weight)  # ()
    loss.backward(start)  # type: ignore[no-untyped-call]  # torch's own


def _left_out(run: Training, shard: Shard) -> int:
    """Return how many labels the loss has left out of its mean without being told to."""
    return shard.left_out if run.loss_watch.by_default and shard.own else 0


def _expect_sums(made: Any, method: str) -> StepSums:
    if not isinstance(made, StepSums):
        raise RecipeError(
            f"`{method}` returned {type(made).__name__}, not StepSums",
            hint="return StepSums(loss, count, correct): sums over the batch, not means",
        )
    return made


def _refuse_unused(run: Training) -> None:
    """Raise RecipeError where parameters take no part in the loss: DDP would fail a step later."""
    if not isinstance(run.model, DistributedDataParallel) or run.recipe.find_unused_parameters:
        return
    named = unwrapped(run.model).named_parameters()
    if unused := [name for name, p in named if p.requires_grad and p.grad is None]:
        raise RecipeError(
            f"these parameters take no part in the loss: {', '.join(unused)}",
            hint="give find_unused_parameters=true, remove them, or set requires_grad to False",
        )


def _divide_by_count(run: Training, size: int, count: int | Tensor) -> None:
    """Make gradients that were divided by the samples means over the recipe's own count."""
    device = run.context.device
    if isinstance(count, Tensor):
        local = count.to(device, torch.float64, non_blocking=True).reshape(1)
    else:  # filled there: a copy from the host would wait for the device
        local = torch.full((1,), float(count), dtype=torch.float64, device=device)
    total = run.context.reduce(local)  # (1,)
    factor = torch.where(total > 0, size / total, 0)
    gradients = defaultdict(list)
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            gradients[parameter.grad.dtype].append(parameter.grad)
    for dtype, several in gradients.items():
        torch._foreach_mul_(several, factor.to(dtype).squeeze())


def _measure(run: Training) -> None:
    """Note learning rate and gradient norm, which all ranks have alike; nothing waits for them."""
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    run.measured.learning_rate = run.optimizer.param_groups[0]["lr"]
    run.measured.gradient_norm = torch.nn.utils.get_total_norm(gradients)


def exchange(run: Training, saver: Saver | None, *, report: bool) -> None:
    """Sum over ranks what they measured, and whether any wants to stop; collective.

    The one all-reduce of a report. Raises NonFiniteLoss, Stopped, or TrainingFailed after too many
    failed saves, on all ranks alike.
    """
    own_failures = float(saver.failures if saver else 0)
    words = [float(run.stop.requested), run.pulse.elapsed_s(), own_failures]
    words += [run.times.elapsed_s(), run.times.data_s]
    totals, (stops, elapsed_s, failures, *times) = _summed(run, words)
    run.pulse.beat(elapsed_s / run.context.world_size)
    if report:
        run.progress.epoch_loss += sum(totals.losses)
        run.progress.epoch_count += totals.count
        run.trackers.report(_train_report(run, totals, *times), run.position)
        run.sums.reset()
        run.times.start()
    else:
        run.trackers.progress(run.position)
    if failures >= MOST_FAILURES:
        what = f"{MOST_FAILURES} checkpoints in a row could not be written"
        if saver and saver.last_error:
            raise TrainingFailed(f"{what}: {saver.last_error}")
        raise PeerFailed(what)
    if stops:
        where = f"step {run.progress.step} (epoch {run.progress.epoch})"
        raise Stopped(f"stopped on request after {where}")


def checkpoint(run: Training, saver: Saver | None) -> None:
    """Start saving a checkpoint; collective.

    Raises NonFiniteLoss, on all ranks, where the weights are not finite: such are not saved.
    """
    if saver:
        with run.times.spending("checkpoint"):
            saver.wait(run.marker)  # on rank 0, for the one before
            broken = [name for name in not_finite(unwrapped(run.model)) if name not in run.odd]
            with run.marker.waiting():
                window, [ranks] = _summed(run, [float(bool(broken))])
            if ranks:
                step, which = run.progress.step - 1, ", ".join(broken[:3]) or "another rank"
                raise NonFiniteLoss(
                    f"the weights are not finite after step {step} (epoch {run.progress.epoch}), "
                    f"although the loss was: {which}",
                    step=step,
                    hint="the checkpoints are from before; try clip_norm or a smaller "
                    "learning_rate; `launcher debug` finds the operation",
                )
            saver.save(run, window)


def _summed(run: Training, words: list[float]) -> tuple[Totals, list[float]]:
    """Return the sums since the last report, and of `words`, over all ranks; collective.

    In the same vector ranks compare their weights. Raises NonFiniteLoss, or what `Drift` raises.
    """
    step = run.progress.step
    own = torch.tensor(words, dtype=torch.float64).to(run.context.device)
    parts = [run.sums.vector(), own, run.drift.own(step)]
    reduced = iter(run.context.reduce(torch.cat(parts)).tolist())
    sums, summed, checksums = (list(islice(reduced, len(part))) for part in parts)
    totals = run.sums.totals(sums)
    refuse_left_out(totals.left_out, step)  # all of a shard's left out: its mean is NaN
    check_finite(totals, step - len(totals.losses), run.progress.epoch)
    run.drift.check(checksums, step)
    return totals, summed


@torch.no_grad()
def test_loop(run: Training, saver: Saver | None) -> Totals:
    """Test on every sample of the test set exactly once; collective.

    The model is not in DDP here: ranks may have different numbers of samples, and none waits.
    Raises Stopped on all ranks, as `train_loop` does.
    """
    run.context.share_buffers(unwrapped(run.model))
    sums = Sums(1, run.context.device)
    sampler = run.test_loader.sampler
    sampler.seek(0)
    run.pulse.start()  # a test batch takes another time than a step
    run.loss_watch.look(test=True)
    with run.testing() as model:
        for number, shard in enumerate(islice(run.test_loader, run.most_steps)):
            run.marker.tick()
            seed_test(run.recipe.seed, number, run.context.rank)
            for batch in shard.micro_batches if shard.own else ():
                made = run.recipe.test_step(model, batch, run.loss_fn)
                sums.add(_expect_sums(made, "test_step"))
            sums.end_batch(shard.own, _left_out(run, shard))
            if run.pulse.due():
                exchange(run, saver, report=False)
    sums.end_step(0)
    totals = sums.totals(run.context.reduce(sums.vector()).tolist())
    refuse_left_out(totals.left_out, run.progress.step)
    check_finite(totals, run.progress.step, run.progress.epoch, "the test loss after")
    if run.most_steps is None and totals.samples != sampler.size:
        raise AssertionError(f"tested {totals.samples} of {sampler.size} samples")
    epoch, step = run.progress.epoch, run.progress.step
    report = Report("test", epoch, step, totals.samples, totals.loss, totals.accuracy)
    run.trackers.report(report, run.position)
    return totals


def _train_report(run: Training, totals: Totals, elapsed_s: float, data_s: float) -> Report:
    """Return a report of training; the times are sums over ranks of their seconds since the last.

    Reading the norm from the device costs nothing here: the sums have just been read.
    """
    context, times, measured = run.context, run.times, run.measured
    mean_s = max(elapsed_s / context.world_size, 1e-9)
    norm, on_gpu = measured.gradient_norm, context.device.type == "cuda"
    return Report(
        split="train",
        epoch=run.progress.epoch,
        step=run.progress.step,
        samples=totals.samples,
        loss=totals.loss,
        accuracy=totals.accuracy,
        learning_rate=None if measured.learning_rate is None else float(measured.learning_rate),
        gradient_norm=None if norm is None else float(norm),
        samples_per_second=times.samples / mean_s,
        step_time=mean_s / max(times.steps, 1),
        data_wait=data_s / max(elapsed_s, 1e-9),
        gpu_memory=torch.cuda.max_memory_allocated() if on_gpu else None,
    )
