"""How a fork becomes what a new Python would be: files, streams, command line, program and end."""

import atexit
import ctypes
import fcntl
import io
import os
import runpy
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14  # linux/prctl.h
kept: list[Any] = []  # what the process before has used: never to be closed by chance
_own = [sys.path[0]]  # where a program's own modules are, at the head of sys.path


def take_files(files: Sequence[int], *, close_fds: bool, passed: Sequence[int] = ()) -> None:
    """Take files for 0, 1 and 2; others are closed, all but those `passed`, or as by exec."""
    for file in passed:
        os.set_inheritable(file, True)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10) for file in files]
    for place, file in enumerate(high):
        os.dup2(file, place)
    for file in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208  # names
        with suppress(OSError):  # the list's own
            if (
                file > 2
                and file not in passed
                and (close_fds or fcntl.fcntl(file, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
            ):
                os.close(file)
    for place, name in enumerate(("stdin", "stdout", "stderr")):
        kept.extend([getattr(sys, name), getattr(sys, f"__{name}__")])
        stream = _stream(place, name, kept[-1])
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stream(place: int, name: str, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a stream as Python makes it at its start."""
    raw = io.FileIO(place, "wb" if place else "rb", closefd=False)
    raw.name = f"<{name}>"
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    return io.TextIOWrapper(
        raw if place and at_once else (io.BufferedWriter if place else io.BufferedReader)(raw),
        encoding=like.encoding,
        errors=like.errors,
        newline="\n" if place else None,
        line_buffering=not at_once and (place == 2 or raw.isatty()),
        write_through=at_once,
    )


def set_command_line(words: Sequence[str]) -> None:
    """Have the kernel tell these words as this process's; raises OSError where it does not."""
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    text = ctypes.create_string_buffer(line, len(line))
    kept.append(text)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    told = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    code, stack, data, env = told[23:25], told[25], told[42:45], told[47:49]  # man 5 proc_pid_stat
    start = ctypes.addressof(text)
    places = [*code, *data, libc.sbrk(0), stack, start, start + len(line), *env]
    layout = struct.pack("11QQIi", *map(int, places), 0, 0, -1)  # struct prctl_mm_map
    size, zero = ctypes.c_ulong(len(layout)), ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_MM, ctypes.c_ulong(_PR_SET_MM_MAP), layout, size, zero):
        raise OSError(ctypes.get_errno(), "the kernel keeps the command line as it is")


def run(words: list[str]) -> int:
    """Run a module or a script as Python does; returns the exit code."""
    try:
        is_safe = words[1] == "-P"
        what, *more = words[1 + is_safe :]
        script = Path.cwd() / what
        _look_in([] if is_safe else [str(Path.cwd() if what == "-m" else script.parent)])
        if what == "-m":
            sys.argv = ["-m", *more[1:]]
            runpy.run_module(more[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [what, *more]
            _run_script(str(script))
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
            return 1
        return (error.code or 0) & 0xFF
    except BaseException as error:  # noqa: BLE001  # as Python does
        told = error.with_traceback(_of_the_program(error.__traceback__))
        sys.excepthook(type(told), told, told.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _look_in(folders: Sequence[str]) -> None:
    sys.path[: len(_own)] = folders
    _own[:] = folders


def _run_script(path: str) -> None:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __loader__=None)
    kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = main
    exec(compile(Path(path).read_bytes(), path, "exec"), main.__dict__)


def _of_the_program(trace: TracebackType | None) -> TracebackType | None:
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    while trace and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


def leave(code: int) -> NoReturn:
    """End as Python does, but for taking the interpreter down."""
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
