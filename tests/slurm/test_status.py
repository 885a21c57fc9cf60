"""How submitted runs are, on a real cluster; and what is done to them."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from slurm_cluster import Cluster
from training import Run, started, wait_for
from training import launcher as in_a_process

from launcher.cli.main import main
from launcher.files import write_json, write_text
from launcher.run import lock
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, Job, SlurmFolder
from launcher.run.listing import summary
from launcher.slurm import status
from launcher.slurm.status import JobNow

pytestmark = pytest.mark.warm


def on_slurm(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.slurm(test))


CONFIG: dict[str, Any] = {
    "recipe": "digits",
    "hyperparameters": {"epochs": 1},
    "world_size": 1,
    "nodes": 1,
}
ASKED = {"nproc": 1, "nodes": 1, "chain": 0, "max_requeues": 5, "exclude": None, "submitted": 1.0}


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(path: Path, *lines: str, **asked: Any) -> SlurmFolder:
    """A run directory as `launcher submit` makes it, with a script of these lines."""
    RunDir(path).create(CONFIG, "")
    folder = SlurmFolder(path / "slurm")
    folder.path.mkdir()
    write_json(folder.job, ASKED | {"jobs": []} | asked)
    a_script(folder, path, *lines)
    return folder


def a_script(folder: SlurmFolder, path: Path, *lines: str) -> None:
    head = ["#!/bin/bash", f"#SBATCH --output={path}/slurm/job-%j.out --open-mode=append"]
    write_text(folder.batch, "\n".join([*head, *lines, ""]))


def an_array(path: Path, size: int, *lines: str) -> list[Path]:
    """An array of runs, as `launcher submit --grid` makes it."""
    folder = SlurmFolder(path / "slurm")
    folder.path.mkdir(parents=True)
    write_json(folder.job, ASKED | {"jobs": [], "array": f"0-{size - 1}%2"})
    a_script(folder, path, *lines)
    for task in range(size):
        a_run(path / str(task), array_task=task)
        (path / str(task) / "slurm" / "job.sbatch").unlink()
    return [path / str(task) for task in range(size)]


def submit(cluster: Cluster, folder: SlurmFolder, *options: str) -> str:
    job = str(cluster.submit(folder.batch, *options))
    folder.add_job(Job(job, time.time()))
    return job


def ends(path: Path, state: str = "completed") -> None:
    write_json(path / "result.json", {"state": state, "epoch": 0, "step": 7, "world_size": 1})


def launcher(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def told(*words: object) -> list[dict[str, Any]]:
    done = launcher(*words, "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout))


def attempt(verdict: Any) -> list[Attempt]:
    return [Attempt("7", 0, "n1", 1.0, verdict, 1)]


# What SLURM says, the run's own state, how its starts ended, and the word for all of it.
WORDS: list[tuple[str | None, str, list[Attempt], str]] = [
    ("PENDING", "new", [], "pending"),
    ("PENDING", "stopped", attempt("timeout"), "pending"),
    ("RUNNING", "failed", attempt("failed"), "running"),
    ("COMPLETING", "completed", attempt("completed"), "completing"),
    ("COMPLETED", "completed", attempt("completed"), "completed"),
    (None, "completed", attempt("completed"), "completed"),
    (None, "completed", [], "completed"),
    ("CANCELLED", "new", [], "cancelled"),
    ("CANCELLED", "stopped", attempt("interrupted"), "cancelled"),
    ("CANCELLED", "completed", attempt("completed"), "completed"),
    (None, "new", [], "unstarted"),
    ("FAILED", "new", [], "failed"),
    ("COMPLETED", "new", [], "failed"),  # `exit 0` in the setup, or no `launcher job begin`
    ("FAILED", "failed", [replace(attempt("timeout")[0], code=76)], "failed"),
    (None, "new", [replace(attempt("interrupted")[0], code=76)], "failed"),
    ("TIMEOUT", "killed", attempt(None), "timeout"),
    ("NODE_FAIL", "killed", attempt(None), "node_fail"),
    ("PREEMPTED", "killed", attempt(None), "preempted"),
    ("PREEMPTED", "stopped", attempt("interrupted"), "stopped"),
    ("COMPLETED", "killed", attempt(None), "killed"),
    (None, "killed", attempt(None), "killed"),
    (None, "stopped", attempt("timeout"), "stopped"),
    ("FAILED", "stopped", attempt("interrupted"), "stopped"),
    (None, "failed", attempt("failed"), "failed"),
    ("COMPLETED", "failed", attempt("failed"), "failed"),
    (None, "failed", attempt("mistake"), "failed"),
]


@pytest.mark.parametrize(("slurms", "runs", "attempts", "word"), WORDS)
def test_one_word_says_how_a_run_is(
    slurms: str | None, runs: str, attempts: list[Attempt], word: str, tmp_path: Path
) -> None:
    folder = a_run(tmp_path / "r", jobs=[{"id": "7", "submitted": 1.0}])
    if runs in ("completed", "failed", "stopped"):
        ends(tmp_path / "r", runs)
    elif runs == "killed":
        (tmp_path / "r" / "metrics.jsonl").touch()
    for one in attempts:
        folder.start(one.job, one.restart, one.nodes)
        if one.verdict:
            folder.end(one.verdict, one.code or 1, 3, [])
    assert summary(tmp_path / "r").state == runs
    found = status.status(tmp_path / "r", {"7": JobNow(slurms)} if slurms else {})
    assert (found.state, found.slurm, found.job) == (word, slurms, "7")


def test_a_run_whose_script_could_not_begin_has_failed_in_its_words(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "r", jobs=[{"id": "7", "submitted": 1.0}])
    write_text(folder.not_begun, "error: on n1, line 9 of job.sbatch ended: module load x\n")
    for now in ({"7": JobNow("FAILED")}, {}):
        found = status.status(tmp_path / "r", now)
        assert found.state == "failed"
        assert found.error == "error: on n1, line 9 of job.sbatch ended: module load x"


def test_a_job_that_waited_stays_cancelled_when_slurm_has_forgotten_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "r", jobs=[{"id": "7", "submitted": 1.0}])
    folder.add_cancelled(["7"])
    assert status.status(tmp_path / "r", {}).state == "cancelled"
    assert status.status(tmp_path / "r", {"7": JobNow("RUNNING")}).state == "running"
    folder.add_job(Job("8", 2.0))
    assert status.status(tmp_path / "r", {}).state == "unstarted"
    ends(tmp_path / "r")
    assert status.status(tmp_path / "r", {}).state == "completed"


def test_without_slurm_only_what_is_certain_is_said(no_slurm: Path) -> None:
    for name in ("done", "maybe"):
        a_run(no_slurm / "runs" / name, jobs=[{"id": "7", "submitted": 1.0}])
    ends(no_slurm / "runs" / "done")
    done = launcher("status", "--json")
    assert "there is no `squeue` here; this is what the run directories say" in done.stderr
    assert [row["state"] for row in json.loads(done.stdout)] == ["completed", "unknown"]


def test_a_run_without_a_job_that_lives_here_is_running(no_slurm: Path) -> None:
    folder = a_run(no_slurm / "runs" / "r")  # as `launcher submit --local` leaves it
    folder.start("1", 0, "here")
    with lock.held(RunDir(no_slurm / "runs" / "r")):
        assert told("status")[0]["state"] == "running"
    assert told("status")[0]["state"] == "killed"


@pytest.mark.slow
def test_a_local_submission_is_no_job_that_could_be_cancelled(tmp_path: Path) -> None:
    words = ["submit", "digits", "--local", "--no-checks", "--no-snapshot", "--run-dir", "runs/r"]
    assert in_a_process(*words, cwd=tmp_path).returncode == 0
    assert SlurmFolder(tmp_path / "runs" / "r" / "slurm").jobs() == []
    assert [one.state for one in status.statuses([tmp_path / "runs" / "r"])] == ["completed"]


def test_cancel_without_slurm_is_refused(no_slurm: Path) -> None:
    a_run(no_slurm / "runs" / "r", jobs=[{"id": "7", "submitted": 1.0}])
    done = launcher("cancel", "runs/r")
    assert (done.exit_code, "there is no `squeue` here" in done.stderr) == (2, True)


UNKNOWN = [
    (["status", "nowhere"], "is no run directory, and no run in `runs` has a job of that id"),
    (["status", "12"], "is no run directory"),
    (["cancel", "12"], "is no run directory"),
    (["status", "plain"], "was not made by `launcher submit`"),
    (["resubmit", "plain"], "was not made by `launcher submit`"),
    (["logs", "plain"], "there is no `plain/logs/rank-0.log` yet"),
    (["logs", "grid"], "`grid` is an array of runs"),
    (["logs", "plain", "--follow", "--json"], "give one of them"),
]


@pytest.mark.parametrize(("words", "said"), UNKNOWN)
def test_what_was_not_submitted_is_refused_in_words(
    words: list[str], said: str, no_slurm: Path
) -> None:
    RunDir(no_slurm / "plain").create(CONFIG, "")
    an_array(no_slurm / "grid", 2)
    done = launcher(*words)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_no_submitted_runs_are_no_error(no_slurm: Path) -> None:
    assert launcher("status").stdout == "no submitted runs below ./runs\n"
    assert told("status") == []


def test_logs_of_a_local_run_are_rank_0s_and_follow_ends_with_it(no_slurm: Path) -> None:
    run = RunDir(no_slurm / "r")
    run.create(CONFIG, "")
    run.log(0).write_text("loss: 1\n")
    run.log(1).write_text("what rank 1 said é\n", encoding="utf-8")
    ends(run.path)
    assert launcher("logs", "r").stdout == "loss: 1\n"
    assert launcher("logs", "r", "--follow").stdout == "loss: 1\n"
    assert launcher("logs", "r", "--rank", 1).stdout == "what rank 1 said é\n"
    shown = json.loads(launcher("logs", "r", "--json").stdout)
    assert shown == {"path": "r/logs/rank-0.log", "text": "loss: 1\n"}


@pytest.mark.slow
def test_follow_shows_a_local_run_while_it_trains(tmp_path: Path) -> None:
    words = ("run", "digits", "epochs=400", "--run-dir", "r")
    with started(*words, cwd=tmp_path) as run:
        wait_for((tmp_path / "r" / "logs" / "rank-0.log").exists)
        with started("logs", "r", "--follow", cwd=tmp_path) as follower:
            assert follower.stdout
            while "Test Error" not in follower.stdout.readline():
                assert run.poll() is None
            run.terminate()
            said, _ = follower.communicate(timeout=60)
            assert follower.returncode == 0
            assert run.wait(60) == 75
            assert said.splitlines()


def wait(state: str, name: str, timeout_s: float = 60) -> dict[str, Any]:
    """What status says of a run, as soon as it says that state."""
    rows: list[dict[str, Any]] = []

    def so() -> bool:
        rows[:] = told("status", name)
        return bool(rows[0]["state"] == state)

    wait_for(so, timeout_s, every_s=0.3)
    return rows[0]


@on_slurm
def test_status_tells_waiting_running_ended_and_forgotten_jobs(cluster: Cluster) -> None:
    names = ["runs", "waits", "done", "lost", "never"]
    folders = {name: a_run(Path("runs").absolute() / name, "sleep 600") for name in names}
    jobs = {"runs": submit(cluster, folders["runs"])}
    jobs["waits"] = submit(cluster, folders["waits"], "--hold")
    a_script(folders["done"], folders["done"].path.parent, "true")
    jobs["done"] = submit(cluster, folders["done"])
    ends(folders["done"].path.parent)
    folders["lost"].add_job(Job("999999", 1.0))  # SLURM knows no such job
    folders["lost"].start("999999", 0, "n2")
    folders["runs"].start(jobs["runs"], 0, "n1")
    wait("running", "runs/runs")
    cluster.wait(int(jobs["done"]), "COMPLETED", timeout_s=60)
    rows = {Path(row["run_dir"]).name: row for row in told("status")}
    words = {name: row["state"] for name, row in rows.items()}
    assert words == {
        "done": "completed",
        "lost": "killed",
        "never": "unstarted",
        "runs": "running",
        "waits": "pending",
    }
    assert (rows["runs"]["nodes"], rows["runs"]["job"]) == ("n1", jobs["runs"])
    assert "JobHeld" in rows["waits"]["reason"]
    assert (rows["lost"]["nodes"], rows["lost"]["slurm"]) == ("n2", None)
    shown = launcher("status").stdout
    assert [line.split()[2] for line in shown.splitlines()[:-1]] == list(words.values())
    assert [row["run_dir"] for row in told("status", jobs["waits"])] == ["runs/waits"]
    said = launcher("cancel", "runs/runs", jobs["waits"]).stdout
    assert f"job {jobs['runs']}, RUNNING, was told to end" in said
    assert wait("cancelled", "runs/waits")["slurm"] == "CANCELLED"
    assert wait("cancelled", "runs/runs")["starts"] == 1
    assert launcher("cancel", "runs/runs").stdout.startswith("nothing to cancel")


@on_slurm
def test_a_thousand_tasks_are_told_and_cancelled_in_seconds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.files.sync", lambda _: None)  # 6,000 times
    runs = an_array(Path("runs").absolute() / "grid", 1000, "sleep 600")
    folder = SlurmFolder(Path("runs/grid/slurm"))
    job = submit(cluster, folder, "--array=0-999", "--hold")
    for path in runs[:10]:
        ends(path)
    began = time.monotonic()
    rows = told("status")
    asked_s = time.monotonic() - began
    assert [row["job"] for row in rows] == [f"{job}_{task}" for task in range(1000)]
    assert {row["state"] for row in rows} == {"pending"}
    assert told("status", f"{job}_17")[0]["run_dir"] == "runs/grid/17"
    assert "1000 pending" in launcher("status", "runs/grid").stdout
    assert [one["job"] for one in told("cancel", "runs/grid/3", "runs/grid/17")] == [
        f"{job}_3",
        f"{job}_17",
    ]
    wait("cancelled", "runs/grid/17")  # SLURM forgets a waiting task at once
    assert told("status", "runs/grid/17")[0]["slurm"] is None
    began = time.monotonic()
    assert len(told("cancel", job)) == 998
    cancelled_s = time.monotonic() - began
    wait("cancelled", "runs/grid/999")
    assert max(asked_s, cancelled_s) < 15
    again = json.loads(launcher("resubmit", "runs/grid", "--sbatch", "hold", "--json").stdout)
    new = again["jobs"][0]["id"]
    counts = [row["state"] for row in told("status", "runs/grid")]
    assert (counts.count("completed"), counts.count("pending")) == (10, 990)
    assert len(told("cancel", new)) == 990


@on_slurm
def test_one_task_of_an_array_is_resubmitted_alone(cluster: Cluster) -> None:
    an_array(Path("runs").absolute() / "grid", 3, "sleep 600")
    first = submit(cluster, SlurmFolder(Path("runs/grid/slurm")), "--array=0-2", "--hold")
    assert len(told("cancel", "runs/grid")) == 3
    wait("cancelled", "runs/grid/1")
    done = json.loads(launcher("resubmit", "runs/grid/1", "--sbatch", "hold", "--json").stdout)
    new = done["jobs"][0]
    assert new["array_task"] == 1
    rows = told("status", "runs/grid")
    assert [row["job"] for row in rows] == [f"{first}_0", f"{new['id']}_1", f"{first}_2"]
    assert [row["state"] for row in rows] == ["cancelled", "pending", "cancelled"]
    assert [one["job"] for one in told("cancel", "runs/grid")] == [f"{new['id']}_1"]


@on_slurm
def test_a_run_is_resubmitted_with_other_options_and_without_bad_nodes(cluster: Cluster) -> None:
    path = Path("runs/r").absolute()
    folder = a_run(path, "echo on $(hostname); sleep 600", exclude=None, spare_nodes=1)
    folder.add_bad_node("n1", "GPU 3 is broken")
    job = submit(cluster, folder, "--hold")
    refused = launcher("resubmit", "runs/r")
    assert (refused.exit_code, f"job {job} of `runs/r` is PENDING" in refused.stderr) == (2, True)
    launcher("cancel", job)
    wait("cancelled", "runs/r")
    words = ["--sbatch", "time=7", "--sbatch", "comment=a b", "--max-requeues", "9"]
    new = json.loads(launcher("resubmit", "runs/r", *words, "--json").stdout)["jobs"][0]["id"]
    assert wait("running", "runs/r")["nodes"] == "n2"
    now = cluster.job(int(new))
    assert (now["TimeLimit"], now["ExcNodeList"]) == ("00:07:00", "n1")
    asked = folder.asked()
    assert (asked["max_requeues"], asked["submitted"] > 1.0) == (9, True)
    assert asked["options"]["time"] == {"value": "7", "source": "resubmit"}
    assert [one["id"] for one in asked["jobs"]] == [job, new]
    wait_for(lambda: "on n2" in launcher("logs", "runs/r").stdout, 30)
    launcher("cancel", "runs/r")
    wait("cancelled", "runs/r")
    folder.forgive("n1")  # the spare one comes on top
    more = json.loads(launcher("resubmit", "runs/r", "--nodes=1", "--json").stdout)["jobs"][0]
    assert cluster.job(int(more["id"]))["NumNodes"].startswith("2")
    assert folder.asked()["nodes"] == 1
    launcher("cancel", "runs/r")
    wait("cancelled", "runs/r")
    ends(path)
    assert "is completed" in launcher("resubmit", "runs/r").stderr


REFUSED = [
    ("partition=nowhere", "invalid partition"),
    ("time=soon", "Invalid --time"),
    ("gpus-per-node=2", "the scripts start 1 processes a node"),
    ("nodes=two", "--nodes two is not one number"),
    ("output=x", "is not yours to give"),
]


@on_slurm
@pytest.mark.parametrize(("option", "said"), REFUSED)
def test_what_sbatch_refuses_leaves_the_run_as_it_was(
    cluster: Cluster, option: str, said: str
) -> None:
    folder = a_run(Path("runs/r").absolute(), "sleep 600")
    before = folder.asked()
    done = launcher("resubmit", "runs/r", "--sbatch", option)
    assert done.exit_code != 0
    assert said in done.stderr
    assert folder.asked() == before


@on_slurm
@pytest.mark.timeout(600)
def test_a_cancelled_run_that_is_resubmitted_ends_as_if_nothing_had_been(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["digits", "epochs=60", "--no-checks", "--partition", "high"]
    job = json.loads(launcher("submit", *words, "--run-dir", "r", "--json").stdout)["jobs"][0]
    metrics = Path("r/metrics.jsonl")
    wait_for(lambda: metrics.exists() and '"test"' in metrics.read_text(), 90)
    assert [one["was"] for one in told("cancel", "r")] == ["RUNNING"]
    row = wait("cancelled", "r")
    cluster.wait(int(job), "CANCELLED", timeout_s=60)
    assert (row["verdict"], row["starts"]) in ((None, 1), ("interrupted", 1))
    assert list(Path("r/checkpoints").glob("step-*"))
    new = json.loads(launcher("resubmit", "r", "--time", "9", "--json").stdout)["jobs"][0]["id"]
    assert cluster.wait(int(new), "COMPLETED", "FAILED", timeout_s=200) == "COMPLETED"
    row = wait("completed", "r")
    assert (row["job"], row["starts"], row["epochs"]) == (new, 2, 60)
    words, env = ["epochs=60", "--run-dir", "alone"], {"OMP_NUM_THREADS": "1"}
    in_a_process("run", "digits", *words, cwd=Path.cwd(), env=env, timeout_s=250)
    assert Run(Path("r")).weight_bytes == Run(Path("alone")).weight_bytes


@on_slurm
def test_a_chain_is_cancelled_whole_and_resubmitted_whole(cluster: Cluster) -> None:
    folder = a_run(Path("runs/r").absolute(), "sleep 600", chain=3)
    first = submit(cluster, folder)
    wait("running", "runs/r")
    others = [submit(cluster, folder, f"--dependency=afterany:{first}") for _ in range(2)]
    assert told("status", "runs/r")[0]["job"] == first
    assert [one["job"] for one in told("cancel", "runs/r")] == [first, *others]
    wait("cancelled", "runs/r")
    states = {cluster.wait(int(job), "CANCELLED", timeout_s=60) for job in [first, *others]}
    assert states == {"CANCELLED"}
    new = json.loads(launcher("resubmit", "runs/r", "--json").stdout)["jobs"]
    assert [told("status", one["id"])[0]["run_dir"] for one in new] == ["runs/r"] * 3
    assert f"afterany:{new[0]['id']}" in cluster.job(int(new[1]["id"]))["Dependency"]
    assert len(told("cancel", "runs/r")) == 3


@on_slurm
def test_logs_follow_a_job_through_its_requeue_to_its_end(cluster: Cluster) -> None:
    requeue = '[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }'
    lines = ["echo start ${SLURM_RESTART_COUNT:-0}", requeue, "sleep 2; echo the end"]
    folder = a_run(Path("runs/r").absolute(), *lines)
    submit(cluster, folder)
    with started("logs", "runs/r", "--follow", cwd=Path.cwd()) as follower:
        said, complaint = follower.communicate(timeout=120)
    assert follower.returncode == 0, complaint
    # SLURM itself may say why the first start ended.
    ours = [line for line in said.splitlines() if not line.startswith("slurmstepd")]
    assert ours == ["start 0", "start 1", "the end"]


@on_slurm
def test_a_controller_that_is_down_is_said_and_the_run_directory_speaks(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_run(Path("runs/r").absolute(), "sleep 600")
    folder.add_job(Job("1", 1.0))
    config = (cluster.folder / "slurm.conf").read_text()
    conf = tmp_path / "slurm.conf"
    conf.write_text(config.replace(".2)", ".250)") + "SlurmctldTimeout=2\nMessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setattr(status, "_ANSWER_S", 3)
    done = launcher("status", "--json")
    assert "this is what the run directories say" in done.stderr
    assert json.loads(done.stdout)[0]["state"] == "unknown"
