"""A page on a terminal that is drawn again every second, until `q` or Ctrl-C."""

import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, RenderableType
from rich.live import Live

_AGAIN_S = 1.0


def show(draw: Callable[[int, int], RenderableType]) -> None:
    """Show what `draw` returns for a width and a height; once where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        wide = Console(width=max(console.width, 100), highlight=False)
        wide.print(draw(wide.width, 0))
        return
    with (
        suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(draw(console.width, console.height), refresh=True)
            if pressed() in ("q", "Q"):
                return


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Give what waits a second for a key, without Enter; the terminal is then as it was."""

    def pressed() -> str:
        ready = select.select([sys.stdin], [], [], _AGAIN_S)[0]
        return sys.stdin.read(1) if ready else ""

    if not sys.stdin.isatty():  # nobody can press a key
        yield lambda: str(select.select([], [], [], _AGAIN_S) and "")
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
