"""Nodes that cannot train are named and left out, on a real cluster; but not for what all lack."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from submitted import CURVE, WORDS, Submitted, check_same
from submitted import submit as submitted
from training import RECIPES, Run, launcher, wait_for

from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
SLOWED = RECIPES / "slowed.py"
ENDS = ("COMPLETED", "FAILED", "CANCELLED")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Six nodes."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, nodes=6, cpus=4, extra=["MessageTimeout=10"]) as running:
        yield running


def hide(cluster: Cluster, node: str, folder: Path) -> None:
    """Have a node see an empty folder instead, as where a file system is not mounted."""
    enter = ["nsenter", "--target", str(cluster.daemons[node][-1].pid), "--mount"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(folder)], check=True)


def site(folder: Path, *, torch: bool) -> Path:
    """A profile with an environment and a library of its own, all below a folder."""
    (folder / "env" / "bin").mkdir(parents=True)
    (folder / "env" / "bin" / "activate").touch()
    (folder / "env" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "env" / "bin" / "python").chmod(0o755)
    (folder / "broken").mkdir()
    (folder / "broken" / "torch.py").write_text("raise ImportError('libcuda.so.1 is not there')\n")
    (folder / "mark").mkdir()  # a node that does not see it has no torch, either
    (folder / "mark" / "torch").touch() if torch else None
    lines = [
        f"venv = '{folder}/env'",
        f"node_setup = ['[ -e {folder}/mark/torch ] || export PYTHONPATH={folder}/broken',",
        f"              'test -d {folder}/mark']",
    ]
    (folder / "site.toml").write_text("\n".join(lines))
    return folder / "site.toml"


def submit(cluster: Cluster, folder: Path, *words: object) -> int:
    words = ("submit", "digits", "epochs=1", *words, "--run-dir", folder / "runs" / "r", "--json")
    done = launcher(*words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["jobs"][0])


def test_each_kind_of_node_that_cannot_train_is_left_out_and_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    profile = site(tmp_path, torch=True)
    (tmp_path / "runs").mkdir()
    hide(cluster, "n2", tmp_path / "runs")
    hide(cluster, "n3", tmp_path / "env")
    hide(cluster, "n4", tmp_path / "mark")
    words = ["--nodes=3", "--sbatch", "hold", "--max-failures=9"]
    job = submit(cluster, tmp_path, *words, "--profile", profile)
    # The first one is always n1. `sbatch --test-only` knows no --nodelist.
    cluster.run("scontrol", "update", f"JobId={job}", "ReqNodeList=n1")
    cluster.run("scontrol", "release", str(job))
    state = cluster.wait(job, *ENDS, timeout_s=400)
    folder = SlurmFolder(tmp_path / "runs" / "r" / "slurm")
    said = folder.output(str(job)).read_text()
    assert state == "COMPLETED", said
    ends = [(one.nodes, one.verdict, one.bad_nodes) for one in folder.attempts()]
    assert ends == [
        ("n[1-3]", "failed", ["n2", "n3"]),
        ("n[1,4-5]", "failed", ["n4"]),
        ("n[1,5-6]", "completed", []),
    ]
    assert cluster.job(job)["ExcNodeList"] == "n2,n3,n4"
    reasons = folder.bad_nodes()
    assert "node n2 never came" in reasons["n2"]
    assert re.search(rf"node n3: line \d+ of node.sh .*{tmp_path}/env/bin/python", reasons["n3"])
    assert "libcuda.so.1 is not there" in reasons["n4"]
    assert "error: node n2 never came" in said
    assert "error: node n4 failed its checks" in said


def test_what_every_node_lacks_excludes_none(cluster: Cluster, tmp_path: Path) -> None:
    profile = site(tmp_path, torch=False)
    job = submit(cluster, tmp_path, "--profile", profile, "--no-checks", "--exclude=n[2-5]")
    assert cluster.wait(job, *ENDS, timeout_s=200) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "76:0"
    folder = SlurmFolder(tmp_path / "runs" / "r" / "slurm")
    assert [one.nodes for one in folder.attempts()] == ["n1", "n6"]
    assert folder.bad_nodes() == {}
    error = Run(tmp_path / "runs" / "r").result["error"]
    assert "given up: " in error
    assert "it was no better on n1" in error


def test_a_first_node_without_the_interpreter_is_left_out_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    profile = site(tmp_path, torch=True)
    hide(cluster, "n2", tmp_path / "env")
    job = submit(cluster, tmp_path, "--profile", profile, "--no-checks", "--exclude=n1,n[4-6]")
    folder = SlurmFolder(tmp_path / "runs" / "r" / "slurm")
    state = cluster.wait(job, *ENDS, timeout_s=200)
    assert state == "COMPLETED", folder.output(str(job)).read_text()
    assert [one.nodes for one in folder.attempts()] == ["n3"]
    assert folder.bad_nodes() == {"n2": f"there is no {tmp_path}/env/bin/python"}
    assert cluster.job(job)["ExcNodeList"] == "n[1,4-6],n2"
    assert not folder.unfit_folder.exists()


def test_the_next_job_of_a_chain_leaves_out_what_the_one_before_has_found(
    cluster: Cluster, tmp_path: Path
) -> None:
    profile = site(tmp_path, torch=True)
    hide(cluster, "n1", tmp_path / "mark")
    first = submit(cluster, tmp_path, "--profile", profile, "--chain=2", "--exclude=n[4-6]")
    folder = SlurmFolder(tmp_path / "runs" / "r" / "slurm")
    last = int(folder.jobs()[-1].id)
    state = cluster.wait(last, *ENDS, timeout_s=200)
    assert state == "COMPLETED", folder.output(str(first)).read_text()
    ends = [(one.job, one.nodes, one.verdict, one.bad_nodes) for one in folder.attempts()]
    assert ends == [(str(first), "n1", "failed", ["n1"]), (str(last), "n2", "completed", [])]
    assert cluster.job(last)["ExcNodeList"] == "n[4-6],n1"
    assert "is not told" not in folder.output(str(first)).read_text()


SETUPS = [
    ("module load nowhere", "line {} of job.sbatch ended with exit code 127: module load nowhere"),
    (
        "source {folder}/leaves.sh",
        "the setup of job.sbatch was ended by: source {folder}/leaves.sh",
    ),
]


@pytest.mark.parametrize(("line", "words"), SETUPS)
def test_a_setup_that_fails_or_ends_the_script_is_a_failure_that_names_the_line(
    line: str, words: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "leaves.sh").write_text("false\ntrue || false\nexit 0\n")
    line = line.format(folder=tmp_path)
    (tmp_path / "site.toml").write_text(f"setup = ['[ -n \"\" ] && false', '{line}']")
    job = submit(cluster, tmp_path, "--profile", tmp_path / "site.toml")
    assert cluster.wait(job, *ENDS, timeout_s=60) == "FAILED"
    script = (tmp_path / "runs" / "r" / "slurm" / "job.sbatch").read_text().splitlines()
    said = f"error: on n1, {words.format(script.index(line) + 1, folder=tmp_path)}"
    told = launcher("status", tmp_path / "runs" / "r", "--json", cwd=tmp_path, env=cluster.env)
    [row] = json.loads(told.stdout)
    assert (row["state"], row["error"]) == ("failed", said)
    assert said in SlurmFolder(tmp_path / "runs" / "r" / "slurm").output(str(job)).read_text()


def test_spare_nodes_take_the_place_of_one_that_fails_its_check_and_of_one_that_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("whole", "check", "lost"):
        (tmp_path / name).mkdir()
    profile = site(tmp_path, torch=True)
    hide(cluster, "n1", tmp_path / "mark")
    words = ("--nodes=2", "--spare-nodes=1", "--profile", profile)
    check = curve(cluster, tmp_path / "check", "--exclude=n[4-6]", *words)
    lost = curve(cluster, tmp_path / "lost", "step_s=0.3", "--exclude=n[1-3]", *words)
    whole = curve(cluster, tmp_path / "whole", "--nodes=2", "--exclude=n1,n[4-6]")
    wait_for(lambda: lost.step >= 28 or lost.completed, timeout_s=240, every_s=0.3)
    cluster.kill_node("n5")
    try:
        assert [one.wait() for one in (check, lost, whole)] == ["COMPLETED"] * 3, lost.said
    finally:
        cluster.start_node("n5")
    told = [[(one.nodes, one.verdict) for one in job.attempts] for job in (check, lost)]
    assert told == [
        [("n1,n2", "failed"), ("n2,n3", "completed")],
        [("n4,n5", "interrupted"), ("n4,n6", "completed")],
    ]
    for job in (check, lost):
        assert cluster.job(job.job)["Restarts"] == "0"
        check_same(job, whole)
    assert check.attempts[0].bad_nodes == ["n1"]
    shown = launcher("status", check.path, "--json", cwd=tmp_path, env=cluster.env)
    [row] = json.loads(shown.stdout)
    assert (row["starts"], list(row["bad_nodes"])) == (2, ["n1"])


def test_each_run_of_a_grid_has_spare_nodes_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    profile = site(tmp_path, torch=True)
    hide(cluster, "n1", tmp_path / "mark")
    words = ("--nodes=1", "--spare-nodes=1", "--exclude=n[3-6]", "--grid=seed=1,2")
    grid = curve(cluster, tmp_path, *words, "--profile", profile)
    runs = [replace(grid, path=grid.path / name) for name in ("0", "1")]
    wanted = [("n1", "failed"), ("n2", "completed")]

    def told(run: Submitted) -> list[tuple[str, str | None]]:
        return [(one.nodes, one.verdict) for one in run.attempts]

    wait_for(lambda: [told(run) for run in runs] == [wanted] * 2, timeout_s=240)


def test_a_slow_node_is_left_out_of_the_next_start_by_a_spare_one_or_in_the_queue(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ["epochs=60", "log_every=2", "checkpoint_every=2", "pause_s=0.4", "--exclude-slow"]
    words += ["everybody_s=0.02", "--nodes=2"]
    for name in ("spare", "queue"):
        (tmp_path / name).mkdir()
    spare = submitted(
        cluster,
        tmp_path / "spare",
        SLOWED,
        "host=n2",
        "--spare-nodes=1",
        "--exclude=n[4-6]",
        *words,
    )
    queue = submitted(cluster, tmp_path / "queue", SLOWED, "host=n4", "--exclude=n[1-3]", *words)
    jobs = (spare, queue)
    for job in jobs:
        wait_for(RunDir(job.path).slow.exists, timeout_s=240, every_s=0.3)
    shown = launcher("status", *(job.path for job in jobs), cwd=tmp_path, env=cluster.env).stdout
    for rank, node in ((1, "n2"), (0, "n4")):
        found = re.findall(rf"rank {rank} on {node} was (.+) times the median, 3 reports", shown)
        assert len(found) == 1, shown
        assert float(found[0]) > 2
    assert [len(job.attempts) for job in jobs] == [1, 1]  # it ends nothing by itself
    killed = json.loads(RunDir(spare.path).record(0).read_text())["pid"]
    os.kill(killed, signal.SIGKILL)
    cluster.run("scancel", "--signal=USR1", "--batch", str(queue.job))
    assert [job.wait() for job in jobs] == ["COMPLETED"] * 2, spare.said + queue.said
    told = [[(one.nodes, one.verdict, one.bad_nodes) for one in job.attempts] for job in jobs]
    assert told == [
        [("n1,n2", "failed", ["n2"]), ("n1,n3", "completed", [])],
        [("n[4-5]", "timeout", ["n4"]), ("n[5-6]", "completed", [])],
    ]
    assert [cluster.job(job.job)["Restarts"] for job in jobs] == ["0", "1"]
    assert cluster.job(queue.job)["ExcNodeList"] == "n[1-3],n4"
    for job, node in zip(jobs, ("n2", "n4"), strict=True):
        assert f"node {node} is left out from now on: rank " in job.said
        assert not RunDir(job.path).slow.exists()


def curve(cluster: Cluster, folder: Path, *words: object) -> Submitted:
    return submitted(cluster, folder, CURVE, *WORDS, *words)
