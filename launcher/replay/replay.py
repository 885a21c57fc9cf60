"""A step of a run made again: from a checkpoint to it, a debugger before it, and what it said."""

import inspect
import pdb  # noqa: T100  # this is what the user has asked for
import sys
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.errors import NonFiniteLoss, TrainingFailed
from launcher.ranks.context import Context, unwrapped
from launcher.ranks.faults import StopRequest, not_finite
from launcher.ranks.gathering import HERE
from launcher.recipe.base import Recipe, StepSums
from launcher.replay.rows import Row, finite_losses, rows_of_step, words_of
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.rows import finite
from launcher.train.checkpoint import restore
from launcher.train.prepare import note_how_made, prepare
from launcher.train.trackers import Position, Report, Trackers
from launcher.train.training import Training
from launcher.train.worker import train


@dataclass(frozen=True)
class Asked:
    """Which step is to be made again, and from where."""

    step: int
    checkpoint: Checkpoint | None = None  # None: from the start
    init_from: Path | None = None  # weights that the run began with
    rank: int = 0  # who has the terminal
    terminal: bool = False  # whether there is one: the debugger stops before the step
    rows: bool = False  # whether the samples of the step are to be listed
    gloo: bool = False  # the run's gradients were summed by gloo, not in shared memory


class _Made(Exception):  # noqa: N818  # no error: it ends training
    """The step is made."""


def replay(
    recipe: Recipe, context: Context, asked: Asked, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train up to a step and make it, as the run did; collective. Nothing is written.

    `say` reaches the terminal from any rank.

    Returns what it came to: `step`, its own `loss` over all ranks, `gradient_norm`, and `report`,
    the line of metrics.jsonl where the run reported after it. Raises BdbQuit where the user leaves
    the debugger, and whatever the run has raised.
    """
    for name, value in {"num_workers": 0, "cuda_graphs": False, "sanity_test": False}.items():
        object.__setattr__(recipe, name, value)  # no number depends on them, and breakpoints do
    if asked.gloo:
        object.__setattr__(recipe, "shared_gradients", False)
    training = prepare(recipe, context, StopRequest(), init_from=asked.init_from, alone=True)
    note_how_made(training)
    if asked.checkpoint:
        restore(training, asked.checkpoint)
    step = _Step(training, asked, say)
    with step.watched():
        try:
            train(training, None)
        except _Made:
            return step.told()
    raise TrainingFailed(f"training ended before step {asked.step}: {training.why_it_ended}")


class _Debugger(pdb.Pdb):
    """Knows whether the user has left it: `runcall` only returns then."""

    left = False

    def set_quit(self) -> None:
        """Leave."""
        self.left = True
        super().set_quit()


class _Step:
    """The step that is waited for; a tracker on every rank, which ends training after it."""

    def __init__(self, training: Training, asked: Asked, say: Callable[[str], None]) -> None:
        self._training, self._asked, self._say = training, asked, say
        self._number = asked.step
        self._method = training.recipe.train_step
        self._due = training.tests()
        self._stops = asked.terminal and training.context.rank == asked.rank
        self._sums: dict[str, torch.Tensor] = {}  # by turn: loss and count, (2,)
        self._samples = 0
        self._rows: list[Row] | None = None
        self._report: Report | None = None
        self._passed: set[tuple[str, int]] = set()  # breakpoints

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have the recipe's `train_step`, reports and breakpoints come here."""
        training, hook = self._training, sys.breakpointhook
        object.__setattr__(training.recipe, "train_step", self._train_step)
        training.trackers = Trackers(self)
        # A report after the step, whether or not the run made one: it has the norm.
        training.tests = lambda: self._tests  # type: ignore[method-assign]
        sys.breakpointhook = self._breakpoint
        try:
            yield
        finally:
            sys.breakpointhook = hook
            torch.autograd.set_detect_anomaly(False)

    @property
    def _is_now(self) -> bool:
        return self._training.progress.step == self._number

    def _tests(self, step: int, into_epoch: int) -> bool:
        return step == self._number + 1 or self._due(step, into_epoch)

    def _train_step(self, *given: Any) -> Any:
        """Stand in for the recipe's own, which tests may call as well."""
        if not (self._is_now and torch.is_grad_enabled()):
            return self._method(*given)
        torch.autograd.set_detect_anomaly(True)
        assert HERE.shard
        if self._asked.rows and self._rows is None:
            self._rows = rows_of_step(self._training, self._method)
            if self._training.context.rank == self._asked.rank:
                self._say(words_of(self._rows))
        self._samples = HERE.shard.size
        if inspect.isgeneratorfunction(self._method):
            return self._turns(self._method(*given))
        made = self._debugged(self._method, *given)
        if isinstance(made, StepSums):
            self._add("", made)
            return made
        return self._turns(made) if isinstance(made, Iterator) else made

    def _turns(self, turns: Iterator[Any]) -> Iterator[Any]:
        while (made := self._debugged(next, turns, None)) is not None:
            if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], StepSums):
                self._add(str(made[0]), made[1])
            yield made

    def _debugged(self, call: Callable[..., Any], *given: Any) -> Any:
        """Call, the first time with the debugger before its first line."""
        if not self._stops:
            return call(*given)
        self._stops = False
        print(f"before step {self._number}: `c` makes it, `q` leaves", flush=True)
        debugger = _Debugger()
        made = debugger.runcall(call, *given)
        if debugger.left:
            raise BdbQuit
        return made

    def _add(self, turn: str, made: StepSums) -> None:
        """Sum up a micro-batch as reports do."""
        if HERE.shard and HERE.shard.own:
            parts = made.loss.detach().double().reshape(()) * made.scale, made.count
            values = [torch.as_tensor(p, dtype=torch.float64).reshape(()).cpu() for p in parts]
        else:  # a ghost counts nothing, and takes part in the sum over ranks
            values = [torch.zeros((), dtype=torch.float64)] * 2
        self._sums[turn] = self._sums.get(turn, 0) + torch.stack(values)

    def _breakpoint(self, *_: Any, **__: Any) -> None:
        """Stand in for `breakpoint()`: it counts in the step alone, at the terminal."""
        frame = sys._getframe(1)
        if self._asked.terminal and self._training.context.rank == self._asked.rank:
            if self._is_now:
                pdb.Pdb().set_trace(frame)
            return
        place = frame.f_code.co_filename, frame.f_lineno
        if self._is_now and place not in self._passed:
            self._passed.add(place)
            where = f"{Path(place[0]).name}:{place[1]}"
            rank = self._training.context.rank
            self._say(f"rank {rank}: breakpoint() at {where} is passed over")

    def told(self) -> dict[str, Any]:
        """Return what the step came to; collective."""
        report, loss = self._report, 0.0
        assert report
        broken = set(not_finite(unwrapped(self._training.model))).difference(self._training.odd)
        if self._training.context.agree(bool(broken)):
            which = min(broken, default="a part on another rank")
            what = f"the weights are not finite after step {self._number}: {which}"
            raise NonFiniteLoss(what, step=self._number)
        for own in self._sums.values():
            summed, count = self._training.context.reduce(own.to(self._training.context.device))
            loss += float(summed) / (float(count) or 1)
        if report.samples == self._samples and not report.metrics.keys() & {"loss"}:
            loss = report.loss  # of this step alone: to the last bit what the run has reported
        return {
            "step": self._number,
            "loss": finite(loss),
            "gradient_norm": finite(report.gradient_norm),
            "report": report.row() if self._is_reported() else None,
            **({} if self._rows is None else {"rows": finite_losses(self._rows)}),
        }

    def _is_reported(self) -> bool:
        """Whether the run, too, reported after this step."""
        training, at = self._training, self._training.progress
        into = at.steps_into_epoch
        ends = into == training.per_epoch or at.step == training.length
        if ends or self._due(at.step, into):
            return True
        return training.log_s is None and training.reports_after(into)

    def progress(self, position: Position) -> None:
        """Need no progress."""

    def report(self, report: Report, position: Position) -> None:  # noqa: ARG002  # Tracker's form
        """Take the report that ends it."""
        if report.split != "train" or report.step != self._number + 1:
            return
        self._report = report
        raise _Made

    def close(self) -> None:
        """Hold nothing."""
