"""A command of ours as a child process: tied to this one, heard, and ended with an answer."""

import atexit
import codecs
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from launcher.around import RUN_DIR
from launcher.processes import without_ours, without_world
from launcher.tied import TIED

_LAST_WORDS_S = 2.0  # for what is still in the pipe when the command has ended
_printing = threading.Lock()


class Child:
    """`launcher WORDS --json`, which has begun; what it says appears on this program's stdout.

    It has a session of its own, so that a terminal's Ctrl-C reaches only this program. It ends
    when this program does. Nothing that is global to this program is touched.
    """

    def __init__(self, words: Sequence[str], *, quiet: bool) -> None:
        self._done, self._tied = threading.Event(), threading.Lock()
        self._answer: dict[str, Any] = {}
        at = words.index("--") if "--" in words else len(words)
        argv = [*words[:at], "--json", *words[at:]]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the command runs
        pipe, self._tie = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launcher", *argv],
                env=_environment() | {TIED: str(pipe)},
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.PIPE,
                pass_fds=[pipe],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._tie)
            self._said.close()
            raise
        finally:
            os.close(pipe)
        _stay_silent_at_the_end()
        hear = threading.Thread(target=self._hear, args=(quiet,), name="launcher", daemon=True)
        hear.start()
        threading.Thread(target=self._await, args=(hear,), name="launcher", daemon=True).start()

    @property
    def answer(self) -> Mapping[str, Any] | None:
        """The object that the command ended with, None while it runs."""
        return self._answer if self._done.is_set() else None

    def ask(self) -> None:
        """Ask the command to stop; once more, and it ends at once."""
        with self._tied, suppress(OSError):  # it is about to end
            if not self._done.is_set():
                os.write(self._tie, b".")

    def wait(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Return the answer once the command has ended; Ctrl-C stops it, and is raised then.

        Raises TimeoutError where it has not ended in `timeout` seconds.
        """
        try:
            if not self._done.wait(timeout):
                raise TimeoutError(f"it has not ended in {timeout:g} s")
        except KeyboardInterrupt:
            while not self._done.is_set():
                with suppress(KeyboardInterrupt):  # again: it ends at once
                    self.ask()
                    self._done.wait()
            raise
        return self._answer

    def _hear(self, quiet: bool) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        stream = self._process.stderr
        assert stream is not None
        with stream:
            while said := os.read(stream.fileno(), 1 << 16):
                if not quiet:
                    _show(decode(said))

    def _await(self, hear: threading.Thread) -> None:
        code = self._process.wait()
        hear.join(_LAST_WORDS_S)
        with self._said as file:
            file.seek(0)
            answer = _object(file.read())
        if not answer:
            end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            answer = {"state": "killed", "exit_code": code, "error": f"`launcher` {end}"}
        with self._tied:
            self._answer = answer
            self._done.set()
            os.close(self._tie)


def _environment() -> dict[str, str]:
    """Return this program's environment, but for its own place in a run that it is a part of."""
    kept = without_ours(os.environ)
    return without_world(kept) if RUN_DIR in kept else kept


def _object(said: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        told = json.loads(said)
        if isinstance(told, dict):
            return told
    return {}


def _show(text: str) -> None:
    """Print what a command says, as this program prints now: in a notebook, or in a test."""
    with _printing, suppress(OSError, ValueError, AttributeError):  # closed, or None
        sys.stdout.write(text)
        sys.stdout.flush()


@cache
def _stay_silent_at_the_end() -> None:
    """Have no thread hold stdout when Python ends: it would be an abort."""
    atexit.register(_printing.acquire)
