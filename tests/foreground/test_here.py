"""Jobs in the allocation that one is sitting in, on a real cluster of two nodes."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from submitted import CURVE, WORDS, Submitted, check_same, submit
from training import clean_environment, launcher, wait_for

from launcher.errors import BadInput
from launcher.files import write_json
from launcher.foreground import here
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm import control

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]
OPTIONS = ("--here", "--no-checks", "--run-dir", "r")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, cpus=4, extra=["MessageTimeout=10", "KillWait=20"]) as running:
        yield running


@contextmanager
def sitting(cluster: Cluster, folder: Path, *lines: str) -> Iterator["subprocess.Popen[str]"]:
    """Lines of shell within `salloc`, where `launcher` is ours."""
    script = folder / "sit.sh"
    ours = f'launcher() {{ "{sys.executable}" -m launcher "$@"; }}'
    script.write_text("\n".join(["#!/bin/bash", ours, *lines, ""]))
    argv = ["salloc", "--nodes=2", "--cpus-per-task=1", "--overcommit", "bash", str(script)]
    env = clean_environment() | cluster.env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(argv, env=env, cwd=folder, text=True, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def ended(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=400)
    return said


def test_a_run_in_an_allocation_is_cancelled_alone_and_goes_on_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "queue").mkdir()
    whole = submit(cluster, tmp_path / "queue", CURVE, *WORDS, "--nodes=2")
    words = shlex.join(map(str, ["submit", CURVE, *WORDS, "step_s=0.3", *OPTIONS]))
    lines = [
        f'launcher {words}; echo "ended with $?"',
        'launcher submit digits --here --time=5; echo "ended with $?"',
        'launcher resubmit r --time=5 --here; echo "ended with $?"',
        'launcher resubmit r --here; echo "ended with $?"',
    ]
    with sitting(cluster, tmp_path, *lines) as process:
        run = Submitted(tmp_path / "r", cluster, 0)
        wait_for(lambda: run.step >= 28 or process.poll() is not None, timeout_s=240, every_s=0.3)
        job = int(run.attempts[0].job)
        done = launcher("cancel", "r", "--json", cwd=tmp_path, env=cluster.env)
        assert json.loads(done.stdout)[0]["job"] == f"{job}.0", done.stderr
        wait_for(lambda: run.attempts[0].verdict is not None, timeout_s=60)
        assert cluster.state(job) == "RUNNING"
        said = ended(process)
    assert [int(one.split()[0]) for one in said.split("ended with ")[1:]] == [75, 2, 2, 0], said
    assert "go on: launcher resubmit r --here" in said
    assert said.count("--time is settled by the allocation that --here runs in") == 2
    found = [(one.job, one.nodes, one.verdict) for one in run.attempts]
    assert found == [(str(job), "n[1-2]", "interrupted"), (str(job), "n[1-2]", "completed")]
    assert whole.wait() == "COMPLETED", whole.said
    check_same(run, whole)
    again = launcher("cancel", "r", cwd=tmp_path, env=cluster.env)
    assert again.stdout.startswith("nothing to cancel")
    wait_for(lambda: cluster.state(job) == "COMPLETED", timeout_s=30)


DEAF = """\
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(1000)
"""


def test_who_asks_twice_ends_the_step_at_once_and_keeps_the_allocation(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    words = shlex.join(["submit", "deaf.py", "--no-snapshot", *OPTIONS])
    lines = [f'launcher {words} & wait $!; echo "ended with $?"', "sleep 600"]
    log = RunDir(tmp_path / "r").log(0)
    with sitting(cluster, tmp_path, *lines) as process:
        wait_for(lambda: "deaf" in (log.read_text() if log.exists() else ""), timeout_s=120)
        [attempt] = SlurmFolder.of(RunDir(tmp_path / "r")).attempts()
        [ours] = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "submit" in child.cmdline() and "deaf.py" in child.cmdline()
        ]
        for number in (signal.SIGTERM, signal.SIGINT):  # two of a kind may be heard as one
            ours.send_signal(number)
        ours.wait(60)
        wait_for(lambda: not any(map(cluster.processes, cluster.nodes)), timeout_s=30)
        assert cluster.state(int(attempt.job)) == "RUNNING"
        cluster.run("scancel", attempt.job)


IN = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1,n2,n3", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}


@pytest.fixture
def allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation of three nodes with two GPUs each, as SLURM tells of it."""
    state = {"TresPerNode": "gres:gpu:a100:2,gres:lustre:1"}
    monkeypatch.setattr(here, "job_state", lambda _: state)
    monkeypatch.setattr(here, "hostnames", lambda nodes: nodes.split(",") if nodes else [])


@pytest.mark.usefixtures("allocation")
def test_a_job_here_is_the_allocation_or_a_part_of_it() -> None:
    whole = {"nodes": "3", "cpus-per-task": "4", "gres": "gpu:a100:2"}
    assert here.options({}, 0, IN) == whole
    assert here.options({}, 1, IN) == whole | {"nodes": "2"}
    given = {"nodes": "1", "gpus-per-node": "1"}
    asked = here.options(given, 0, IN | {"SLURM_CPUS_PER_TASK": "2"})
    assert asked == {"nodes": "1", "cpus-per-task": "2", "gpus-per-node": "1"}


@pytest.mark.usefixtures("allocation")
@pytest.mark.parametrize(
    ("given", "spare", "env", "message"),
    [
        ({}, 0, {}, "--here, but this is no allocation"),
        ({"time": "5"}, 0, IN, "--time is settled by the allocation"),
        ({"partition": "gpu"}, 0, IN, "--partition is settled by the allocation"),
        ({"nodes": "4"}, 0, IN, "--nodes 4, and the allocation has 3"),
        ({"nodes": "3"}, 1, IN, "--nodes 3 and 1 spare ones, and the allocation has 3"),
        ({}, 3, IN, "--nodes 0 and 3 spare ones"),
    ],
)
def test_what_an_allocation_settles_or_does_not_have_is_refused(
    given: dict[str, str], spare: int, env: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        here.options(given, spare, env)


def a_run(folder: Path, restart: str) -> Path:
    """What is left of a run where its first start has just begun in job 7."""
    run = RunDir(folder / "r")
    run.path.mkdir()
    run.write_config({"hyperparameters": {}})
    SlurmFolder.of(run).path.mkdir()
    write_json(SlurmFolder.of(run).job, {"restart": restart, "jobs": []})
    SlurmFolder.of(run).start("7", 0, "n1")
    return run.path


def test_a_run_that_is_just_starting_is_not_yet_cancelled(tmp_path: Path) -> None:
    path = a_run(tmp_path, "here")
    with pytest.raises(BadInput, match="is just starting in job 7"):
        control.cancel([path])


def test_a_run_that_was_made_for_a_queue_is_not_put_into_an_allocation(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="was not made by `launcher submit --here`"):
        control.renew_here(a_run(tmp_path, "requeue"), {}, {})


@pytest.mark.parametrize("words", ["--grid=seed=0,1", "--chain=2", "--local", "--no-requeue"])
def test_what_needs_a_queue_goes_with_no_allocation(words: str, tmp_path: Path) -> None:
    done = launcher("submit", "digits", "--here", words, cwd=tmp_path)
    assert done.returncode == 2
    assert "goes with no --here" in done.stderr
    assert not list(tmp_path.iterdir())
