"""The course of a script's run in one process: where it begins, what is saved, logged, agreed."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from launcher.around import RUN_DIR
from launcher.attached import alone, place
from launcher.attached.agreement import Agreement
from launcher.attached.ending import Ending
from launcher.attached.reports import Reports, own_wandb_run
from launcher.attached.requests import Requests
from launcher.attached.saving import Saver
from launcher.files import read_json
from launcher.pulse import Pulse
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.directory import RunDir
from launcher.run.mark import Marker

_WATCHED_S = 24 * 3600.0  # that a rank waits for others where the launcher judges what hangs
_UNWATCHED_S = 1800.0

Function = Callable[[Path], object]


class Course:
    """One process of a run: its parts, and how far it is."""

    def __init__(self, folder: Path | None, keep_last: int) -> None:
        self.place = place.find()
        launched = os.environ.get(RUN_DIR)
        self.run = RunDir(Path(launched)) if launched else alone.run_of(folder, self.place)
        self.run.logs.mkdir(parents=True, exist_ok=True)
        self.requests = Requests(_stop_signal(self.run))
        first = self.place.rank == 0
        self._keeper = None if launched or not first else alone.Keeper(self.run, self.place)
        self.agreement = Agreement(self.place, _WATCHED_S if launched else _UNWATCHED_S)
        self._saver = Saver(self.run, self.agreement, keep_last)
        self._reports = Reports(self.run) if first else None
        self._tracked = False  # whether it is known who tells W&B
        self._found: Checkpoint | None = None
        self._checkpoint: Path | None = None
        self._looked = False  # for a checkpoint
        self._pulse, self._stopping = Pulse(), False
        self.done = 0  # steps
        self.marker, self._marked = Marker(None), False
        self._waits = ExitStack()
        self.ending = Ending(self.run, self.agreement, self._keeper, lambda: self.done)
        if launched and folder and folder.absolute() != self.run.path and first:
            print(f"the run directory is {self.run.path}, not dir={folder}", file=sys.stderr)

    def checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is whole: this rank looks, the first time."""
        if not self._looked:
            self._take(self._saver.newest())
        return self._checkpoint

    def _take(self, found: Checkpoint | None) -> None:
        self._looked, self._found = True, found
        self._checkpoint = found.path if found else None

    def begin(self, load: Function | None) -> int:
        """Load what there is to go on from; returns the steps that are done; collective.

        Without a function to load by, what the script has asked for is what it has loaded.
        """
        self.mark()
        with self.marker.beating():
            if load or self.checkpoint_was_taken:
                seen = (self._checkpoint,) if self._looked else None
                self._take(self._saver.agreed(seen))
            else:
                self.agreement.any("begin", 0, mine=False)
            found = self._found
            if self._reports:
                self._reports.begin(_rows(found))
                if found:
                    print(f"continuing from step {found.step}", flush=True)
            if found and load:
                load(found.path)
        self.done = found.step if found else 0
        self.marker.step(self.done)
        self.marker.goes_on_from(self.done)
        self.ending.in_loop = True
        return self.done

    @property
    def checkpoint_was_taken(self) -> bool:
        """Whether the script was given a checkpoint, and has loaded it by itself."""
        return self._looked and self._found is not None

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Log numbers of a step, on rank 0."""
        if not self._reports:
            return
        self._begin_rows(self._reports, step)
        if not self._tracked:
            self._tracked = True
            if not own_wandb_run(self.run) and self._keeper:
                self._keeper.mirror()
        self._reports.log(step, numbers)

    def _begin_rows(self, reports: Reports, step: int) -> None:
        """Keep the rows of earlier starts that this one does not log again."""
        if reports.begun:
            return
        self.checkpoint()
        if self._found:
            reports.begin(_rows(self._found))
        else:
            reports.begin_before(step)

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Give a folder that becomes the checkpoint after `step` steps; collective."""
        saver = self._saver.saving(step, self._rows_at(step), self.marker)
        with self.marker.spending("saving"), saver as folder:
            self.marker.saves(step)
            yield folder
        self._looked, self._checkpoint = True, self._saver.place_of(step)

    def save(self, save: Function, step: int, *, last: bool) -> bool:
        """Save by the script's function; returns whether it could be; collective."""
        with self.marker.spending("saving"):
            self.marker.saves(step)
            path = self._saver.save(save, step, self._rows_at(step), self.marker, last=last)
        if path:
            self._looked, self._checkpoint = True, path
        return path is not None

    def _rows_at(self, step: int) -> int:
        if not self._reports:
            return 0
        self._begin_rows(self._reports, step)
        return self._reports.rows

    def asked(self, step: int) -> bool:
        """Return whether any rank was asked to stop, as of when they last talked; collective."""
        if self.place.world_size == 1:
            self._stopping = self.requests.heard
        elif self._pulse.due():
            mine = float(self.requests.heard), self._pulse.elapsed_s()
            with self.marker.waiting():
                stop, elapsed_s = self.agreement.largest("go on", step, mine)
            self._pulse.beat(elapsed_s)
            self._stopping |= bool(stop)
        return self._stopping

    def mark(self) -> None:
        """Show how far this rank is, from now on."""
        if not self._marked:
            self._marked = True
            self.marker = Marker(self.run.mark(self.place.rank))

    def made(self, step: int) -> None:
        """Note how many steps are done."""
        self.done = step
        self.marker.step(step)
        self.marker.trains()

    def stop(self, *, saves: bool) -> NoReturn:
        """Leave after a request to stop."""
        why = f"stopped on request after {self.done} steps"
        if self.place.rank == 0:
            print(why if saves else f"{why}; attach() has no `save`: nothing is saved", flush=True)
        self.marker.ends()
        self.ending.stop(why)

    def complete(self) -> None:
        """Note that the run has come to its end, on all ranks; collective.

        What comes now is not watched.
        """
        self.agreement.any("leave", self.done, mine=False)
        self.ending.complete()
        self.marker.ends()
        self._waits.enter_context(self.marker.waiting())


def _stop_signal(run: RunDir) -> str:
    """Return by which signal the launcher asks this script to stop."""
    told = (read_json(run.config) or {}).get("script")
    return str(told.get("stop_signal", "TERM")) if isinstance(told, dict) else "TERM"


def _rows(found: Checkpoint | None) -> int:
    """Return how many rows of metrics.jsonl belong to a checkpoint."""
    return int(found.facts.get("rows", 0)) if found else 0
