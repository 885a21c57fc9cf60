"""How a process of a script ends: told in its record, and for its run where nobody else does."""

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from launcher.attached.agreement import Agreement, leave_groups
from launcher.attached.alone import Keeper
from launcher.errors import Stopped
from launcher.run.directory import RunDir
from launcher.run.record import Record


class Ending:
    """The record of one process. Whatever Python tells at its exit is in it."""

    def __init__(
        self, run: RunDir, agreement: Agreement, keeper: Keeper | None, steps: Callable[[], int]
    ) -> None:
        """`steps` tells how many are done."""
        self._run, self._agreement, self._keeper, self._steps = run, agreement, keeper, steps
        self.in_loop = False  # whether steps are left to be made
        self._before = self._error = _uncaught()  # an older one, of an interpreter or a notebook
        self._record = Record.started(agreement.place.rank)
        self._record.write(run)
        atexit.register(self._leave)

    def stop(self, why: str) -> NoReturn:
        """Leave this process after a request, with the exit code that says so."""
        self._record.end("stopped", Stopped(why))
        self._record.write(self._run)
        atexit.register(leave_groups)
        raise SystemExit(Stopped.exit_code)

    def stops_itself(self) -> None:
        """Note that the script was told to stop: how it leaves is its own affair."""
        if self._record.state == "running":
            self._record.end("stopped", Stopped("stopped on request"))
            self._record.exit_code = 0
            self._record.write(self._run)

    def complete(self) -> None:
        """Note that the run has come to its end. What the script does then is its own affair."""
        self.in_loop = False
        self._record.end("completed")
        self._record.write(self._run)
        self._agreement.close()

    def last_words(self, say: Callable[[], None]) -> None:
        """Do something where nothing can be raised; where it fails this process ends with 1."""
        try:
            say()
        except BaseException as error:  # noqa: BLE001  # or it would go unheard
            traceback.print_exception(error)
            self._error = error

    def _leave(self) -> None:
        """Note how this process ends, as far as Python tells; leave with 1 where it would not."""
        unheard = self._error is not self._before
        error = self._error if unheard else _uncaught()
        if error is not None and error is not self._before:
            self._record.end("failed", error)
            self._record.write(self._run)
        elif self.in_loop and self._record.state == "running":
            self._record.end("failed")
            self._record.error = f"it left its loop, with steps to make, after {self._steps()}"
            self._record.exit_code = 1
            self._record.write(self._run)
        self._agreement.close()
        if self._keeper:
            self._keeper.end(self._record, self._steps())
        if unheard:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(1)


def _uncaught() -> BaseException | None:
    """Return the exception that ends this process, as Python has printed it."""
    return getattr(sys, "last_value", None)
