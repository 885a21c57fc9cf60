"""`launcher.submit`: a run, or a grid of them, as a job of a SLURM cluster."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.child.process import Child
from launcher.child.words import Asked, words_for_script, words_of
from launcher.cli.slurm import submit as command
from launcher.errors import BadInput, LauncherError
from launcher.files import read_json
from launcher.remote import place as places
from launcher.run.config import new_run_path
from launcher.run.directory import RunDir
from launcher.run.listing import rows_of
from launcher.slurm import control
from launcher.slurm.status import Status, runs_of, statuses


class SubmittedRun:
    """A run that was submitted: it goes on without this program."""

    def __init__(self, path: Path, jobs: Iterable[str]) -> None:
        self.path = path  # the run directory; of a grid the folder that holds those of its runs
        self.jobs = list(jobs)  # ids, of a chain several

    def __repr__(self) -> str:
        """Tell where it is and which jobs it has."""
        return f"SubmittedRun({str(self.path)!r}, jobs={self.jobs!r})"

    @property
    def runs(self) -> "list[SubmittedRun]":
        """The runs of a grid; else this one."""
        return [SubmittedRun(path, self.jobs) for path in runs_of(self.path)]

    def status(self) -> Status:
        """Return how it is, as `launcher status` tells it: `state`, `step`, `error` and more.

        Raises BadInput for a grid, which has `runs`, and where SLURM cannot be asked.
        """
        if place := places.of(self.path):
            found = [Status(**row | {"run_dir": str(self.path)}) for row in places.rows_of([place])]
        else:
            found = statuses(runs_of(self.path))
        if len(found) != 1 or found[0].run_dir != str(self.path):
            raise BadInput(f"`{self.path}` is a grid of runs", hint="ask each of its `runs`")
        return found[0]

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json says; None where there is none yet."""
        return read_json(RunDir(self.path).result)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the reports so far: the rows of metrics.jsonl, the oldest first."""
        return list(rows_of(RunDir(self.path)))

    def cancel(self) -> None:
        """Cancel its jobs, as `launcher cancel` does: what runs saves a checkpoint."""
        if place := places.of(self.path):
            places.told(place, ["cancel", place.path])
        else:
            control.cancel(runs_of(self.path))


def submit(
    what: str | os.PathLike[str] | None = None,
    /,
    *,
    script_args: Iterable[Any] = (),
    hyperparameters: Mapping[str, Any] | None = None,
    quiet: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    **keywords: Any,
) -> SubmittedRun:
    """Submit a recipe (by name or path) or a script, as `launcher submit` does.

    Keywords are as those of `launcher.start`, with the options of `launcher submit`: `nodes=2`,
    `gpus_per_node=8`, `time="4:00:00"`, `sbatch={"hint": "nomultithread"}`,
    `grid={"learning_rate": [0.1, 0.3]}`. With `local=True` it returns when the run has ended here.

    Raises BadInput for a mistake in what was asked, and LauncherError where SLURM takes no job;
    nothing is left then.
    """
    asked = Asked(what, keywords, hyperparameters or {}, words_for_script(script_args))
    words = words_of(command, asked)
    path = Path(run_dir or new_run_path(asked.name)).absolute()
    answer = Child(["submit", f"--run-dir={path}", *words], quiet=quiet).wait()
    if answer["exit_code"] and answer.get("run_dir") is None:
        kind = BadInput if answer["exit_code"] == BadInput.exit_code else LauncherError
        raise kind(str(answer["error"]), hint=answer.get("hint"))
    return SubmittedRun(path, answer.get("jobs", []))
