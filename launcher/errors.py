"""Every error a user can meet: what happened, what to do, and the exit code.

LauncherError            1
├── BadInput             2   a mistake in what was asked: nothing was started, nothing is written
│   ├── RecipeError      2   no such recipe, a broken file, an unknown or wrong hyperparameter
│   ├── DataError        2   data that is missing, empty or of the wrong kind
│   └── RunDirError      2   a run directory that is taken or cannot be written
├── TrainingFailed       1   a process of the run failed
│   ├── NonFiniteLoss    1   the loss, or a weight, became NaN or infinite
│   ├── SampleFailed     1   a sample could not be loaded
│   ├── TooLarge         1   a micro-batch did not fit, and a smaller one may
│   ├── NodeFailed       1   one machine, and no rank of it: it hangs or failed its checks
│   └── PeerFailed       1   another rank failed; this one only noticed
├── BudgetUsedUp         76  a cluster job started again too often, or without getting on
└── Stopped              75  stopped on request, can be resumed (EX_TEMPFAIL of sysexits.h)
    └── Interrupted      130 ended at once, on a second request
"""

from collections.abc import Iterable
from typing import ClassVar

ANOTHER_WAS_NOT = "this rank was ready, and another was not"  # as when a node lacks the data


class LauncherError(Exception):
    """An error with a message for the user and a hint that says what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class BadInput(LauncherError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class RecipeError(BadInput):
    """The recipe, or a hyperparameter of it, is not usable."""


class DataError(BadInput):
    """The data a recipe asks for are missing, empty or of the wrong kind."""


class RunDirError(BadInput):
    """The run directory is taken, missing or cannot be written."""


class TrainingFailed(LauncherError):
    """A process of the run failed."""


class NonFiniteLoss(TrainingFailed):
    """The loss, or a weight, became NaN or infinite in step `step`."""

    def __init__(self, message: str, *, step: int = -1, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.step = step


class SampleFailed(TrainingFailed):
    """A sample could not be loaded.

    `frames` are the user's own of the exception, `trace` is all of it: text, which gets through
    from a data worker. `sample` is which one, "" where only its batch is known.
    """

    def __init__(
        self, message: str, *, frames: str = "", trace: str = "", sample: str = ""
    ) -> None:
        super().__init__(message)
        self.frames, self.trace, self.sample = frames, trace, sample


class TooLarge(TrainingFailed):
    """Memory was too small for a micro-batch; `smaller` is the size to try next."""

    def __init__(self, message: str, smaller: int) -> None:
        super().__init__(message)
        self.smaller = smaller


class NodeFailed(TrainingFailed):
    """A machine is the cause, and no rank of it: it hangs or failed its checks.

    `own_fault`: what is wrong is the machine's own, as far as it can tell; not the network's.
    """

    def __init__(self, message: str, *, hint: str | None = None, own_fault: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.own_fault = own_fault


class PeerFailed(TrainingFailed):
    """Another rank failed and this one had to stop; never the first cause."""


class BudgetUsedUp(LauncherError):
    """A cluster job started again too often, or without getting on."""

    exit_code = 76


class Stopped(LauncherError):
    """The run stopped on request at a step boundary and can be resumed."""

    exit_code = 75


class Interrupted(Stopped):
    """The run was ended at once; it goes on from its last checkpoint."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the start of a hint that has the nearest known name in it, "" where none is near."""
    near = nearest(name, known)
    return f"did you mean `{near}`? " if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another, None where none is near."""
    from difflib import get_close_matches  # noqa: PLC0415  # only for those who mistype

    return next(iter(get_close_matches(name, list(known), n=1)), None)
