"""A console that may go away: what is said goes on to the log, and nobody fails for saying it."""

import io
import sys
from contextlib import suppress
from typing import Any, TextIO


class _Outlet(io.BufferedIOBase):
    """Bytes for a console, as long as there is one, and for a log."""

    def __init__(self, console: TextIO, log: TextIO | None) -> None:
        self.console: TextIO | None = console
        self._log = log
        self.name = getattr(console, "name", "<console>")

    def writable(self) -> bool:
        """Say that it is."""
        return True

    def write(self, data: Any) -> int:
        """Write to both at once; a console that refuses is gone for good."""
        written = bytes(data)
        self._to_log(written)
        try:
            self._to_console(written)
        except (OSError, ValueError) as error:
            self.console = None
            self._to_log(f"\nWARNING: the console is gone ({error})\n".encode())
        return len(written)

    def _to_console(self, data: bytes) -> None:
        if self.console is None:
            return
        if isinstance(self.console, io.TextIOWrapper):
            self.console.buffer.write(data)
        else:  # of a notebook, or what a progress bar has put there
            self.console.write(data.decode(self.console.encoding or "utf-8", "replace"))
        self.console.flush()

    def _to_log(self, data: bytes) -> None:
        if self._log:
            with suppress(OSError, ValueError):  # a full disk, or it is closed
                self._log.flush()
                self._log.buffer.write(data)
                self._log.buffer.flush()

    def isatty(self) -> bool:
        """Say what the console says."""
        return self.console is not None and self.console.isatty()

    def fileno(self) -> int:
        """Return the console's."""
        return (self.console or sys.__stdout__ or sys.stdout).fileno()


class Lasting(io.TextIOWrapper):
    """A whole text stream to a console, and to a log; to the log alone once the console is gone."""

    def __init__(self, console: TextIO, log: TextIO | None = None) -> None:
        """Write as the console does; what its encoding lacks is no reason for a run to fail."""
        self._outlet = _Outlet(console, log)
        errors = getattr(console, "errors", None)
        super().__init__(
            self._outlet,
            encoding=console.encoding or "utf-8",
            errors="backslashreplace" if errors in (None, "strict") else errors,
            line_buffering=True,
            write_through=True,
        )
        self.mode = "w"  # type: ignore[misc]  # as in sys.stdout

    @property
    def console(self) -> TextIO | None:
        """Where it writes to, None where it is gone; may be replaced."""
        return self._outlet.console

    @console.setter
    def console(self, console: TextIO) -> None:
        self._outlet.console = console


def last_without_console() -> None:
    """Let this process say things although its console may go away: it has a run to end."""
    stdout, stderr = sys.stdout, sys.stderr
    if (stdout, stderr) == (sys.__stdout__, sys.__stderr__):  # nobody else has replaced them
        sys.stdout, sys.stderr = Lasting(stdout), Lasting(stderr)
