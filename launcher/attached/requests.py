"""Requests to stop: signals that set a flag, and are heard by whom the script has for them, too."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from launcher.errors import BadInput


class Requests:
    """Whether this process was asked to stop, by SIGTERM or SIGUSR1; read between steps."""

    def __init__(self, also: str) -> None:
        """Listen from now on, `also` to a signal of that name.

        Raises BadInput in a thread: Python gives signals to the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise BadInput(
                f"`launcher.attach` was called in the thread `{threading.current_thread().name}`: "
                "requests to stop are signals, which only the main thread hears",
                hint="call it in the main thread, before others are started",
            )
        self.heard = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        for number in sorted({signal.SIGTERM, signal.SIGUSR1, signal.Signals[f"SIG{also}"]}):
            self._before[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if os.getpid() == self._process:
            self.heard = True
        elif number == signal.SIGTERM:  # a fork, as data workers are: who made it ends it
            signal.signal(number, before or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
