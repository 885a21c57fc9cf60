"""The train loop: the algorithm of the quickstart."""

from itertools import islice

from launcher.data.fetching import Shard
from launcher.data.randomness import seed_step
from launcher.train.checkpoint import Saver, refuse_unsaveable
from launcher.train.exchange import checkpoint, exchange
from launcher.train.measures import count_flops
from launcher.train.step import train_step
from launcher.train.testing import test_event
from launcher.train.training import Training
from launcher.train.turns import take_turns


def train_loop(run: Training, saver: Saver | None) -> None:
    """Train for one epoch, or for what is left of it or of the run; collective.

    Raises Stopped and NonFiniteLoss, each on all ranks after the same step.
    """
    recipe, progress, sampler = run.recipe, run.progress, run.train_loader.sampler
    run.trackers.progress(run.position)
    sampler.seek(progress.epoch, progress.steps_into_epoch)
    per_epoch, tests_after = run.per_epoch, run.tests()
    end = min(per_epoch, progress.steps_into_epoch + run.length - progress.step)
    make_step = take_turns if run.optimizers.in_turns else train_step
    run.times.start()
    run.loss_watch.look()
    batches = islice(run.train_loader, end - progress.steps_into_epoch)
    for shard in run.times.waiting(batches):  # one global batch
        run.marker.tick()
        seed_step(recipe.seed, progress.step, run.context.rank)
        steps = progress.steps_into_epoch + 1
        tested = tests_after(progress.step + 1, steps)
        report = tested or steps == end or run.reports_after(steps)
        make_step(run, shard, measure=report)
        if steps == per_epoch:
            run.schedules.step("epoch")
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
            _talk(run, saver, shard, report=report)
        if tested:
            test_event(run, saver)
            if run.done:
                break
            run.times.start()
            run.loss_watch.look()
            continue
        run.end_whole_epoch()
        if recipe.checkpoint_every and progress.step % recipe.checkpoint_every == 0:
            checkpoint(run, saver)


def _talk(run: Training, saver: Saver | None, shard: Shard, *, report: bool) -> None:
    """Exchange what ranks tell each other, and do what goes with it; collective."""
    with run.times.spending("tracking"):
        exchange(run, saver, report=report)
        if report and run.work.wanted:
            count_flops(run, shard)
    if saver:
        saver.reserve(run)
