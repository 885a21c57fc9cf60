"""`launcher submit` on a real cluster: what is disturbed ends with the same numbers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from training import RECIPES, Run, launcher, wait_for

from launcher.run_dir import RunDir
from launcher.slurm_job import Attempt, SlurmFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CURVE = RECIPES / "curve.py"
# 80 steps of 0.1 s: long enough to be met in the middle.
WORDS = ["epochs=4", "samples=197", "test_samples=60", "batch_size=10", "step_s=0.1"]
WORDS += ["checkpoint_every=7", "log_every=4", "dropout=0.2", "augment=true", "schedule=true"]
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=4) as running:
        yield running


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

    def wait(self, *states: str, timeout_s: float = 120) -> str:
        try:
            return self.cluster.wait(self.job, *states or ENDS, timeout_s=timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.said}") from error


def submit(cluster: Cluster, folder: Path, *words: object) -> Submitted:
    words = ("submit", *words, "--no-checks", "--run-dir", folder / "r", "--json")
    done = launcher(*words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stderr
    return Submitted(folder / "r", cluster, int(json.loads(done.stdout)["jobs"][0]))


def test_two_nodes_train_what_one_process_trains(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "digits", "epochs=3", "--nodes=2", "--nproc=2")
    assert job.wait() == "COMPLETED", job.said
    launcher("run", "digits", "epochs=3", "--run-dir", "alone", cwd=tmp_path)
    alone = Run(tmp_path / "alone")
    assert job.result["world_size"] == 4
    assert job.farthest(alone) < 1e-5
    assert job.result["test_correct"] == alone.result["test_correct"]
    # SLURM may say how a job ended before the last of its output is in the file.
    wait_for(lambda: "Done: test accuracy" in job.said)
    assert [one.verdict for one in job.attempts] == ["completed"]
