"""slurm/job.sbatch on a real cluster of two nodes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from training import PROJECT, Run, launcher, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
JOB = PROJECT / "slurm" / "job.sbatch"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(cluster: Cluster, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    scripts = str(Path(sys.executable).parent)
    return subprocess.run(
        ["sbatch", "--parsable", f"--chdir={folder}", f"--output={folder}/out.txt", JOB, *words],
        env=os.environ | cluster.env | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_two_nodes_train_what_one_process_trains(cluster: Cluster, tmp_path: Path) -> None:
    job = int(submit(cluster, tmp_path, "digits", "epochs=3").stdout)
    state = cluster.wait(job, "COMPLETED", "FAILED", timeout_s=150)
    said = (tmp_path / "out.txt").read_text()
    assert state == "COMPLETED", said
    launcher("run", "digits", "epochs=3", "--run-dir", "alone", cwd=tmp_path)
    together, alone = Run(tmp_path / "runs" / f"job-{job}"), Run(tmp_path / "alone")
    assert together.result["world_size"] == 4
    assert together.farthest(alone) < 1e-5
    assert together.result["test_correct"] == alone.result["test_correct"]
    # SLURM may say how a job ended before the last of its output is in the file.
    wait_for(lambda: "Done: test accuracy" in (tmp_path / "out.txt").read_text())


def test_a_mistake_fails_the_job(cluster: Cluster, tmp_path: Path) -> None:
    job = int(submit(cluster, tmp_path, "digits", "epoch=3").stdout)
    assert cluster.wait(job, "COMPLETED", "FAILED", timeout_s=60) == "FAILED"
    wait_for(lambda: "did you mean `epochs`?" in (tmp_path / "out.txt").read_text())
