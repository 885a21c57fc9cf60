"""What one node tells of itself while it trains: where its ranks are, and what its GPUs do.

For `launcher watch`, every few seconds: what ranks note by themselves is in memory that machines
which only share a disk may see late.
"""

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from launcher.files import write_json
from launcher.gpus import gpus
from launcher.launch.supervise import Watch
from launcher.run import mark

_AGAIN_S = 10.0
_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total")
_FORM = "--format=csv,noheader,nounits"


class Noted:
    """A watch that notes, too; a disk that is full or lost is found by others."""

    def __init__(
        self,
        watch: Watch,
        path: Path,
        marks: Mapping[int, Path],
        *,
        cpu: bool,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """`also` is called as often as the watch looks."""
        self._watch, self._path, self._marks, self._also = watch, path, marks, also
        self._gpus = None if cpu or not gpus() else _Gpus()
        self._noted = time.monotonic()

    def verdict(self) -> str | None:
        """Note where ranks are, now and then; returns what the watch says."""
        if time.monotonic() - self._noted >= _AGAIN_S:
            self._noted = time.monotonic()
            with suppress(OSError):
                write_json(self._path, self._note())
        self._also()
        return self._watch.verdict()

    def close(self) -> None:
        """Ask nobody any more."""
        if self._gpus:
            self._gpus.close()

    def _note(self) -> dict[str, Any]:
        found = {rank: mark.read(path) for rank, path in self._marks.items()}
        return {
            "time": time.time(),
            "host": socket.gethostname(),
            "ranks": {str(rank): one.steps for rank, one in found.items() if one},
            "gpus": self._gpus.answer() if self._gpus else [],
        }


class _Gpus:
    """Asks `nvidia-smi` and does not wait for it: it may take seconds, or hang."""

    def __init__(self) -> None:
        self._asked: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None
        self._ask()

    def answer(self) -> list[dict[str, float]]:
        """Return what was said since the last time, [] where nothing was; asks again."""
        text = ""
        if self._asked and self._said and self._asked.poll() == 0:
            self._said.seek(0)
            text = self._said.read()
        self.close()
        self._ask()
        return told(text)

    def close(self) -> None:
        """End a question that is open."""
        if self._asked:
            self._asked.kill()
            self._asked.wait()
        if self._said:
            self._said.close()
        self._asked = self._said = None

    def _ask(self) -> None:
        with suppress(OSError):  # there is none: GPUs of another make
            self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the question
            self._asked = subprocess.Popen(
                [*_QUERY, _FORM],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.DEVNULL,
                text=True,
            )


def told(text: str) -> list[dict[str, float]]:
    """Return GPUs from lines of use in percent, and memory in MiB in use and in all."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):  # "[N/A]", where a GPU is cut into instances
            use, memory, total = map(float, line.split(","))
            gigabytes = {"memory_gb": memory, "total_gb": total}
            sizes = {name: round(mib * 2**20 / 1e9, 1) for name, mib in gigabytes.items()}
            found.append({"use": use} | sizes)
    return found
