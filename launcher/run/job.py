"""What a run directory knows of its SLURM jobs: the files in RUN_DIR/slurm. Asks SLURM nothing.

An array is a folder of run directories, named by task number, and a `slurm` folder of its own.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.errors import RunDirError
from launcher.files import read_json, write_json, write_text
from launcher.run.directory import RunDir
from launcher.run.told import Told

# How an attempt ended. "interrupted": SLURM took the nodes away, by preemption, scancel or because
# one was lost, or somebody stopped it. "mistake": nothing that a restart mends.
Verdict = Literal["completed", "timeout", "interrupted", "failed", "mistake"]


# What job.json says, where it says it, and each line of attempts.jsonl.
_ASKED = {
    **dict.fromkeys(("nproc", "nodes", "spare_nodes", "max_requeues", "max_failures"), int),
    **dict.fromkeys(("recipe", "restart"), str),
    **dict.fromkeys(("array", "exclude"), str | None),
    "array_task": int | None,
    "chain": int,
    "exclude_slow": bool,
    "submitted": int | float,
    "options": dict,
    **dict.fromkeys(("jobs", "overrides", "grid", "templates", "cancelled"), list),
}
_EVENT = {
    **dict.fromkeys(("event", "job", "nodes"), str),
    **dict.fromkeys(("restart", "start"), int),
    "started": int | float,
    "verdict": str | None,
    "code": int | None,
    "step": int,
    "ended": int | float | None,
    "bad_nodes": list,
    "got_on": bool | None,
    "error": str,
}


@dataclass(frozen=True)
class Job:
    """A job that was submitted for a run; a task of an array is one, too."""

    id: str
    submitted: float  # seconds since 1970
    array_task: int | None = None

    @property
    def name(self) -> str:
        """What squeue, scontrol and scancel call it: 12, or 12_3 for a task of an array."""
        return self.id if self.array_task is None else f"{self.id}_{self.array_task}"


@dataclass(frozen=True)
class Attempt:
    """One start of a job, and how it ended; no `verdict` while it runs, or where it vanished."""

    job: str
    restart: int  # SLURM_RESTART_COUNT
    nodes: str  # as SLURM writes them: n[1-2]
    started: float  # seconds since 1970
    verdict: Verdict | None = None
    code: int | None = None  # exit code of the job's script
    step: int = 0  # optimizer steps done at its end, over the whole run
    ended: float | None = None
    bad_nodes: list[str] = field(default_factory=list)  # found in this attempt
    got_on: bool | None = None  # of a script that tells no step
    error: str = ""  # of a script's
    start: int = 0  # which start of the run it is, from 1; 0 where that was not noted


@dataclass(frozen=True)
class SlurmFolder:
    """RUN_DIR/slurm: what was submitted, and what became of it."""

    path: Path

    @classmethod
    def of(cls, run: RunDir) -> "SlurmFolder":
        """Return the folder of a run."""
        return cls(run.path / "slurm")

    @property
    def batch(self) -> Path:
        """The batch script as it was submitted; an array's is in the array's folder."""
        return self.path / "job.sbatch"

    @property
    def node(self) -> Path:
        """What srun starts once on each node."""
        return self.path / "node.sh"

    @property
    def job(self) -> Path:
        """What was asked for (options, processes, budgets, template, profile), and the jobs."""
        return self.path / "job.json"

    @property
    def attempts_file(self) -> Path:
        """One JSON object a line: each start of a job, and each end that it lived to tell."""
        return self.path / "attempts.jsonl"

    @property
    def bad_nodes_folder(self) -> Path:
        """A file for each node that is not to be used again, with the reason."""
        return self.path / "bad-nodes"

    @property
    def not_begun(self) -> Path:
        """Why the last start of the batch script ended before it could begin, in its own words."""
        return self.path / "not-begun.txt"

    @property
    def unfit_folder(self) -> Path:
        """A file for a first node on which the batch script could not begin, and another may."""
        return self.path / "unfit"

    @property
    def untold(self) -> Path:
        """Nodes that a requeued job is to leave out, for as long as SLURM does not know of it."""
        return self.path / "untold.json"

    def output(self, job: str) -> Path:
        """The batch log of a job, by its name (12 or 12_3)."""
        return self.path / f"job-{job}.out"

    def outputs(self) -> list[Path]:
        """Return the batch logs there are, oldest first."""
        return sorted(self.path.glob("job-*.out"), key=lambda path: path.stat().st_mtime)

    def exists(self) -> bool:
        """Whether the run was made by `launcher submit`."""
        return os.path.exists(self.job)  # noqa: PTH110  # the other raises for a name too long

    def asked(self) -> dict[str, Any]:
        """Return what was asked for, {} for a run that was not submitted."""
        asked = read_json(self.job)
        return Told(self.job, asked, _ASKED) if asked else {}

    def jobs(self) -> list[Job]:
        """Return the jobs of this run, oldest first; of an array's folder, the arrays."""
        asked = self.asked()
        task = asked.get("array_task")
        if task is not None:  # the ids of an array are written once, not in each run directory
            asked = self.of_array().asked() | {"own": asked.get("jobs", [])}
        try:
            shared = [Job(**job | {"array_task": task}) for job in asked.get("jobs", [])]
            return shared + [Job(**job) for job in asked.get("own", [])]
        except TypeError as error:
            raise RunDirError(f"`{self.job}` is not the job.json of a run: {error}") from error

    def add_job(self, job: Job) -> None:
        """Note a job that was submitted."""
        asked = self.asked()
        write_json(self.job, asked | {"jobs": [*asked.get("jobs", []), asdict(job)]})

    def add_cancelled(self, names: Iterable[str]) -> None:
        """Note jobs that were told to end: SLURM soon forgets those that had only waited."""
        asked = self.asked()
        write_json(self.job, asked | {"cancelled": [*asked.get("cancelled", []), *names]})

    def cancelled(self) -> set[str]:
        """Return the names of jobs that were told to end; of an array's run, those of the array."""
        asked, found = self.asked(), set()
        if asked.get("array_task") is not None:
            found = set(self.of_array().asked().get("cancelled", []))
        return found | set(asked.get("cancelled", []))

    def of_array(self) -> "SlurmFolder":
        """Return the folder of the array that a run belongs to."""
        return SlurmFolder(self.path.parent.parent / "slurm")

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first."""
        found: list[Attempt] = []
        for line in self._lines():
            if line.pop("event") == "start":
                found.append(Attempt(**line))
            elif found:
                found[-1] = Attempt(**asdict(found[-1]) | line)
        return found

    def start(self, job: str, restart: int, nodes: str) -> None:
        """Note that an attempt starts."""
        attempt = Attempt(job, restart, nodes, time.time(), start=len(self.attempts()) + 1)
        kept = ("job", "restart", "start", "nodes", "started")
        self._append({"event": "start"} | {name: getattr(attempt, name) for name in kept})

    def end(
        self, verdict: Verdict, code: int, step: int, bad_nodes: list[str], **of_script: Any
    ) -> None:
        """Note how the last attempt ended; `of_script` are fields of its that are set."""
        told = {"verdict": verdict, "code": code, "step": step, "bad_nodes": bad_nodes}
        more = {name: value for name, value in of_script.items() if value not in (None, "")}
        self._append({"event": "end"} | told | more | {"ended": time.time()})

    def bad_nodes(self) -> dict[str, str]:
        """Return the nodes that were to blame for a failure, with the reason."""
        files = sorted(self.bad_nodes_folder.glob("*.txt"))
        return {path.stem: path.read_text(encoding="utf-8").strip() for path in files}

    def add_bad_node(self, node: str, reason: str) -> None:
        """Note that a node is to blame for a failure; the job's next start excludes it."""
        self.bad_nodes_folder.mkdir(parents=True, exist_ok=True)
        write_text(self.bad_nodes_folder / f"{node}.txt", f"{reason}\n")

    def forgive(self, node: str) -> None:
        """Take a node off that list: what was wrong with it is wrong with others, too."""
        (self.bad_nodes_folder / f"{node}.txt").unlink(missing_ok=True)

    def words_of_script(self) -> str:
        """Return why the last start of the batch script could not begin, "" where it could."""
        try:
            return self.not_begun.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def blame_unfit(self) -> None:
        """Note, where the batch script has begun, the nodes on which it could not before."""
        self.not_begun.unlink(missing_ok=True)
        for path in self.unfit_folder.glob("*.txt"):
            self.add_bad_node(path.stem, path.read_text(encoding="utf-8").strip())
            path.unlink()
        if self.unfit_folder.exists():
            self.unfit_folder.rmdir()

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.attempts_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            with suppress(ValueError):  # cut short by a full disk or a killed writer
                event = json.loads(line)
                if isinstance(event, dict) and _is_event(event):
                    yield event

    def _append(self, event: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with self.attempts_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _is_event(event: Mapping[str, Any]) -> bool:
    """Whether a line tells of a start or an end, and of nothing that is not known."""
    known = all(key in _EVENT and isinstance(event[key], _EVENT[key]) for key in event)
    needed = (
        {"job", "restart", "nodes", "started"} if event.get("event") == "start" else {"verdict"}
    )
    return known and {"event", *needed} <= event.keys()
