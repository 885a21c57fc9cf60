"""What ranks tell each other between steps: sums for reports, stops, and that they are alike."""

import math
import time
from dataclasses import replace
from itertools import islice

import torch

from launcher.errors import NonFiniteLoss, PeerFailed, Stopped, TrainingFailed
from launcher.model.losses import refuse_left_out
from launcher.ranks.context import unwrapped
from launcher.ranks.faults import check_finite, not_finite
from launcher.recipe.totals import Totals
from launcher.run.directory import RunDir
from launcher.sharding.writing import MOST_FAILURES
from launcher.times.slow import RankTimes
from launcher.train.checkpoint import Saver
from launcher.train.measures import metrics_of
from launcher.train.trackers import Report
from launcher.train.training import Training


def exchange(run: Training, saver: Saver | None, *, report: bool) -> None:
    """Sum over ranks what they measured, and whether any wants to stop; collective.

    The one all-reduce of a report, but for sums that the recipe names. Raises NonFiniteLoss,
    Stopped, or TrainingFailed after too many failed saves, on all ranks alike.
    """
    # Those that rank 0 counts: a save that failed on several ranks is one failure.
    own_failures = float(saver.failures if saver and run.context.rank == 0 else 0)
    words = [float(run.stop.requested), run.pulse.elapsed_s(), own_failures]
    words += [run.times.elapsed_s(), run.times.data_s]
    slots = _own_slot(run) if report else []
    totals, told = _summed(run, words + slots, whole=report)
    stops, elapsed_s, failures, all_s, data_s = told[: len(words)]
    run.pulse.beat(elapsed_s / run.context.world_size)
    run.marker.trains()
    if report:
        run.pulse.reported()
        run.progress.epoch_loss += totals.summed
        run.progress.epoch_count += totals.count
        each = _rank_times(run, told[len(words) :]) if slots else None
        made = _train_report(run, totals, all_s, data_s, each)
        run.trackers.report(made, run.position)
        if each and run.folder and run.context.rank == 0:
            _judge(run, each, made.step_time or 0.0)
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
    run.progress.seconds = time.perf_counter() - run.began
    if saver:
        with run.times.spending("checkpoint"), run.marker.spending("saving"):
            saver.wait(run.marker)  # on rank 0, for the one before
            broken = [name for name in not_finite(unwrapped(run.model)) if name not in run.odd]
            with run.marker.waiting():
                window, [ranks] = _summed(run, [float(bool(broken))], whole=True)
            if ranks:
                step, which = run.progress.step - 1, ", ".join(broken[:3]) or "another rank"
                raise NonFiniteLoss(
                    f"the weights are not finite after step {step} (epoch {run.progress.epoch}), "
                    f"although the loss was: {which}",
                    step=step,
                    hint="the checkpoints are from before; try clip_norm or a smaller "
                    "learning_rate",
                )
            if run.train_loader.lanes is not None:
                everyones = run.context.gather(run.train_loader.lanes)
                run.lanes = {lane: at for lanes in everyones for lane, at in lanes.items()}
            run.marker.saves(run.progress.step)
            saver.save(run, replace(window, shares=run.sums.shares(run.context)))


def _summed(run: Training, words: list[float], *, whole: bool) -> tuple[Totals, list[float]]:
    """Return the sums since the last report, and of `words`, over all ranks; collective.

    Where they are to be `whole`, what the recipe sums by name is among them. In the same vector
    ranks compare their weights. Raises NonFiniteLoss, or what `Drift` raises.
    """
    step = run.progress.step
    own = torch.tensor(words, dtype=torch.float64).to(run.context.device)
    parts = [run.sums.vector(), own, run.drift.own(step)]
    reduced = iter(run.context.reduce(torch.cat(parts)).tolist())
    sums, summed, checksums = (list(islice(reduced, len(part))) for part in parts)
    totals = run.sums.whole(sums, run.context) if whole else run.sums.totals(sums)
    refuse_left_out(totals.left_out, step)  # all of a shard's left out: its mean is NaN
    check_finite(totals, step - len(totals.losses), run.progress.epoch)
    run.drift.check(checksums, step)
    return totals, summed


def _own_slot(run: Training) -> list[float]:
    """Return a place for each rank, with the seconds that this one had for itself in its own.

    Added up over ranks they are all there. Empty for one rank alone.
    """
    world, times = run.context.world_size, run.times
    slots = [0.0] * world if world > 1 else []
    if slots:
        own_s = 0.0 if run.waits_in_passes else times.own.read()
        slots[run.context.rank] = times.data_s + own_s
    return slots


def _rank_times(run: Training, slots: list[float]) -> RankTimes:
    steps = max(run.times.steps, 1)
    return RankTimes([own_s / steps for own_s in slots], data_alone=run.waits_in_passes)


def _judge(run: Training, times: RankTimes, step_s: float) -> None:
    """Warn of ranks that are slower than the others, and note them; for rank 0."""
    size, world = run.train_loader.sampler.batch_size, run.context.world_size
    uneven = -(-size // world) / (size // world) if size >= world else math.inf
    assert run.folder
    run.slow.judge(RunDir(run.folder), times, steps=run.times.steps, step_s=step_s, uneven=uneven)


def _train_report(
    run: Training, totals: Totals, elapsed_s: float, data_s: float, each: RankTimes | None
) -> Report:
    """Return a report of training; the times are sums over ranks of their seconds since the last.

    Reading the norm from the device costs nothing here: the sums have just been read.
    """
    context, times, measured = run.context, run.times, run.measured
    mean_s = max(elapsed_s / context.world_size, 1e-9)
    so_far_s, left = time.perf_counter() - run.began, run.length - run.progress.step
    rates = {name: float(rate) for name, rate in measured.learning_rates.items()}
    norm, on_gpu = measured.gradient_norm, context.device.type == "cuda"
    rate = times.samples / mean_s
    tflops = run.work.tflops(rate, context.world_size)
    return Report(
        split="train",
        epoch=run.progress.epoch,
        step=run.progress.step,
        samples=totals.samples,
        loss=totals.loss,
        accuracy=totals.accuracy,
        epochs=run.whole_epochs,
        learning_rate=next(iter(rates.values()), None),
        learning_rates=rates if len(rates) > 1 else None,
        gradient_norm=None if norm is None else float(norm),
        samples_per_second=rate,
        step_time=mean_s / max(times.steps, 1),
        data_wait=data_s / max(elapsed_s, 1e-9),
        rank_time_median=each.median if each else None,
        rank_time_slowest=each.each[each.slowest] if each else None,
        slowest_rank=each.slowest if each else None,
        rank_time_of=each.of if each else None,
        gpu_memory=torch.cuda.max_memory_allocated() if on_gpu else None,
        steps_in_all=run.length,
        eta_seconds=so_far_s / run.progress.step * left,
        tflops=tflops,
        mfu=run.work.mfu(tflops),
        metrics=metrics_of(run, totals),
    )
