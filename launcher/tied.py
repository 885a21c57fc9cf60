"""A command that a program has started: it stops when the program asks, and does not outlive it.

The program holds the other end of a pipe: a byte asks to stop, its end says that the program has
gone. No signal of the kernel's says so: that one follows the thread which has started a process.
"""

import os
import select
import signal
import threading
import time

TIED = "LAUNCHER_TIED"  # environment variable: the descriptor of the pipe's end to read from
_LOOK_S = 0.5  # between two looks at the parent: a child that it forked may hold the pipe, too
_SOON_S = 0.05  # until a request is heard
_PATIENCE_S = 15.0  # for a run whose program has gone: it may save, nobody waits for it


def stay_tied() -> None:
    """Have this process heed the program that has started it, where one has."""
    if told := os.environ.pop(TIED, None):
        pipe = int(told)
        os.set_inheritable(pipe, False)
        words = (pipe, os.getppid())
        threading.Thread(target=_heed, args=words, name="tied", daemon=True).start()


def _heed(pipe: int, parent: int) -> None:
    """Pass requests on as SIGTERM, until the program has gone; then end this process."""
    requests, has_gone = 0, False
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while not has_gone:
        if ready.poll(1000 * (_SOON_S if requests else _LOOK_S)):
            said = os.read(pipe, 1)
            requests += len(said)
            has_gone = not said
        has_gone = has_gone or os.getppid() != parent
        # While nobody listens yet, SIGTERM would be the end of a run that is about to begin.
        if requests and callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)
            requests -= 1
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(_PATIENCE_S)
