"""A test: every sample of the test set once, and all that follows from it, as one event."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from launcher.data.fetching import Shard
from launcher.data.randomness import seed_test
from launcher.errors import RecipeError
from launcher.model.losses import refuse_left_out
from launcher.model.returned import expect_sums
from launcher.model.state import undisturbed_buffers
from launcher.ranks.alone import NoCollectives, replaced
from launcher.ranks.context import unwrapped
from launcher.ranks.faults import check_finite
from launcher.ranks.gathering import HERE
from launcher.ranks.kept import Kept, Rows, size_of
from launcher.ranks.metrics import Sums
from launcher.recipe.base import is_base
from launcher.recipe.totals import Totals
from launcher.run.best import larger_is_better, name_of
from launcher.train.checkpoint import Saver
from launcher.train.exchange import checkpoint, exchange
from launcher.train.measures import (
    keeps_rows,
    metrics_of_batch,
    metrics_of_test,
    note_best,
    refuse_unknown,
)
from launcher.train.step import left_out
from launcher.train.trackers import Report
from launcher.train.training import Training


class Tested(NamedTuple):
    """What a test has found, the same on all ranks, but for the rows: rank 0 has them."""

    totals: Totals
    metrics: dict[str, float]
    rows: Rows  # those of each sample that were kept, if anybody wants them

    def numbers(self) -> dict[str, Any]:
        """Return all that is told of it, by name."""
        return {**self.totals.numbers(), **self.metrics}


def test_event(run: Training, saver: Saver | None) -> None:
    """Test, and do what follows from it, in this order; collective.

    A test that was cut leaves nothing behind but what was before it, and is made again from its
    start. Where there is nothing to test on, what is left of it is the checkpoint. Raises Stopped
    and NonFiniteLoss, each on all ranks.
    """
    if run.test_loader is None:
        run.progress.end_test(None)
        run.end_whole_epoch()
        checkpoint(run, saver)
        return
    marked = run.marker.spending("testing")
    with run.times.spending("test"), marked, run.tested_weights():
        tested = test_loop(run, saver)
        run.progress.end_test(tested.numbers())
        note_best(run)
        _step_schedules(run, tested.numbers())
        report_test(run, tested)
    run.end_whole_epoch()
    checkpoint(run, saver)


def _step_schedules(run: Training, test: dict[str, Any]) -> None:
    """Step the schedules that count tests; one that looks at a metric gets that of `best_by`."""
    _refuse_other_mode(run, test)
    run.schedules.step("test", test[name_of(run.recipe.best_by, test)])


def _refuse_other_mode(run: Training, test: dict[str, Any]) -> None:
    best_by = run.recipe.best_by
    better = larger_is_better(best_by, test)
    run.schedules.refuse_other_mode(name_of(best_by, test), larger_is_better=better)


def report_test(run: Training, tested: Tested) -> None:
    """Let the recipe leave its files of a test, then report it; collective.

    In this order, so that whoever reads the report finds them.
    """
    totals, at = tested.totals, run.progress
    numbers = totals.samples, totals.loss, totals.accuracy
    ended = run.whole_epochs
    report = Report("test", at.epoch, at.step, *numbers, epochs=ended, metrics=tested.metrics)
    try:
        if not is_base(run.recipe, "after_test") and run.folder:
            if run.sharded:
                _after_test_together(run, report)
            else:
                run.context.from_first(partial(_after_test, run, report), "`after_test`")
    finally:
        run.trackers.report(report, run.position)


@torch.no_grad()
def _after_test(run: Training, report: Report) -> None:
    """Fill RUN_DIR/after_test/step-N anew, in the way of the recipe; on rank 0."""
    assert run.folder
    place = run.folder / "after_test" / f"step-{report.step}"
    with run.testing() as model, replaced(place) as folder, NoCollectives("after_test"):
        seed_test(run.recipe.seed, 0, run.context.rank)
        run.recipe.after_test(model, report, folder)


@torch.no_grad()
def _after_test_together(run: Training, report: Report) -> None:
    """Do as `_after_test` on all ranks, for their forward passes are one; collective.

    What other ranks leave in their folders is thrown away.
    """
    assert run.folder
    place = run.folder / "after_test" / f"step-{report.step}"
    kept = replaced(place) if run.context.rank == 0 else TemporaryDirectory()
    with run.testing() as model, kept as folder, run.context.together.blaming():
        seed_test(run.recipe.seed, 0, 0)  # alike on all
        run.recipe.after_test(model, report, Path(folder))
    run.context.agree(False)  # others wait for rank 0's files


@torch.no_grad()
def test_loop(run: Training, saver: Saver | None) -> Tested:
    """Test on every sample of the test set exactly once; collective.

    Raises Stopped on all ranks, as `train_loop` does, and RecipeError without test data.
    """
    if run.test_loader is None:
        raise RecipeError("the recipe has no `test_data`", hint="write the method `test_data`")
    run.context.share_buffers(unwrapped(run.model))
    run.pulse.start()  # a test batch takes another time than a step

    def answer() -> None:
        if run.pulse.due():
            exchange(run, saver, report=False)

    totals, rows = _pass(run, run.most_steps, answer)
    check_finite(totals, run.progress.step, run.progress.epoch, "the test loss after")
    size = run.test_loader.sampler.size
    if run.most_steps is None and totals.samples != size:
        raise AssertionError(f"tested {totals.samples} of {size} samples")
    if rows and run.folder and run.progress.best is None:  # the first time
        print(f"kept of {totals.samples} test samples: {size_of(rows) / 1e6:.1f} MB", flush=True)
    return Tested(totals, metrics_of_test(run, totals, rows), rows)


@torch.no_grad()
def sanity_test(run: Training) -> None:
    """Put one test batch through what a test does, before the first step; collective.

    What a test would trip over after an hour is known in a second, and no number depends on it.
    """
    if run.test_loader is None:
        return
    with undisturbed_buffers(unwrapped(run.model)):
        totals, rows = _pass(run, 1, lambda: None)
    metrics, no_others = metrics_of_batch(run, totals, rows)
    test = {**totals.numbers(), **metrics}
    _refuse_other_mode(run, test)
    if no_others:
        refuse_unknown(test, run.recipe.best_by, begun=False)


def _pass(run: Training, batches: int | None, after: Callable[[], None]) -> tuple[Totals, Rows]:
    """Put the first test batches, all for None, through `test_step`; collective.

    Returns their sums and, on rank 0, rows that are kept. `after` is called after each of them. The
    model is not in DDP here: ranks may have different numbers of samples, and none waits.
    """
    assert run.test_loader
    sums, kept = Sums(1, run.context.device), Kept() if keeps_rows(run) else None
    run.test_loader.sampler.seek(0)
    run.loss_watch.look(test=True)
    HERE.used = False
    with run.testing() as model:
        for number, shard in enumerate(islice(run.test_loader, batches)):
            run.marker.tick()
            _test_batch(run, model, shard, number, (sums, kept))
            after()
    sums.end_step(0)
    totals = sums.whole(run.context.reduce(sums.vector()).tolist(), run.context)
    refuse_left_out(totals.left_out, run.progress.step)
    return totals, kept.gathered(run.context) if kept else {}


def _test_batch(
    run: Training, model: nn.Module, shard: Shard, number: int, into: tuple[Sums, Kept | None]
) -> None:
    """Test on this rank's part of the test batch of a number, adding up and keeping what it is."""
    sums, kept = into
    seed_test(run.recipe.seed, number, run.context.rank)
    HERE.shard = shard  # for `launcher.gather`
    assert run.test_loader
    # In the first batch a rank without samples shows whether it has to take part.
    takes_part = shard.own or run.tests_gather is not False or run.sharded
    for batch, counts in run.passes(shard, run.test_loader) if takes_part else ():
        method = "train_step" if is_base(run.recipe, "test_step") else "test_step"  # what it calls
        with run.context.together.blaming():
            made = expect_sums(run.recipe.test_step(model, batch, run.loss_fn), method)
        if counts:
            sums.add(made)
        if counts and kept:
            kept.add(made.kept)
    if run.tests_gather is None:
        run.tests_gather = run.context.agree(HERE.used)
    sums.end_batch(shard.own, left_out(run, shard))
    if kept and shard.own:
        kept.end_batch(run.test_loader.sampler.places(number).tolist())
