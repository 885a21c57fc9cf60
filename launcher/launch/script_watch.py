"""Looks at what a script does while it runs: shows what rank 0 says, and notices a hang."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.launch.supervise import HangWatch
from launcher.recipe.base import Recipe
from launcher.run.directory import RunDir
from launcher.script.script import Script, Sign
from launcher.tracking.mirror import LateMirror

_MOST_BYTES = 1 << 20  # at once
_LOOKS = 20  # in the time without which nothing may happen
_LONGEST_S = 5.0  # between two looks


class Echo:
    """Copies what is added to a log to the console, byte by byte: nobody waits for a console."""

    def __init__(self, log: Path) -> None:
        log.touch()
        self._log = log.open("rb")
        self._log.seek(0, 2)

    def more(self) -> None:
        """Copy what there is."""
        wrote = False
        while data := self._log.read(_MOST_BYTES):
            sys.stdout.buffer.write(data)
            wrote = True
        if wrote:
            sys.stdout.flush()

    def close(self) -> None:
        """Copy the rest."""
        self.more()
        self._log.close()


class ScriptWatch:
    """Judges by the marks of ranks where a script makes them, else by what it writes."""

    def __init__(
        self,
        run: RunDir,
        ranks: Sequence[int],
        script: Script,
        echo: Echo | None,
        mirror: LateMirror | None,
    ) -> None:
        self._echo, self._script, self._mirror = echo, script, mirror
        self._marks = {rank: run.mark(rank) for rank in ranks}
        self._logs = [run.log(rank) for rank in ranks]
        self._by_marks: HangWatch | None = None
        self._looked = self._stirred = time.monotonic()
        self._signs: tuple[list[int], Sign | None] | None = None

    def verdict(self) -> str | None:
        """Return what hangs, None while it gets on."""
        if self._echo:
            self._echo.more()
        if self._mirror:
            self._mirror.look()
        if self._by_marks is None:
            there = {rank: path for rank, path in self._marks.items() if path.exists()}
            if there:
                self._by_marks = self._watch(there)
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
