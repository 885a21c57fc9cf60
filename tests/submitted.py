"""Runs that were submitted to a test cluster: meet them, wait for them, compare them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_cluster import Cluster
from training import RECIPES, Run, launcher, wait_for

from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder

CURVE = RECIPES / "curve.py"
WORDS = ["epochs=4", "samples=197", "test_samples=60", "batch_size=10"]  # 80 steps
WORDS += ["checkpoint_every=7", "log_every=4", "dropout=0.2", "augment=true", "schedule=true"]
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass(frozen=True)
class Submitted(Run):
    """A run on the cluster, and its job."""

    cluster: Cluster
    job: int

    @property
    def said(self) -> str:
        """The batch log."""
        log = SlurmFolder(self.path / "slurm").output(str(self.job))
        return log.read_text() if log.exists() else ""

    @property
    def attempts(self) -> list[Attempt]:
        return SlurmFolder.of(RunDir(self.path)).attempts()

    @property
    def step(self) -> int:
        """The last step that was reported."""
        rows = self.rows
        return rows[-1]["step"] if rows else 0

    @property
    def completed(self) -> bool:
        result = self.path / "result.json"
        return result.exists() and self.result["state"] == "completed"

    @property
    def state(self) -> str:
        """SLURM's word for the job."""
        return self.cluster.state(self.job)

    def log(self, rank: int) -> list[str]:
        """What a process said."""
        return RunDir(self.path).log(rank).read_text().splitlines()

    def wait(self, *states: str, timeout_s: float = 300) -> str:
        try:
            return self.cluster.wait(self.job, *states or ENDS, timeout_s=timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.said}") from error


def submit(
    cluster: Cluster,
    folder: Path,
    *words: object,
    env: Mapping[str, str] | None = None,
    after: Sequence[object] = (),
) -> Submitted:
    """Submit a run in a folder; `after` are the words for a script."""
    words = ("submit", *words, "--no-checks", "--run-dir", folder / "r", "--json")
    words += ("--", *after) if after else ()
    done = launcher(*words, cwd=folder, env=cluster.env | dict(env or {}))
    assert done.returncode == 0, done.stderr
    return Submitted(folder / "r", cluster, int(json.loads(done.stdout)["jobs"][0]))


def check_same(job: Submitted, undisturbed: Run) -> None:
    """It must have ended with the same bytes and the same reports, none lost and none doubled."""
    kept = ("split", "epoch", "step", "samples", "loss")
    here, there = ([[row[name] for name in kept] for row in one.rows] for one in (job, undisturbed))
    assert here == there
    assert job.weight_bytes == undisturbed.weight_bytes


def two_nodes(cluster: Cluster, folder: Path, *words: object, step_s: float = 0.15) -> Submitted:
    """A job that is slow enough to be met in the middle."""
    return submit(cluster, folder, CURVE, *WORDS, f"step_s={step_s}", "--nodes=2", *words)


def in_mid_epoch(job: Submitted) -> Submitted:
    """A job that has come to somewhere in its second epoch."""
    wait_for(lambda: job.step >= 28 or job.completed, timeout_s=240, every_s=0.3)
    assert 0 < job.step < 60, job.said
    return job


def verdicts(job: Submitted) -> list[str | None]:
    return [one.verdict for one in job.attempts]
