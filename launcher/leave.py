"""How a process leaves once all it has to say is written down: within seconds, whatever runs on."""

import atexit
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from launcher.processes import kill_children

_PATIENCE_S = 5.0  # for threads and exit handlers of the recipe's


def leave(
    code: int, last: Callable[[], None] | None = None, *, unguarded: bool = False
) -> NoReturn:
    """End this process with an exit code, after `last` and whatever was registered for the exit.

    Never by taking the interpreter down: threads, libraries and groups of processes hang, abort or
    complain at that, and nothing that they say then would be news of the run. Where it is
    `unguarded`, its children go with it.
    """
    watch = threading.Thread(target=_leave_at_last, args=(code, unguarded), daemon=True)
    watch.start()
    with suppress(OSError, ValueError):  # where C code keeps the interpreter's lock
        faulthandler.dump_traceback_later(2 * _PATIENCE_S, exit=True)
    try:
        if last:
            last()
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads; no other way
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # data workers are ended now
        atexit._run_exitfuncs()
    finally:
        _end(code, unguarded)


def _leave_at_last(code: int, unguarded: bool) -> None:
    time.sleep(_PATIENCE_S)
    own = (threading.main_thread(), threading.current_thread())
    names = [t.name for t in threading.enumerate() if t not in own and not t.daemon]
    what = f"what still runs: {', '.join(names)}" if names else "what its end waits for"
    with suppress(OSError, ValueError):
        print(f"WARNING: this process leaves without {what}", flush=True)
    _end(code, unguarded)


def _end(code: int, unguarded: bool) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if unguarded:
        kill_children(os.getpid())
    ctypes.CDLL(None).fflush(None)  # what C code has said
    os._exit(code)
