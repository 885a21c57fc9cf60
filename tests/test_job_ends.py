"""One job of each kind of end: what is disturbed ends the same.

On both makes of cluster where signals, or what else ends processes, tell them apart; else on one.
All jobs of a cluster run at the same time, for they wait more than they compute. Each is told by a
function here: it submits, disturbs and waits, and the test of its kind looks at what it gives.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import strict_cluster as strict
from slurm_cluster import Cluster, missing, slurm_cluster
from submitted import (
    CURVE,
    ENDS,
    WORDS,
    Submitted,
    check_same,
    in_mid_epoch,
    submit,
    two_nodes,
    verdicts,
)
from training import RECIPES, Run, launcher, wait_for

from launcher.job.place import first_step
from launcher.job.unheard import reach
from launcher.run.checkpoint_files import all_of
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm import status

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1200)]
Told = Callable[[Cluster, Path], Submitted]
Of = Callable[[Told], Submitted]


def two(
    cluster: Cluster, folder: Path, *words: object, nodes: str = "n1,n2", step_s: float = 0.15
) -> Submitted:
    """On nodes of its own where others would be disturbed as well."""
    return two_nodes(cluster, folder, f"--sbatch=nodelist={nodes}", *words, step_s=step_s)


def completed(cluster: Cluster, folder: Path) -> Submitted:
    words = ("--nodes=2", "--nproc=2", "--sbatch=nodelist=n1,n2")
    return ended(submit(cluster, folder, "digits", "epochs=3", *words))


def undisturbed(cluster: Cluster, folder: Path) -> Submitted:
    """Pauses change no number."""
    return ended(two(cluster, folder, step_s=0))


def time_limit(cluster: Cluster, folder: Path) -> Submitted:
    """The limit comes near when it trains: on a busy machine nobody knows how soon it does."""
    job = two(cluster, folder, "--time=60", "--sbatch=signal=B:USR1@10", step_s=1.3)
    wait_for(lambda: job.step > 0, timeout_s=400, every_s=0.3)
    # SLURM looks at limits twice a minute, and warns 40 s before: 10 to 90 s from here.
    hours, minutes, seconds = map(int, cluster.job(job.job)["RunTime"].split(":"))
    limit = (3600 * hours + 60 * minutes + seconds + 40) // 60 + 1
    cluster.run("scontrol", "update", f"JobId={job.job}", f"TimeLimit={limit}")
    job.wait("PENDING", timeout_s=200)
    cluster.run("scontrol", "update", f"JobId={job.job}", "TimeLimit=60")
    return ended(job)


def warned(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder, "--tracking=offline"))
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    return ended(job)


def preempted(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder, nodes="n3,n4"))
    preempt(cluster, folder, "n3,n4")
    return ended(job)


def given_time(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder, "--partition=grace", nodes="n5,n6"))
    preempt(cluster, folder, "n5,n6")
    return ended(job)


def taken(cluster: Cluster, folder: Path) -> Submitted:
    """Preempted where SLURM does not requeue such jobs; the same scripts are submitted again."""
    job = in_mid_epoch(two(cluster, folder, "--partition=cheap", nodes="n10,n11"))
    preempt(cluster, folder, "n10,n11")
    job.wait("PREEMPTED", timeout_s=90)
    done = launcher("resubmit", job.path, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stderr
    again = SlurmFolder(job.path / "slurm").jobs()[-1].id
    return ended(Submitted(job.path, cluster, int(again)))


SOON = "start_timeout=200"  # the first step of a start, or it is ended


def lost(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder, SOON, nodes="n7,n8"))
    cluster.kill_node("n8")
    job.wait("PENDING", timeout_s=90)
    cluster.start_node("n8")
    return ended(job)


def silent(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder, SOON, nodes="n7,n9"))
    cluster.cut("n9")
    job.wait("PENDING", timeout_s=90)
    cluster.heal("n9")
    return ended(job)


def worker_killed(cluster: Cluster, folder: Path) -> Submitted:
    """Three times, each time after a new checkpoint."""
    job = two(cluster, folder, step_s=0.3)
    before = 0
    for start in (1, 2, 3):
        wait_for(partial(has_got_on, job, start, before), timeout_s=240, every_s=0.3)
        before = saved(job)
        kill_worker(cluster, job)
        wait_for(partial(has_ended, job, start), timeout_s=120)
    return ended(job)


def saved(job: Submitted) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    return max([one.step for one in all_of(RunDir(job.path).checkpoints)], default=0)


def has_got_on(job: Submitted, start: int, before: int) -> bool:
    return len(job.attempts) == start and not has_ended(job, start) and saved(job) > before


def has_ended(job: Submitted, start: int) -> bool:
    return job.attempts[start - 1].verdict is not None


def kill_worker(cluster: Cluster, job: Submitted) -> None:
    # The worker was forked from the agent, and has its command line; so has the guard above both.
    found = {p.pid: p.command for p in cluster.processes("n2") if f"{job.path}/" in p.command}
    agents = {pid for pid, command in found.items() if " -m launcher.node.start agent" in command}
    agents -= {pid for pid, command in found.items() if "launcher.node.guard" in command}
    [worker] = [pid for pid in agents if psutil.Process(pid).ppid() in agents]
    os.kill(worker, signal.SIGKILL)


def failed(cluster: Cluster, folder: Path) -> Submitted:
    words = ["what=raise", "at_rank=1", "batch_size=10", "--nodes=2", "--max-failures=0"]
    options = ["--sbatch=nodelist=n1,n2"]
    return ended(submit(cluster, folder, RECIPES / "trouble.py", *words, *options))


def cancelled(cluster: Cluster, folder: Path) -> Submitted:
    job = in_mid_epoch(two(cluster, folder))
    done = launcher("cancel", job.path, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stderr
    return ended(job)


def chain(cluster: Cluster, folder: Path) -> Submitted:
    job = two(cluster, folder, "--chain=3")
    cluster.run("scancel", "--signal=USR1", "--batch", str(in_mid_epoch(job).job))
    for link in SlurmFolder(job.path / "slurm").jobs():
        cluster.wait(int(link.id), *ENDS, timeout_s=300)
    return job


def grid(cluster: Cluster, folder: Path) -> Submitted:
    """The second of its two tasks is warned."""
    options = ["--grid=seed=0,1", "--max-parallel=2", "--sbatch=nodelist=n1"]
    words = [CURVE, *WORDS, "step_s=0.15", *options]
    array = submit(cluster, folder, *words)
    first, second = tasks_of(array)
    wait_for(lambda: second.step >= 28, timeout_s=240, every_s=0.3)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array.job}_1")
    wait_for(lambda: first.completed and second.completed, timeout_s=400, every_s=0.3)
    return array


# What takes longest comes first.
EVERYWHERE: list[Told] = [undisturbed, lost, given_time, preempted, warned, cancelled, failed]
ON_PLAIN: list[Told] = [time_limit, silent, worker_killed, completed]
ON_STRICT: list[Told] = [grid, chain, taken]
on_plain = pytest.mark.parametrize("cluster", ["plain"], indirect=True)
on_strict = pytest.mark.parametrize("cluster", ["strict"], indirect=True)


def kinds(cluster: Cluster) -> list[Told]:
    return (ON_STRICT if isinstance(cluster, strict.StrictCluster) else ON_PLAIN) + EVERYWHERE


@pytest.fixture(scope="module", params=["plain", "strict"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    make = {"plain": Cluster, "strict": strict.StrictCluster}[request.param]
    if reason := missing() if make is Cluster else strict.missing():
        pytest.skip(reason)
    # MessageTimeout: as in test_cluster_jobs. More cores than are, for all jobs on n1 and n2.
    extra = ["KillWait=10", "MessageTimeout=15"]
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        # Nobody counts lines here: it makes each of 80 starts of Python half as long again.
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        with slurm_cluster(folder, nodes=11, cpus=16, extra=extra, make=make) as running:
            yield running


@pytest.fixture(scope="module")
def told(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Told], Submitted]]:
    """What became of the job of a kind; all kinds are under way."""
    with ThreadPoolExecutor(4) as pool:  # so many at a time: each has processes of its own
        jobs: dict[Told, Future[Submitted]] = {
            kind: pool.submit(kind, cluster, tmp_path_factory.mktemp(kind.__name__))
            for kind in kinds(cluster)
        }
        yield lambda kind: jobs[kind].result()
        pool.shutdown(cancel_futures=True)


def ended(job: Submitted) -> Submitted:
    job.wait(timeout_s=400)
    return job


def preempt(cluster: Cluster, folder: Path, nodes: str) -> None:
    """A job that matters more wants these nodes."""
    script = folder / "high.sh"
    script.write_text("#!/bin/bash\nsrun true\n")
    options = ("-phigh", "--nodes=2", f"--nodelist={nodes}", "--exclusive", "--output=/dev/null")
    cluster.wait(cluster.submit(script, *options), "COMPLETED", timeout_s=90)


def tasks_of(array: Submitted) -> list[Submitted]:
    return [Submitted(array.path / str(task), array.cluster, 0) for task in range(2)]


def check(job: Submitted, told: Of, *ends: str | None) -> None:
    """It was started so often, and ended as the undisturbed run."""
    assert job.cluster.state(job.job) == "COMPLETED", job.said
    assert verdicts(job) == list(ends)
    check_same(job, told(undisturbed))


@on_plain
def test_two_nodes_train_what_one_process_trains(told: Of, tmp_path: Path) -> None:
    job = told(completed)
    assert verdicts(job) == verdicts(told(undisturbed)) == ["completed"]
    launcher("run", "digits", "epochs=3", "--run-dir", "alone", cwd=tmp_path)
    alone = Run(tmp_path / "alone")
    assert job.result["world_size"] == 4
    assert job.farthest(alone) < 1e-5
    assert job.result["test_correct"] == alone.result["test_correct"]
    [attempt] = job.attempts
    assert attempt.started < (first_step(RunDir(job.path)) or 0) < (attempt.ended or 0)
    # SLURM may say how a job ended before the last of its output is in the file.
    wait_for(lambda: "Done: test accuracy" in job.said)


def test_a_job_that_slurm_warns_is_requeued_and_ends_as_if_nothing_had_been(told: Of) -> None:
    job = told(warned)
    check(job, told, "timeout", "completed")
    config = json.loads((job.path / "config.json").read_text())
    pieces = {path.name.rpartition("-")[2] for path in job.path.glob("wandb/offline-run-*")}
    assert pieces == {config["tracking"]["run_id"]}  # one run of W&B, whoever started it


@on_plain
def test_a_time_limit_is_lived_through(told: Of) -> None:
    check(told(time_limit), told, "timeout", "completed")


def test_a_preempted_job_goes_on_afterwards(told: Of) -> None:
    check(told(preempted), told, "interrupted", "completed")


@on_strict
def test_a_job_that_is_preempted_for_good_can_be_submitted_again(told: Of) -> None:
    check(told(taken), told, "interrupted", "completed")


def test_a_preempted_job_that_is_given_time_loses_no_step(told: Of) -> None:
    """With GraceTime SLURM sends SIGTERM to the steps alone, and takes the nodes later."""
    job = told(given_time)
    check(job, told, "interrupted", "completed")
    assert f"goes on after step {job.attempts[0].step} " in job.said


def check_lost(job: Submitted, told: Of) -> None:
    # SLURM, still busy with what ran on the node, may end the next start there, without a word to
    # the other node, which sees it and leaves, too.
    first, *more = verdicts(job)[:-1]
    assert first == "interrupted"
    assert more in ([], ["interrupted"])
    check(job, told, first, *more, "completed")


def test_a_lost_node_costs_no_more_than_a_restart(told: Of) -> None:
    check_lost(told(lost), told)


@on_plain
def test_a_silent_node_costs_no_more_than_a_restart(told: Of) -> None:
    check_lost(told(silent), told)


@on_plain
def test_a_killed_worker_is_named_and_the_job_starts_again_on_the_nodes_it_has(told: Of) -> None:
    job = told(worker_killed)
    check(job, told, "failed", "failed", "failed", "completed")
    assert job.said.count("rank 1 on n2 failed first: killed by SIGKILL") == 3
    assert job.cluster.job(job.job)["Restarts"] == "0"
    assert [one.start for one in job.attempts] == [1, 2, 3, 4]
    steps = [one.step for one in job.attempts]
    assert steps == sorted(set(steps))


def test_a_failed_run_is_failed_for_slurm_too_and_says_who_and_why(told: Of) -> None:
    job = told(failed)
    assert job.cluster.job(job.job)["ExitCode"] == "1:0"
    wait_for(lambda: "rank 1 on n2 failed first: ValueError: the third wheel came off" in job.said)
    assert job.result["state"] == "failed"
    assert verdicts(job) == ["failed"]


def test_a_cancelled_job_ends_for_good_with_a_checkpoint(told: Of) -> None:
    job = told(cancelled)
    assert job.cluster.state(job.job) == "CANCELLED"
    # Where SLURM's patience ends, its script dies with it: whoever starts it again notes the end.
    assert verdicts(job) in ([None], ["interrupted"])
    run = RunDir(job.path)
    assert all_of(run.checkpoints)[-1].step == reach(run)


@on_strict
def test_where_requeueing_is_forbidden_a_chain_goes_on(told: Of) -> None:
    job = told(chain)
    links = [job.cluster.job(int(one.id)) for one in SlurmFolder(job.path / "slurm").jobs()]
    ends = [("FAILED", "75:0"), ("COMPLETED", "0:0"), ("COMPLETED", "0:0")]
    assert [(link["JobState"], link["ExitCode"]) for link in links] == ends
    assert verdicts(job) == ["timeout", "completed"]
    check_same(job, told(undisturbed))


@on_strict
def test_a_grid_is_an_array_whose_tasks_are_requeued_one_by_one(told: Of) -> None:
    array = told(grid)
    first, second = tasks_of(array)
    assert [verdicts(first), verdicts(second)] == [["completed"], ["timeout", "completed"]]
    assert first.farthest(second) > 1e-3
    [job] = SlurmFolder(second.path / "slurm").jobs()
    assert job.name == f"{array.job}_1"
    [log] = SlurmFolder(second.path / "slurm").outputs()
    wait_for(lambda: "Done: test accuracy" in log.read_text())


def test_status_tells_each_end_whether_slurm_remembers_the_job_or_not(
    told: Of, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    jobs = {kind.__name__: [told(kind)] for kind in kinds(cluster)}
    if "grid" in jobs:
        jobs["grid"] = tasks_of(told(grid))
    paths = [job.path for those in jobs.values() for job in those]
    ends = {"failed": "failed", "cancelled": "cancelled"}
    states = [ends.get(name, "completed") for name, those in jobs.items() for _ in those]
    assert [one.state for one in status.statuses(paths)] == states
    names = [job.id for path in paths for job in SlurmFolder(path / "slurm").jobs()]
    remembered = {name: job.state for name, job in status.jobs_now(names).items()}
    monkeypatch.setattr(status, "_squeue", lambda _: {})  # it forgets after MinJobAge
    accounted = {name: job.state for name, job in status.jobs_now(names).items()}
    # Without accounting the run directories know how it was, and what was cancelled.
    assert accounted == (remembered if isinstance(cluster, strict.StrictCluster) else {})
    assert [one.state for one in status.statuses(paths)] == states


def test_nobody_is_left_on_any_node(told: Of, cluster: Cluster) -> None:
    for kind in kinds(cluster):
        told(kind)
    wait_for(lambda: not any(map(cluster.processes, cluster.nodes)), timeout_s=30)
