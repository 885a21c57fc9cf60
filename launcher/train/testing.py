"""A test: every sample of the test set once, and all that follows from it, as one event."""

from itertools import islice

import torch

from launcher.data.randomness import seed_test
from launcher.model.losses import refuse_left_out
from launcher.ranks.context import unwrapped
from launcher.ranks.faults import check_finite
from launcher.ranks.gathering import HERE
from launcher.ranks.metrics import Sums
from launcher.recipe.totals import Totals
from launcher.train.checkpoint import Saver
from launcher.train.exchange import checkpoint, exchange
from launcher.train.measures import metrics_of
from launcher.train.step import expect_sums, left_out
from launcher.train.trackers import Report
from launcher.train.training import Training


def test_event(run: Training, saver: Saver | None) -> None:
    """Test, and do what follows from it, in this order; collective.

    A test that was cut leaves nothing behind but what was before it, and is made again from its
    start. Raises Stopped and NonFiniteLoss, each on all ranks.
    """
    with run.times.spending("test"), run.tested_weights():
        totals = test_loop(run, saver)
    report = report_of(run, totals)
    run.trackers.report(report, run.position)
    run.progress.end_epoch(totals, report.metrics)
    checkpoint(run, saver)


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
    HERE.used = False
    with run.testing() as model:
        for number, shard in enumerate(islice(run.test_loader, run.most_steps)):
            run.marker.tick()
            seed_test(run.recipe.seed, number, run.context.rank)
            HERE.shard = shard  # for `launcher.gather`
            # In the first batch a rank without samples shows whether it has to take part.
            for batch in shard.micro_batches if shard.own or run.tests_gather is not False else ():
                made = run.recipe.test_step(model, batch, run.loss_fn)
                if shard.own:
                    sums.add(expect_sums(made, "test_step"))
            if run.tests_gather is None:
                run.tests_gather = run.context.agree(HERE.used)
            sums.end_batch(shard.own, left_out(run, shard))
            if run.pulse.due():
                exchange(run, saver, report=False)
    sums.end_step(0)
    totals = sums.whole(run.context.reduce(sums.vector()).tolist(), run.context)
    refuse_left_out(totals.left_out, run.progress.step)
    check_finite(totals, run.progress.step, run.progress.epoch, "the test loss after")
    if run.most_steps is None and totals.samples != sampler.size:
        raise AssertionError(f"tested {totals.samples} of {sampler.size} samples")
    return totals


def report_of(run: Training, totals: Totals) -> Report:
    """Return the report of a test, with the recipe's metrics."""
    at, numbers = run.progress, (totals.samples, totals.loss, totals.accuracy)
    return Report("test", at.epoch, at.step, *numbers, metrics=metrics_of(run, totals))
