"""What a script gets from the launcher in three lines: where it goes on, when to save and to stop.

    run = launcher.attach(save=save, load=load)
    for step in run.steps(10_000):
        run.log(step, loss=train_one_step(step))

Started by the launcher, its environment says where the run directory is, and who takes part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.attached.course import Course, Function
from launcher.attached.steps import Steps, whole
from launcher.errors import BadInput


def attach(
    save: Function | None = None,
    load: Function | None = None,
    *,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002  # the word that users know
    checkpoint_every: int | None = 1000,
    keep_last: int = 3,
) -> "Attached":
    """Make this script a run, or go on with one. Imports nothing of torch; not collective.

    `save` and `load` are functions of a folder that are called on all ranks: `save` fills it, each
    rank with files of its own or rank 0 alone, and `load` takes the state from it. A checkpoint is
    saved every `checkpoint_every` steps (None: only at a stop and at the end), and the newest
    `keep_last` are kept. The launcher gives a run directory; without it `dir` says which, or one
    is made below `runs`, for one process alone. A run that is there goes on.

    SIGTERM and SIGUSR1 are from now on requests to stop; a handler that the script has for them is
    called, too. Raises BadInput in any thread but the main one, for options that do not go
    together, and where several processes were not told a `dir`; RunDirError where that is no
    script's run, or in use.
    """
    if (save is None) != (load is None):
        raise BadInput(
            "`launcher.attach` needs both `save` and `load`, or none of them",
            hint="what nobody loads need not be saved; `run.saving` and `run.checkpoint` go alone",
        )
    if _Here.run:
        raise BadInput("`launcher.attach` was called twice", hint="a process is one run")
    every = None if checkpoint_every is None else whole(checkpoint_every, "checkpoint_every", 1)
    kept = whole(keep_last, "keep_last", 1)
    _Here.run = Attached(save, load, None if dir is None else Path(dir), every, kept)
    return _Here.run


class Attached:
    """The run that a script is, as one of its processes sees it: see `launcher.attach`."""

    def __init__(
        self,
        save: Function | None,
        load: Function | None,
        folder: Path | None,
        every: int | None,
        keep_last: int,
    ) -> None:
        self._save, self._load, self._every = save, load, every
        self._course = Course(folder, keep_last)
        self._looped = False
        self._asked = 0  # how often `should_stop` was

    @property
    def dir(self) -> Path:
        """The run directory, an absolute path."""
        return self._course.run.path

    @property
    def rank(self) -> int:
        """This process among all of the run, from 0."""
        return self._course.place.rank

    @property
    def world_size(self) -> int:
        """How many processes the run has."""
        return self._course.place.world_size

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint that is whole, None where there is none.

        Not collective: the first time each rank looks for itself, and verifies every byte.
        """
        return self._course.checkpoint()

    def steps(self, total: int, checkpoint_every: int | None = None) -> Steps:
        """Load the newest checkpoint, and return the steps that are left of `total`.

        Collective, and so is each step: all ranks make the same ones. Between two steps a
        checkpoint is saved where it is due, and about once a second ranks agree whether one was
        asked to stop: then all save and leave, with exit code 75. At the end, or where the loop is
        left by `break`, the last checkpoint is saved and the run is completed. An exception saves
        and completes nothing.

        Three saves in a row that fail raise TrainingFailed, and so does the last one; one is a
        warning. Raises BadInput for a second loop.
        """
        total = whole(total, "steps(total)", 0)
        every = self._every
        if checkpoint_every is not None:
            every = whole(checkpoint_every, "checkpoint_every", 1)
        if self._looped:
            raise BadInput("`run.steps` was called twice", hint="a run has one loop over its steps")
        self._looped = True
        return Steps(self._course, self._save, self._course.begin(self._load), total, every)

    def log(self, step: int, **numbers: Any) -> None:
        """Log numbers of a step: on the console, in metrics.jsonl, and so in W&B and reports.

        Only rank 0 does anything; not collective. A number is Python's, or a tensor or an array of
        one element; one that is not finite is null in metrics.jsonl. Steps come in order; one that
        was logged before the run was stopped is not logged again. Raises BadInput for others.
        """
        self._course.log(whole(step, "the step of run.log", 0), numbers)

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Give a folder to save into, which becomes the checkpoint after `step` steps; collective.

        All ranks may write files; it appears whole once all are done. Where one fails there is no
        checkpoint: it raises its own error, and the others PeerFailed.
        """
        step = whole(step, "the step of run.saving", 0)
        with self._course.saving(step) as folder:
            yield folder
        self._course.made(max(self._course.done, step))

    def should_stop(self) -> bool:
        """Return whether any rank was asked to stop, the same on all ranks; collective.

        For loops of other shapes: call it after each step, on all ranks. They talk about once a
        second; in between it costs nothing. Whoever hears True saves and ends.
        """
        self._course.mark()
        self._course.marker.tick()
        self._course.marker.trains()
        self._asked += 1
        stopping = self._course.asked(self._asked)
        if stopping:
            self._course.ending.stops_itself()
        return stopping

    def tick(self, step: int | None = None) -> None:
        """Say that this rank gets on, and how many steps are done; not collective.

        For loops of other shapes: whoever watches the run takes ranks that do not tick for hung.
        """
        self._course.mark()
        self._course.marker.tick()
        if step is not None:
            self._course.made(whole(step, "the step of run.tick", 0))
        self._course.marker.step(max(self._course.done, 1))
        self._course.marker.trains()


class _Here:
    """The run of this process."""

    run: Attached | None = None
