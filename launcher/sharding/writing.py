"""Checkpoints written while training goes on: by a thread of rank 0, or by one of each rank."""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from launcher.errors import PeerFailed
from launcher.model.state import ModelState, load_safely
from launcher.run import checkpoint_files as files
from launcher.run.checkpoint_files import Note
from launcher.run.directory import RunDir
from launcher.run.mark import Marker
from launcher.sharding.shares import Peers, Share

MOST_FAILURES = 3  # failed saves in a row that stop a run


class Writer:
    """Writes checkpoints of a run, in a thread, one at a time.

    A failed save is a loud warning; MOST_FAILURES in a row are for the caller to act on. Rank 0
    counts them: one that failed on several ranks is one.
    """

    def __init__(
        self, run: RunDir, keep_last: int, keep_best: int, best_by: str | None = None
    ) -> None:
        self.folder = run.checkpoints
        self.kept = keep_last, keep_best, best_by
        self.failures = 0  # in a row
        self.last_error = ""
        self._proven = False  # a first save has been seen to load without running code
        self._thread: threading.Thread | None = None

    def wait(self, marker: Marker) -> None:
        """Wait until the save in flight has ended."""
        if self._thread:
            with marker.beating():
                self._thread.join()
            self._thread = None

    def write_whole(
        self, name: str, model: ModelState, state: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Start writing a checkpoint that this rank has all of."""

        def write_files(folder: Path) -> None:
            model.write(folder / files.MODEL)
            self._write_state(folder, state)

        def write() -> object:
            return files.write(self.folder, name, write_files, facts)

        self._start(lambda: self._counted(name, write))

    def begin(self, name: str) -> bool:
        """Make the folder that ranks write a checkpoint into together; whether it is there."""
        return self._counted(name, lambda: files.begin(self.folder, name), prune=False)

    def write_share(self, name: str, share: Share, facts: Mapping[str, Any], peers: Peers) -> None:
        """Start writing this rank's share of a checkpoint; each rank does, and rank 0 ends it."""

        def write_files(folder: Path) -> Mapping[str, Note]:
            return peers.told(self._noted(folder, folder / peers.name, share))

        place = self.folder / name
        beside = files.beside_of(place)

        def write() -> None:
            if peers.rank == 0:
                self._counted(name, lambda: files.fill(beside, place, write_files, facts))
            else:  # of what has failed, or who has died, rank 0 tells, or the launcher
                with suppress(RuntimeError, PeerFailed):
                    write_files(beside)

        self._start(write)

    def _noted(self, folder: Path, path: Path, share: Share) -> Note | str:
        """Write a share into a folder; returns what there is to note, or why there is nothing."""
        try:
            ModelState(share.pieces, {}, {}).write(path)
            if share.state is not None:
                self._write_state(folder, share.state)
            return files.note(path, folder)
        except Exception as error:  # noqa: BLE001  # the others must hear of it, whatever it is
            return _reason(error)

    def _write_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        with (folder / files.TRAINING).open("wb") as file:
            torch.save(state, file)
        if not self._proven:
            load_safely(folder / files.TRAINING)
            self._proven = True

    def _start(self, write: Callable[[], object]) -> None:
        def run() -> None:
            _yield_to_training()
            write()

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def _counted(self, name: str, do: Callable[[], object], *, prune: bool = True) -> bool:
        """Do a part of a save, and whether it was done; tell of it and count it where it failed."""
        try:
            do()
            if prune:
                files.prune(self.folder, *self.kept)
                self.failures = 0
        except Exception as error:  # noqa: BLE001  # torch and safetensors raise their own kinds
            self.failures += 1
            self.last_error = _reason(error)
            print(
                f"WARNING: checkpoint {name} could not be written ({self.last_error}); "
                f"training goes on, {self.failures} of {MOST_FAILURES} failures in a row",
                flush=True,
            )
            return False
        return True


def _yield_to_training() -> None:
    """Let this thread compute only when training leaves a core free (Linux: a nice of its own)."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _reason(error: BaseException) -> str:
    """Return what went wrong: torch covers the file's own error with "unexpected pos"."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None and isinstance(error, PeerFailed):
        return str(error)
    return f"{type(cause or error).__name__}: {cause or error}"
