"""What a process of a script said last: the exception that ended it and where, or lines."""

import os
import re
import signal
import sysconfig
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import launcher
from launcher.launch.verdict import death, tail
from launcher.masks import clean
from launcher.script.ends import End

_MOST_BYTES = 1 << 20  # of a log's end
_MOST_LINES = 10
# torch puts the rank in front of each line, once there is a process group.
_RANK = re.compile(r"^\[rank\d+\]: ?")
_BEGIN = "Traceback (most recent call last):"
# What is said of a crash: as an exception leaves a process, gloo's threads may bring one about.
_CRASH = ("Fatal Python error: ", "terminate called ")
_FRAME = re.compile(r'  File "(?P<file>.*)", line \d+')
_NOT_ITS_OWN = (
    *("site-packages", "dist-packages", "<frozen "),
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")),
    str(Path(launcher.__file__).parent) + os.sep,
)
# Errors that say only that another process has gone: gloo's and NCCL's words.
_LOST = re.compile(
    r"DistBackendError|DistNetworkError|DistStoreError|Connection closed by peer"
    r"|Connection reset by peer|Broken pipe|\bgloo\b"
)


class LastWords(NamedTuple):
    """What a process said at its end."""

    what: str  # in one line
    lines: str  # the frames in its own files and the error, or the end of its log
    raised: bool  # an exception ended it
    lost_a_peer: bool  # it failed because another had


def last_words(log: Path, end: End) -> LastWords:
    """Return what a process said at its end, in the part of its log that is of this start."""
    how = death(end.code) if end.code < 0 else f"it ended with exit code {end.code}"
    crashed = end.code in (-signal.SIGABRT, -signal.SIGSEGV)
    found = _traceback(log, end.log_from) if end.code == 1 or crashed else []
    frames, error = _parts(found) if found else ([], [])
    if not found or (crashed and len(error) > _MOST_LINES):  # it went on after that one
        lines = clean(tail(log, _MOST_LINES, end.log_from))
        return LastWords(how, lines, raised=False, lost_a_peer=False)
    own = [frame for frame in frames if not any(place in frame[0] for place in _NOT_ITS_OWN)]
    shown = [line for frame in own or frames[-1:] for line in frame]
    lines = "\n".join([*shown[-_MOST_LINES:], *error[:_MOST_LINES]])
    what = clean(error[0]) + f"; then {how}" * crashed
    return LastWords(what, clean(lines), True, bool(_LOST.search("\n".join(error))))


def _traceback(log: Path, since: int) -> list[str]:
    """Return the lines of the last traceback of a log, [] where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - _MOST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [_RANK.sub("", line) for line in text.splitlines()]
    begins = [at for at, line in enumerate(lines) if line == _BEGIN]
    last = lines[begins[-1] + 1 :] if begins else []
    return list(takewhile(lambda line: not line.startswith(_CRASH), last))


def _parts(lines: list[str]) -> tuple[list[list[str]], list[str]]:
    """Return the frames of a traceback, each with its lines of source, and the error behind them.

    What an exit handler says afterwards cannot be told from an error of several lines.
    """
    frames: list[list[str]] = []
    for at, line in enumerate(lines):
        if _FRAME.match(line):
            frames.append([line])
        elif line.startswith("  ") and frames:
            frames[-1].append(line)
        else:
            return frames, lines[at:]
    return frames, ["it ended in the middle of its traceback"]
