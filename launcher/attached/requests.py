"""Requests to stop: signals that set a flag, and are heard by whom the script has for them, too."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from launcher.errors import BadInput

STOP_SIGNAL = "LAUNCHER_STOP_SIGNAL"  # environment variable: the name of one more signal


class Requests:
    """Whether this process was asked to stop, by SIGTERM or SIGUSR1; read between steps."""

    def __init__(self) -> None:
        """Listen from now on; raises BadInput in a thread, to which Python gives no signals."""
        if threading.current_thread() is not threading.main_thread():
            raise BadInput(
                f"`launcher.attach` was called in the thread `{threading.current_thread().name}`: "
                "requests to stop are signals, which only the main thread hears",
                hint="call it in the main thread, before others are started",
            )
        self.heard = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        for number in sorted({signal.SIGTERM, signal.SIGUSR1, *_asked_for()}):
            self._before[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if os.getpid() == self._process:
            self.heard = True
        elif number == signal.SIGTERM:  # a fork, as data workers are: who made it ends it
            signal.signal(number, before or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if callable(before):
            before(number, frame)

    def close(self) -> None:
        """Leave signals to whom they were before, but where somebody else has taken them since."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, before or signal.SIG_DFL)


def _asked_for() -> set[signal.Signals]:
    """Return the signal that the launcher was told to send."""
    name = os.environ.get(STOP_SIGNAL, "").upper().removeprefix("SIG")
    try:
        return {signal.Signals[f"SIG{name}"]} if name else set()
    except KeyError as error:
        raise BadInput(f"{STOP_SIGNAL}={name} is no signal", hint="TERM, USR1 or USR2") from error
