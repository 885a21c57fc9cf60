"""`launcher submit` on a real cluster: what is disturbed ends with the same numbers."""

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from training import RECIPES, Run, launcher, wait_for

from launcher.run_dir import RunDir
from launcher.slurm_job import Attempt, SlurmFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]
CURVE = RECIPES / "curve.py"
WORDS = ["epochs=4", "samples=197", "test_samples=60", "batch_size=10"]  # 80 steps
WORDS += ["checkpoint_every=7", "log_every=4", "dropout=0.2", "augment=true", "schedule=true"]
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    # Above KillWait: else the order to end a failed step times out, and SLURM repeats it a minute
    # later, when the next start has a step of the same name. Sites requeue after two minutes.
    extra = ["MessageTimeout=10"]
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, nodes=2, cpus=4, extra=extra) as running:
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

    @property
    def completed(self) -> bool:
        result = self.path / "result.json"
        return result.exists() and self.result["state"] == "completed"

    def wait(self, *states: str, timeout_s: float = 300) -> str:
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


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run when nobody disturbs it; pauses change no number."""
    job = two_nodes(cluster, tmp_path_factory.mktemp("undisturbed"), step_s=0)
    assert job.wait() == "COMPLETED", job.said
    return job


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
    wait_for(lambda: job.step >= 28 or job.completed, timeout_s=240)
    assert 0 < job.step < 60, job.said
    return job


def nobody_is_left(cluster: Cluster) -> bool:
    return [cluster.processes(node) for node in cluster.nodes] == [[], []]


def verdicts(job: Submitted) -> list[str | None]:
    return [one.verdict for one in job.attempts]


def test_a_job_that_slurm_warns_is_requeued_and_ends_as_if_nothing_had_been(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path, "--tracking=offline"))
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    job.wait("PENDING", timeout_s=60)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["timeout", "completed"]
    check_same(job, undisturbed)
    wait_for(lambda: nobody_is_left(cluster), timeout_s=10)
    config = json.loads((job.path / "config.json").read_text())
    pieces = {path.name.rpartition("-")[2] for path in job.path.glob("wandb/offline-run-*")}
    assert pieces == {config["tracking"]["run_id"]}  # one run of W&B, whoever started it


def test_a_time_limit_is_lived_through(cluster: Cluster, tmp_path: Path, undisturbed: Run) -> None:
    # SLURM warns early: after 80 to 110 s of these two minutes.
    job = two_nodes(cluster, tmp_path, "--time=2", "--sbatch", "signal=B:USR1@10", step_s=1.5)
    assert job.wait(timeout_s=400) == "COMPLETED", job.said
    assert verdicts(job)[0] == "timeout"
    assert verdicts(job)[-1] == "completed"
    check_same(job, undisturbed)


def test_a_controller_that_is_away_when_a_job_wants_to_go_on_is_waited_for(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    cluster.stop_controller()
    try:  # scontrol itself waits out some seconds
        wait_for(lambda: "scontrol requeue failed, and is tried again" in job.said, timeout_s=90)
        assert job.result["state"] == "stopped"
    finally:
        cluster.start_controller()
    wait_for(lambda: len(job.attempts) == 2, timeout_s=90)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["timeout", "completed"]
    check_same(job, undisturbed)


def test_a_preempted_job_goes_on_afterwards(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    script = tmp_path / "high.sh"
    script.write_text("#!/bin/bash\nsrun true\n")
    options = ("-phigh", "--nodes=2", "--exclusive", "--output=/dev/null")
    high = cluster.submit(script, *options)
    cluster.wait(high, "COMPLETED", timeout_s=60)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["interrupted", "completed"]
    check_same(job, undisturbed)


# SLURM, still busy with what ran on a node that died, may end the next start there: it goes on.
@pytest.mark.parametrize(
    ("lose", "bring_back", "most_starts"),
    [(Cluster.kill_node, Cluster.start_node, 3), (Cluster.cut, Cluster.heal, 2)],
    ids=["dies", "falls silent"],
)
def test_a_lost_node_costs_no_more_than_a_restart(
    cluster: Cluster,
    tmp_path: Path,
    undisturbed: Run,
    lose: Callable[[Cluster, str], None],
    bring_back: Callable[[Cluster, str], None],
    most_starts: int,
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    lose(cluster, "n2")
    job.wait("PENDING", timeout_s=90)
    bring_back(cluster, "n2")
    assert job.wait(timeout_s=400) == "COMPLETED", job.said
    assert verdicts(job)[0] == "interrupted"
    assert len(job.attempts) <= most_starts
    check_same(job, undisturbed)
    wait_for(lambda: nobody_is_left(cluster), timeout_s=30)


def test_a_killed_worker_is_named_and_the_job_starts_again(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    # The worker was forked from the agent, and has its command line.
    agents = {p.pid for p in cluster.processes("n2") if "start agent" in p.command}
    [worker] = [pid for pid in agents if psutil.Process(pid).ppid() in agents]
    os.kill(worker, signal.SIGKILL)
    job.wait("PENDING", timeout_s=60)
    assert "rank 1 on n2 failed first: killed by SIGKILL" in job.said
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["failed", "completed"]
    check_same(job, undisturbed)


def test_a_failed_run_is_failed_for_slurm_too_and_says_who_and_why(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ["what=raise", "at_rank=1", "batch_size=10", "--nodes=2", "--max-failures=0"]
    job = submit(cluster, tmp_path, RECIPES / "trouble.py", *words)
    assert job.wait() == "FAILED"
    assert cluster.job(job.job)["ExitCode"] == "1:0"
    wait_for(lambda: "rank 1 on n2 failed first: ValueError: the third wheel came off" in job.said)
    assert job.result["state"] == "failed"
    assert verdicts(job) == ["failed"]
    wait_for(lambda: nobody_is_left(cluster), timeout_s=10)


def test_a_run_without_progress_is_given_up_with_a_code_of_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ["what=raise", "at_rank=1", "batch_size=10", "--nodes=2"]
    job = submit(cluster, tmp_path, RECIPES / "trouble.py", *words)
    assert job.wait() == "FAILED"
    assert cluster.job(job.job)["ExitCode"] == "76:0"
    assert verdicts(job) == ["failed", "failed"]
    wait_for(lambda: "given up: the last start made no progress" in job.said)


def test_two_jobs_on_the_same_nodes_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    words = ["--nodes=2", "--sbatch", "overcommit"]
    for name in "ab":
        (tmp_path / name).mkdir()
    jobs = [submit(cluster, tmp_path / name, "digits", f"seed={seed}", "epochs=3", *words)
            for seed, name in enumerate("ab")]  # fmt: skip
    assert [job.wait() for job in jobs] == ["COMPLETED"] * 2, jobs[0].said + jobs[1].said
    assert [job.result["world_size"] for job in jobs] == [2, 2]
    assert jobs[0].farthest(jobs[1]) > 1e-3
    first, second = (job.attempts[0] for job in jobs)
    assert second.started < (first.ended or 0)  # at the same time


def test_a_second_job_of_a_run_waits_for_the_first_and_notes_nothing(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = two_nodes(cluster, tmp_path)
    wait_for(lambda: job.attempts != [], timeout_s=120)  # nobody may have the lock yet
    second = Submitted(job.path, cluster, cluster.submit(job.path / "slurm" / "job.sbatch"))
    assert job.wait() == "COMPLETED", job.said
    assert second.wait() == "COMPLETED", second.said
    assert "there is nothing left to do" in second.said
    assert [(one.job, one.verdict) for one in job.attempts] == [(str(job.job), "completed")]
    check_same(job, undisturbed)


def test_where_requeueing_is_forbidden_a_chain_goes_on(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = two_nodes(cluster, tmp_path, "--chain=3")
    first, second, third = (int(one.id) for one in SlurmFolder(job.path / "slurm").jobs())
    in_mid_epoch(job)
    cluster.run("scancel", "--signal=USR1", "--batch", str(first))
    assert job.wait() == "FAILED"
    assert cluster.job(first)["ExitCode"] == "75:0"
    assert cluster.wait(second, *ENDS, timeout_s=300) == "COMPLETED"
    assert cluster.wait(third, *ENDS, timeout_s=300) == "COMPLETED"
    assert verdicts(job) == ["timeout", "completed"]
    check_same(job, undisturbed)


def test_a_grid_is_an_array_whose_tasks_are_requeued_one_by_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = [CURVE, *WORDS, "step_s=0.15", "--grid", "seed=0,1", "--max-parallel=2"]
    array = submit(cluster, tmp_path, *words)
    first, second = (Submitted(array.path / str(task), cluster, 0) for task in range(2))
    wait_for(lambda: second.step >= 28, timeout_s=240)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array.job}_1")
    ends = (["completed"], ["timeout", "completed"])
    wait_for(lambda: (verdicts(first), verdicts(second)) == ends, timeout_s=400, every_s=0.5)
    assert first.farthest(second) > 1e-3
    [job] = SlurmFolder(second.path / "slurm").jobs()
    assert job.name == f"{array.job}_1"
    [log] = SlurmFolder(second.path / "slurm").outputs()
    wait_for(lambda: "Done: test accuracy" in log.read_text())


def test_odd_names_survive_and_an_edit_comes_too_late_for_a_job_that_waits(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / 'it\'s $(touch hacked) `x`; "ü" & 100%j #1'
    folder.mkdir()
    recipe = folder / "my recipe.py"
    recipe.write_text((RECIPES / "trouble.py").read_text())
    words = [
        "--sbatch",
        "hold",
        "--job-name",
        "a b' $(touch hacked) #ü",
        "what=warn",
        "batch_size=10",
    ]
    job = submit(cluster, folder, recipe, *words)
    recipe.write_text("raise SystemExit('edited')")
    cluster.run("scontrol", "release", str(job.job))
    assert job.wait() == "COMPLETED", job.said
    wait_for(lambda: "said by the recipe" in job.said)
    assert not list(tmp_path.rglob("hacked*"))


def test_a_stop_that_only_the_top_process_hears_stops_all(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    """What SLURM does with proctrack/cgroup: the first process of a step gets the signal alone."""
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    [top] = [p.pid for p in cluster.processes("n2") if "launcher job node" in p.command]
    os.kill(top, signal.SIGUSR1)
    job.wait("PENDING", timeout_s=60)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["interrupted", "completed"]
    check_same(job, undisturbed)


def test_no_secret_of_the_environment_is_written(cluster: Cluster, tmp_path: Path) -> None:
    secret = secrets.token_hex(20)
    words = ("submit", "digits", "epochs=1", "--run-dir", tmp_path / "r", "--json", "--no-checks")
    env = cluster.env | {"WANDB_API_KEY": secret, "MY_TOKEN": secret}
    done = launcher(*words, cwd=tmp_path, env=env)
    job = Submitted(tmp_path / "r", cluster, int(json.loads(done.stdout)["jobs"][0]))
    assert job.wait() == "COMPLETED", job.said
    files = [path for path in job.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_node_that_failed_its_checks_is_left_out_by_the_next_start(
    cluster: Cluster, tmp_path: Path
) -> None:
    # What `doctor.vet` does on a bad node, in shell: n1 is the one that a job gets first.
    lines = """
        node_setup = ['if [ "$SLURMD_NODENAME" = n1 ]; then mkdir -p "$1/slurm/bad-nodes"',
                      'echo "disk full" > "$1/slurm/bad-nodes/n1.txt"; exit 1; fi']
    """
    (tmp_path / "site.toml").write_text(lines)
    job = submit(cluster, tmp_path, "digits", "epochs=1", "--profile", tmp_path / "site.toml")
    assert job.wait() == "COMPLETED", job.said
    assert [(one.nodes, one.bad_nodes) for one in job.attempts] == [("n1", ["n1"]), ("n2", [])]
    assert cluster.job(job.job)["ExcNodeList"] == "n1"


def test_what_slurm_would_refuse_is_refused_before_anything_is_written(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = launcher("submit", "digits", "--partition=nowhere", cwd=tmp_path, env=cluster.env)
    assert done.returncode == 2
    assert "sbatch refuses the job: " in done.stderr
    assert "invalid partition" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", ["NONE", "HOME"])
def test_a_job_that_gets_no_environment_trains(
    cluster: Cluster, tmp_path: Path, export: str
) -> None:
    words = ["digits", "epochs=1", "--nodes=2", "--nproc=2", "--sbatch", f"export={export}"]
    job = submit(cluster, tmp_path, *words)
    assert job.wait() == "COMPLETED", job.said
    assert job.result["world_size"] == 4


def test_a_job_that_can_never_start_is_told_at_once(cluster: Cluster, tmp_path: Path) -> None:
    words = ["submit", "digits", "--no-checks", "--time=90", "--run-dir", tmp_path / "a b"]
    done = launcher(*words, cwd=tmp_path, env=cluster.env)
    assert done.returncode == 0, done.stderr
    said = "warning: it can never start as it is (PartitionTimeLimit): launcher cancel 'a b'"
    assert said in done.stderr
    again = launcher("cancel", "a b", cwd=tmp_path, env=cluster.env)
    assert "told to end; go on: launcher resubmit 'a b'" in again.stdout


def test_a_job_can_be_followed_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    words = ["submit", "digits", "epochs=1", "--no-checks", "--follow", "--run-dir", "r"]
    done = launcher(*words, cwd=tmp_path, env=cluster.env)
    assert done.returncode == 0, done.stderr
    assert "Done: test accuracy" in done.stdout
