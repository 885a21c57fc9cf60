"""Looks at what a script does while it runs: shows what rank 0 says, and notices a hang."""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.launch.supervise import HangWatch
from launcher.recipe.base import Recipe
from launcher.run.directory import RunDir
from launcher.script.script import Script, Sign
from launcher.tracking.mirror import LateMirror

_MOST_BYTES = 1 << 20  # at once
_ECHO_S = 0.03
_LOOKS = 20  # in the time without which nothing may happen
_LONGEST_S = 5.0  # between two looks


class Echo:
    """Copies what is added to a log to the console, byte by byte.

    In a thread: neither the script nor who supervises it waits for a console that takes nothing.
    """

    def __init__(self, log: Path) -> None:
        log.touch()
        self._log = log.open("rb")
        self._log.seek(0, os.SEEK_END)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._copy, name="console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy the rest, and return when the console has taken it."""
        self._done.set()
        self._thread.join()
        self._log.close()

    def _copy(self) -> None:
        at_its_end = False
        while not at_its_end:
            at_its_end = self._done.wait(_ECHO_S)
            while data := self._log.read(_MOST_BYTES):
                sys.stdout.buffer.write(data)
                sys.stdout.flush()


class ScriptWatch:
    """Judges by the marks of ranks where a script makes them, else by what it writes."""

    def __init__(
        self,
        run: RunDir,
        ranks: Sequence[int],
        script: Script,
        mirror: LateMirror | None,
    ) -> None:
        self._script, self._mirror = script, mirror
        self._marks = {rank: run.mark(rank) for rank in ranks}
        self._logs = [run.log(rank) for rank in ranks]
        self._by_marks: HangWatch | None = None
        self._watched: Mapping[int, Path] = {}  # the marks that are there
        self._looked = self._stirred = time.monotonic()
        self._signs: tuple[list[int], Sign | None] | None = None

    def verdict(self) -> str | None:
        """Return what hangs, None while it gets on."""
        if self._mirror:
            self._mirror.look()
        if len(self._watched) < len(self._marks):
            there = {rank: path for rank, path in self._marks.items() if path.exists()}
            if len(there) > len(self._watched):
                self._watched, self._by_marks = there, self._watch(there)
        return self._by_marks.verdict() if self._by_marks else self._silence()

    def _watch(self, marks: Mapping[int, Path]) -> HangWatch:
        patience_s = self._script.hang_timeout or Recipe.hang_timeout
        return HangWatch(marks, patience_s, max(patience_s, Recipe.start_timeout))

    def _silence(self) -> str | None:
        patience_s, now = self._script.hang_timeout, time.monotonic()
        if patience_s is None or now - self._looked < min(patience_s / _LOOKS, _LONGEST_S):
            return None
        self._looked = now
        signs = ([_size(log) for log in self._logs], self._script.newest())
        if signs != self._signs:
            self._signs, self._stirred = signs, now
        if now - self._stirred < patience_s:
            return None
        where = " nor --progress" if self._script.progress else ""
        return f"nothing new for {patience_s:g} s: no log{where} grew"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
