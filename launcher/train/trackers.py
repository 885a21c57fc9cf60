"""Where reports go: the console in the quickstart's words, and metrics.jsonl."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launcher.console import Lasting
from launcher.files import write_bytes
from launcher.run.rows import finite

_SILENT_S = 30.0  # how long a console without a bar may say nothing


@dataclass(frozen=True)
class Report:
    """One line of metrics.jsonl: means over `samples` samples, over all ranks."""

    split: Literal["train", "test"]
    epoch: int  # counted from 0
    step: int  # optimizer steps from the start of the run
    samples: int  # samples that this report is over
    loss: float
    accuracy: float | None  # 0 to 1
    epochs: int = 0  # whole ones done
    time: float = field(default_factory=time.time)  # seconds since 1970
    # Of training alone:
    learning_rate: float | None = None  # of the last step, of the first optimizer's first group
    learning_rates: dict[str, float] | None = None  # of all groups, where there are several
    gradient_norm: float | None = None  # of the last step, over all parameters
    samples_per_second: float | None = None  # all ranks together, since the last report
    step_time: float | None = None  # seconds, mean since the last report
    data_wait: float | None = None  # share of that time that a rank waited for data
    rank_time_median: float | None = None  # seconds of a step that a rank has for itself
    rank_time_slowest: float | None = None  # (see `launcher.times.slow`): None for one rank alone
    slowest_rank: int | None = None
    rank_time_of: str | None = None  # what is counted: "data, compute", or "data"
    gpu_memory: int | None = None  # bytes, the most that rank 0 has allocated
    steps_in_all: int | None = None  # of the run
    eta_seconds: float | None = None  # what is left may take, with its tests, as it went so far
    tflops: float | None = None  # TFLOP/s of a device in forward and backward, where counted
    mfu: float | None = None  # that as a share of what the device can at most
    metrics: Mapping[str, float] = field(default_factory=dict)  # the recipe's own, by name

    def row(self) -> dict[str, Any]:
        """Return it as metrics.jsonl has it: flat, and null for what is no finite number."""
        row = asdict(self)
        flat = row | row.pop("metrics")
        return {name: finite(value) for name, value in flat.items()}


@dataclass(frozen=True)
class Position:
    """How far the current epoch is, for people."""

    epoch: int  # counted from 0
    epochs: int
    done: int  # samples of this epoch
    size: int  # samples in an epoch
    step: int = 0  # optimizer steps done
    steps: int = 0  # of the run in all


class Tracker(Protocol):
    """Something that wants to know how the run goes; only rank 0 has any."""

    def progress(self, position: Position) -> None:
        """Hear how far training is; called about once a second."""

    def report(self, report: Report, position: Position) -> None:
        """Take a report."""

    def close(self) -> None:
        """Let go of files and the terminal."""


class Trackers:
    """Several trackers as one; none on ranks other than 0."""

    def __init__(self, *trackers: Tracker, rows: int = 0) -> None:
        self.trackers = trackers
        self.rows = rows  # reports since the start of the run, on every rank

    def add(self, *trackers: Tracker) -> None:
        """Report to more of them."""
        self.trackers = (*self.trackers, *trackers)

    def progress(self, position: Position) -> None:
        """Tell all of them how far training is."""
        for tracker in self.trackers:
            tracker.progress(position)

    def report(self, report: Report, position: Position) -> None:
        """Hand a report to all of them."""
        self.rows += 1
        for tracker in self.trackers:
            tracker.report(report, position)

    def close(self) -> None:
        """Close all of them."""
        for tracker in self.trackers:
            tracker.close()


class ConsoleTracker:
    """The quickstart's lines; on a terminal a progress bar below them."""

    def __init__(self) -> None:
        self._epoch = -1
        self._spoke, self._spoke_of = time.monotonic(), 0  # when, and of which step
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("samples"),
                TimeRemainingColumn(),
                console=Console(file=Lasting(getattr(sys.stdout, "console", None) or sys.stdout)),
                transient=True,
            )
            self._beneath_the_log(self._bar.start)
            self._task = self._bar.add_task("starting", total=None)

    def progress(self, position: Position) -> None:
        """Move the bar; announce a new epoch."""
        if position.epoch != self._epoch:
            self._epoch = position.epoch
            self._say(f"Epoch {position.epoch + 1}\n{'-' * 31}", position)
        elif not self._bar and time.monotonic() - self._spoke > _SILENT_S:
            self._say(self._how_far(position), position)
        if self._bar:
            label = f"epoch {position.epoch + 1}/{position.epochs}"
            self._bar.update(
                self._task, description=label, completed=position.done, total=position.size
            )

    def report(self, report: Report, position: Position) -> None:
        """Print a report in the quickstart's words."""
        self.progress(position)
        if report.split == "train":
            line = f"loss: {report.loss:>7f} [{position.done:>5d}/{position.size:>5d}]"
            rate = report.learning_rate
            line += ("" if rate is None else f", lr: {rate:.4g}") + metric_words(report.metrics)
        else:
            line = f"Test Error: {accuracy_words(report.accuracy)}Avg loss: {report.loss:>8f}"
            line += metric_words(report.metrics) + "\n"
        self._say(line, position)

    def _say(self, line: str, position: Position) -> None:
        print(line, flush=True)
        self._spoke, self._spoke_of = time.monotonic(), position.step

    def _how_far(self, position: Position) -> str:
        """Return the line for who has heard nothing for long."""
        steps = max(position.step - self._spoke_of, 1)
        step_s = (time.monotonic() - self._spoke) / steps
        left = timedelta(seconds=round(step_s * (position.steps - position.step)))
        return f"step {position.step} of {position.steps}, {1 / step_s:.3g} steps/s, {left} left"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._beneath_the_log(self._bar.stop)

    def _beneath_the_log(self, act: Callable[[], None]) -> None:
        """Let the bar take the console over, or give it back, without getting into the log.

        rich puts a stream of its own in the place of sys.stdout, which must then be what our
        stream writes to.
        """
        stream = sys.stdout
        if not isinstance(stream, Lasting):
            act()
            return
        there = stream.console is not None
        sys.stdout = stream.console or stream
        act()
        if there:
            stream.console = sys.stdout
        sys.stdout = stream


class JsonlTracker:
    """metrics.jsonl: one object a line, written whole, so that a reader never sees half of one."""

    def __init__(self, path: Path, rows: int = 0) -> None:
        """Keep the first `rows` lines; those after them are superseded by what follows."""
        kept = path.read_bytes().splitlines(keepends=True)[:rows] if path.exists() else []
        write_bytes(path, b"".join(kept))
        self._file = path.open("ab", buffering=0)

    def progress(self, position: Position) -> None:
        """Need no progress."""

    def report(self, report: Report, position: Position) -> None:  # noqa: ARG002  # Tracker's form
        """Append a line."""
        self._file.write((json.dumps(report.row()) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def metric_words(metrics: Mapping[str, float]) -> str:
    """Return `, top5: 0.9312, miou: 0.5`, or nothing where a recipe has no metrics."""
    return "".join(f", {name}: {value:.4g}" for name, value in metrics.items())


def accuracy_words(accuracy: float | None) -> str:
    """Return `Accuracy: 98.1%, `, or nothing where a recipe has no accuracy."""
    return "" if accuracy is None else f"Accuracy: {100 * accuracy:>0.1f}%, "
