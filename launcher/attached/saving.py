"""Checkpoints of a script: folders that all ranks may write into, whole or not at all."""

import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.attached.agreement import Agreement, PeerLost
from launcher.errors import PeerFailed, RunDirError, TrainingFailed
from launcher.masks import clean
from launcher.run import checkpoint_files as files
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.directory import RunDir
from launcher.run.mark import Marker

MOST_FAILURES = 3  # failed saves in a row that end a run, as a recipe's do
_PATIENCE_S, _LOOK_S = 30.0, 0.1  # for a network file system that is slow to tell


class Saver:
    """The checkpoints of one run, as one of its ranks sees them. Rank 0 makes and removes folders.

    A failed save is a loud warning; MOST_FAILURES in a row, or the last one, end the run.
    """

    def __init__(self, run: RunDir, agreement: Agreement, keep_last: int) -> None:
        self._folder, self._agreement, self._keep_last = run.checkpoints, agreement, keep_last
        self._place = agreement.place
        self._failures = 0  # in a row

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, by this rank's own look; changes nothing."""
        for checkpoint in reversed(files.all_of(self._folder)):
            if files.problem(checkpoint) is None:
                return checkpoint
        return None

    def place_of(self, step: int) -> Path:
        """Return where the checkpoint after so many steps stands."""
        return self._folder / files.name_of(step)

    def agreed(self, seen: tuple[Path | None] | None) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, the same on all ranks; collective.

        Rank 0 looks, clears up what a killed process has left, and sets what is broken aside.
        `seen`, where this rank has looked already, is what it has found. Raises RunDirError where
        that is another one, or a machine does not see it.
        """
        found: list[Checkpoint | None] = [None]

        def look() -> None:
            files.clean(self._folder)
            found[0] = files.newest_valid(self._folder, warn, lambda _: None)

        self._turn("begin", 0, look)
        own = -1 if found[0] is None else found[0].step
        [step] = self._agreement.largest("begin", 0, [own])
        place = self.place_of(int(step)) if step >= 0 else None
        if place and found[0] is None:
            found[0] = self._seen(place)
        missed = place is not None and found[0] is None
        if self._agreement.any("begin", 0, mine=missed or seen not in (None, (place,))):
            raise RunDirError(
                f"ranks do not go on from the same checkpoint, {place and place.name} on rank 0",
                hint="all machines need to see the same run directory",
            )
        return found[0]

    def _seen(self, place: Path) -> Checkpoint | None:
        """Return a checkpoint that rank 0 has found, None where this machine does not see it."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            for checkpoint in files.all_of(self._folder):
                if checkpoint.path == place and checkpoint.facts:
                    return checkpoint
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_S)

    @contextmanager
    def saving(self, step: int, rows: int, marker: Marker) -> Iterator[Path]:
        """Give a folder that becomes the checkpoint after `step` steps; collective.

        It appears once all ranks are done, and not at all where one fails: that rank raises its own
        error, and the others PeerFailed. `rows` are those of metrics.jsonl that belong to it.
        """
        place = self.place_of(step)
        beside = files.beside_of(place)
        facts = {"world_size": self._place.world_size, "step": step, "rows": rows}
        error: Exception | None = None
        try:
            with marker.beating():
                self._turn("write a checkpoint", step, lambda: self._make(beside))
                try:
                    yield beside
                    self._tell_files(beside)
                except Exception as caught:  # noqa: BLE001  # raised below, after others know
                    error = caught
                self._agree("write a checkpoint", step, error)
                self._turn("end a checkpoint", step, lambda: self._end(beside, place, facts))
        finally:
            if self._place.rank == 0:
                shutil.rmtree(beside, ignore_errors=True)

    def _make(self, beside: Path) -> None:
        self._folder.mkdir(exist_ok=True)
        files.clean(self._folder)
        beside.mkdir()

    def _end(self, beside: Path, place: Path, facts: Mapping[str, Any]) -> None:
        if not self._place.one_machine:
            self._wait_for(beside)
        files.seal(beside, place, facts)
        files.prune(self._folder, self._keep_last, 0)

    def save(
        self, save: Callable[[Path], object], step: int, rows: int, marker: Marker, *, last: bool
    ) -> Path | None:
        """Save by the script's own function; returns the checkpoint, None where it failed.

        Collective. Raises TrainingFailed, on all ranks, where it fails too often or is the last.
        """
        try:
            with self.saving(step, rows, marker) as folder:
                save(folder)
        except PeerLost:
            raise
        except Exception as error:  # functions of scripts raise whatever they like
            self._failures += 1
            self._tell(error, step)
            if last or self._failures >= MOST_FAILURES:
                what = "the last checkpoint" if last else f"{MOST_FAILURES} checkpoints in a row"
                kind = PeerFailed if isinstance(error, PeerFailed) else TrainingFailed
                raise kind(f"{what} could not be written: {error}") from error
            return None
        self._failures = 0
        return self.place_of(step)

    def _tell(self, error: Exception, step: int) -> None:
        if not isinstance(error, PeerFailed):
            if not isinstance(error, OSError):  # a disk's error says all there is to say
                traceback.print_exception(error)
            warn(f"checkpoint {files.name_of(step)} could not be written ({_words(error)})")
        if self._place.rank == 0:
            warn(f"no checkpoint after step {step}: {self._failures} failures in a row")

    def _turn(self, what: str, step: int, do: Callable[[], None]) -> None:
        """Have rank 0 do something while the others wait; collective. Where it fails all fail."""
        error: Exception | None = None
        if self._place.rank == 0:
            try:
                do()
            except Exception as caught:  # noqa: BLE001  # raised below, after others know
                error = caught
        self._agree(what, step, error)

    def _agree(self, what: str, step: int, error: Exception | None) -> None:
        failed = self._agreement.any(what, step, mine=error is not None)
        if error:
            raise error
        if failed:
            raise PeerFailed(f"another rank could not {what}")

    def _tell_files(self, beside: Path) -> None:
        """Tell rank 0 which files are there, where it may be on another machine."""
        if not self._place.one_machine:
            self._agreement.tell(json.dumps(sorted(_inside(beside))))

    def _wait_for(self, beside: Path) -> None:
        """Wait until rank 0 sees all that others have written; raises RunDirError."""
        names = {name for told in self._agreement.told() for name in json.loads(told)}
        deadline = time.monotonic() + _PATIENCE_S
        while missing := names - _inside(beside):
            if time.monotonic() > deadline:
                raise RunDirError(
                    f"`{min(missing)}`, which another machine has saved, is not seen by rank 0",
                    hint="all machines need to see the same run directory",
                )
            time.sleep(_LOOK_S)


def _inside(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def warn(message: str) -> None:
    """Say loudly that something is wrong although the run goes on."""
    print(f"WARNING: {clean(message)}", file=sys.stderr, flush=True)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
