"""`launcher.start`: a run as a child process of this program."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.child.process import Child
from launcher.child.words import Asked, words_for_script, words_of
from launcher.cli.run import run as command
from launcher.errors import BadInput
from launcher.files import read_json
from launcher.run.config import new_run_path
from launcher.run.directory import RunDir
from launcher.run.listing import rows_of


class StartedRun:
    """A run that this program has started: it ends at the latest when this program does."""

    def __init__(self, child: Child, path: Path) -> None:
        self._child = child
        self.path = path  # the run directory

    def __repr__(self) -> str:
        """Tell where it is and how it is."""
        return f"StartedRun({str(self.path)!r}, state={self.state!r})"

    @property
    def state(self) -> str:
        """One of running, completed, stopped, failed; or killed, where it ended without a word."""
        answer = self._child.answer
        return "running" if answer is None else str(answer["state"])

    @property
    def exit_code(self) -> int | None:
        """What `launcher run` ended with, None while it runs."""
        answer = self._child.answer
        return None if answer is None else int(answer["exit_code"])

    @property
    def error(self) -> str | None:
        """What ended the run, in words; None while it runs, and where it has completed."""
        answer = self._child.answer
        return None if answer is None else answer.get("error")

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json says; None while it runs, and where the run left none."""
        return read_json(RunDir(self.path).result)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the reports so far: the rows of metrics.jsonl, the oldest first."""
        return list(rows_of(RunDir(self.path)))

    def wait(self, timeout: float | None = None) -> "StartedRun":
        """Return this run once it has ended, however that was; `timeout` is in seconds.

        Ctrl-C stops the run, and is raised when it has ended; a second one ends it at once. Raises
        BadInput for a mistake in what was asked (nothing is left then), and TimeoutError.
        """
        answer = self._child.wait(timeout)
        if answer["exit_code"] == BadInput.exit_code:
            raise BadInput(str(answer["error"]), hint=answer.get("hint"))
        return self

    def stop(self) -> None:
        """Ask the run to stop after its step, with a checkpoint: `wait` then returns it "stopped".

        Does not wait. Once more, and the run ends at once.
        """
        self._child.ask()


def start(
    what: str | os.PathLike[str] | None = None,
    /,
    *,
    script_args: Iterable[Any] = (),
    hyperparameters: Mapping[str, Any] | None = None,
    wait: bool = True,
    quiet: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    **keywords: Any,
) -> StartedRun:
    """Run a recipe (by name or path) or a script, as `launcher run` does, and return it finished.

    A keyword that is an option of `launcher run` is that option: `nproc=2`, `cpu=True`,
    `tags=["a"]`. Any other is a hyperparameter, and so is all in `hyperparameters`, for those that
    have the name of an option. For a script `script_args` are its words, and `module="pkg.train"`
    may be in the place of a path.

    The run is a child process, which ends with this one; from any thread, several at once, and
    nothing global is changed. What it says appears on stdout unless it is to be `quiet`. With
    `wait=False` the run that is returned goes on: see its `wait` and `stop`.

    A run that fails is returned, with its `error`. Raises BadInput for a mistake in what was asked;
    nothing is left then. Ctrl-C stops the run, and is raised when it has ended.
    """
    asked = Asked(what, keywords, hyperparameters or {}, words_for_script(script_args))
    words = words_of(command, asked)
    path = Path(run_dir or new_run_path(asked.name)).absolute()
    started = StartedRun(Child(["run", f"--run-dir={path}", *words], quiet=quiet), path)
    return started.wait() if wait else started
