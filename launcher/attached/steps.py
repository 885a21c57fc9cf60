"""`run.steps(total)`: the steps that are left, and what happens between them."""

import math
import operator
import sys
import threading
from collections.abc import Iterator

from launcher.attached import leaving
from launcher.attached.course import Course, Function
from launcher.attached.saving import warn
from launcher.errors import BadInput


class Steps:
    """The steps of a run that are left to be made, to be iterated over once."""

    def __init__(
        self, course: Course, save: Function | None, first: int, total: int, every: int | None
    ) -> None:
        self.first, self.total = first, max(first, total)
        self._loop: _Loop | None = _Loop(course, save, first, self.total, every or math.inf)

    def __len__(self) -> int:
        """Return how many were left when the run began."""
        return self.total - self.first

    def __iter__(self) -> Iterator[int]:
        if self._loop is None:
            raise BadInput("the steps of a run are iterated over once", hint="a run has one loop")
        # An object of its own, which nobody but the `for` holds: its end is the end of the loop.
        loop, self._loop = self._loop, None
        return loop


class _Loop:
    """One pass over the steps: what is done between two of them, at the end, and at a `break`."""

    def __init__(
        self, course: Course, save: Function | None, first: int, total: int, every: float
    ) -> None:
        self._course, self._save, self._every = course, save, every
        self._done, self._total = first, total
        self._saved = first  # after which step the newest checkpoint was saved
        self._open, self._in_step = True, False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self._open:
            raise StopIteration
        self._open = False  # and stays so where anything is raised
        if self._in_step:
            self._end_step()
        if self._done == self._total:
            self._complete()
            raise StopIteration
        self._open = self._in_step = True
        self._course.marker.tick()
        return self._done

    def _end_step(self) -> None:
        self._in_step, self._done = False, self._done + 1
        self._course.made(self._done)
        stop = self._course.asked(self._done)
        if self._done == self._total:
            return
        if stop or self._done % self._every == 0:
            self._keep(last=False)
        if stop:
            self._course.stop(saves=self._save is not None)

    def _keep(self, *, last: bool) -> None:
        """Save where there is something new to save; collective."""
        is_new = self._saved != self._done
        if self._save and is_new and self._course.save(self._save, self._done, last=last):
            self._saved = self._done

    def _complete(self) -> None:
        self._keep(last=True)
        self._course.complete()

    def __del__(self) -> None:
        """Complete the run where its loop was left by `break`; an exception completes nothing."""
        if not self._open or not self._in_step:
            return
        self._open = False
        if sys.is_finalizing() or threading.current_thread() is not threading.main_thread():
            return
        ended = leaving.in_order(sys._getframe(1))
        if ended:
            self._done += 1
            self._course.made(self._done)
            self._course.ending.last_words(self._complete)
        elif ended is None:
            warn(
                f"the loop over run.steps() was left in step {self._done}, and its iterator kept: "
                "nothing tells whether by `break` or by an error, so nothing is saved; write "
                "`for … in run.steps(…)`, or what holds the steps, in one line"
            )


def whole(value: object, what: str, least: int) -> int:
    """Return a whole number; raises BadInput for anything else, or one that is too small."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise BadInput(f"{what} is {value!r}, not a whole number from {least} on")
    return number
