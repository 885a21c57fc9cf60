"""The process that mirrors one run directory to W&B, as started by `mirror` and `launcher sync`.

It follows metrics.jsonl. So training never waits for W&B, what arrives is what was written, and a
run that is continued goes on where the server is. Offline it writes W&B's own file instead.
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from launcher.files import read_json, write_json
from launcher.masks import clean
from launcher.processes import PARENT, children
from launcher.run.directory import RunDir
from launcher.run.wandb import ENDINGS, Ending, is_scripts_own
from launcher.tracking.mirror import has_rows

if TYPE_CHECKING:
    from launcher.tracking.session import Session

_POLL_S = 0.25


class Told:
    """How the run ended, as the launcher says on standard input; its death ends this process."""

    def __init__(self, word: str = "") -> None:
        """Listen, but where an earlier process has heard the word."""
        self._word = word
        self._heard = threading.Event()
        if word:
            self._heard.set()
        else:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self._word = sys.stdin.readline().strip()
        self._heard.set()

    def within(self, seconds: float) -> Ending | None:
        """Return what was told, waiting for it so long; ends the process for an untrained run."""
        if not self._heard.wait(seconds):
            return None
        if not self._word:
            sys.exit(0)
        return self._word  # type: ignore[return-value]  # `Mirror.close` sends nothing else


def follow(run: RunDir, mode: str, told: Told) -> bool:
    """Mirror a run until it has ended; returns whether all of it is where it was to be."""
    while told.within(_POLL_S) is None and not has_rows(run):
        pass  # importing wandb can wait until training is under way
    if is_scripts_own(read_json(run.wandb_state)):
        return True
    if mode == "online":
        try:
            return _mirror(run, "online", told)
        except Exception as error:  # noqa: BLE001  # the client raises whatever it likes
            say(f"WARNING: W&B fails ({_reason(error)}); from here on the run is recorded offline")
            _start_over(run, told)
    _mirror(run, "offline", told)
    return mode == "offline"


def _start_over(run: RunDir, told: Told) -> None:
    """Become a new process that records offline: a client that has failed may hang for good."""
    for core in children(os.getpid(), recursive=True):
        with suppress(psutil.NoSuchProcess):
            core.kill()
    os.environ.pop("WANDB_SERVICE", None)  # where the client's core was
    os.environ[PARENT] = str(os.getppid())
    start = [sys.executable, "-m", "launcher.node.start", "mirror"]
    os.execv(start[0], [*start, str(run.path), "fallback", told.within(_POLL_S) or ""])  # noqa: S606  # no shell is wanted


def _mirror(run: RunDir, mode: Literal["online", "offline"], told: Told) -> bool:
    from launcher.tracking.session import Session  # noqa: PLC0415  # not before the first row

    session = Session(run, mode)
    _note(run, session, complete=False)
    if session.url:
        say(f"W&B: {session.url}")
    else:
        session.log()
        session.supersede()
    while (ending := told.within(_POLL_S)) is None:
        session.log()
    return _finish(run, session, ending)


def _finish(run: RunDir, session: "Session", ending: Ending) -> bool:
    """End a session; returns whether everything is with the server, or in the file."""
    try:
        session.finish(ending)
    except TimeoutError:
        return False
    if not session.url:
        return True
    complete = session.arrived()
    _note(run, session, complete=complete)
    return complete


def _note(run: RunDir, session: "Session", *, complete: bool) -> None:
    """Keep what is known of the upload, for `launcher sync` and people."""
    write_json(run.wandb_state, {"url": session.url, "complete": complete})


def sync(run: RunDir) -> dict[str, Any]:
    """Send what the server lacks of a run that has ended; returns what is there by its own word."""
    from launcher.tracking.session import Session  # noqa: PLC0415  # as above

    session = Session(run, "online", patient=True)
    state = (read_json(run.result) or {}).get("state", "failed")
    complete = _finish(run, session, ENDINGS[state])
    return {"complete": complete, "sent": session.sent, "url": session.url}


def say(message: str) -> None:
    """Tell the user something; what the client says goes to its log."""
    with suppress(OSError):  # the console is gone
        print(clean(message), flush=True)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main(arguments: list[str]) -> int:
    """Mirror a run directory: RUN_DIR, online, offline, fallback or sync; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # they are for training; here the launcher tells
    path, mode, *word = arguments
    run = RunDir(Path(path))
    if mode != "sync":
        return 0 if follow(run, mode, Told(*word)) else 1
    try:
        answer = sync(run)
    except Exception as error:  # noqa: BLE001  # the client raises whatever it likes
        answer = {"complete": False, "error": _reason(error)}
    say(json.dumps(answer))
    return 0 if answer["complete"] else 1
