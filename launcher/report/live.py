"""A page on a terminal that is drawn again every second, until `q` or Ctrl-C."""

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rich.console import Console, RenderableType
from rich.live import Live

_AGAIN_S = 1.0
_MOST_KEYS = 4096


def show(draw: Callable[[int, int], RenderableType]) -> None:
    """Show what `draw` returns for a width and a height; once where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        wide = Console(width=max(console.width, 100), highlight=False)
        wide.print(draw(wide.width, 0))
        return
    with (
        suppress(KeyboardInterrupt),
        _interrupts() as was_told,
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not was_told():
            live.update(draw(console.width, console.height), refresh=True)
            if pressed() & {"q", "Q"}:
                return


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Give whether there was a Ctrl-C: in a finalizer its exception is dropped, as any is there."""
    told = False

    def hear(_number: int, _frame: FrameType | None) -> NoReturn:
        nonlocal told
        told = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: told
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _keys() -> Iterator[Callable[[], set[str]]]:
    """Give what waits a second for keys, without Enter; the terminal is then as it was."""

    def pressed() -> set[str]:
        if not select.select([sys.stdin], [], [], _AGAIN_S)[0]:
            return set()
        # All at once: of what Python has read ahead no `select` tells.
        return set(os.read(sys.stdin.fileno(), _MOST_KEYS).decode(errors="replace"))

    if not sys.stdin.isatty():  # nobody can press a key
        yield lambda: set(select.select([], [], [], _AGAIN_S)[0])
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
