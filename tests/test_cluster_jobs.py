"""`launcher submit` on a real cluster; how jobs end is in `test_job_ends`."""

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from submitted import Submitted, check_same, in_mid_epoch, submit, two_nodes, verdicts
from training import RECIPES, Run, launcher, wait_for

from launcher.run.directory import RunDir
from launcher.times import notes

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


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


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run when nobody disturbs it; pauses change no number."""
    job = two_nodes(cluster, tmp_path_factory.mktemp("undisturbed"), step_s=0)
    assert job.wait() == "COMPLETED", job.said
    return job


def check_times(job: Submitted) -> None:
    """Every second since it was submitted has a name, and nobody had to guess one."""
    done = launcher("status", job.path, "--json", cwd=job.path, env=job.cluster.env)
    [told] = json.loads(done.stdout)
    by_name = told["times"]
    assert by_name.keys() - {"lost"} == {
        *("queued", "starting", "training", "testing", "saving", "ending")
    }
    lines = notes.read(RunDir(job.path))
    submitted = next(line["queued"] for line in lines if line["event"] == "job")
    assert lines[-1]["event"] == "job end"
    assert sum(by_name.values()) == pytest.approx(lines[-1]["time"] - submitted, abs=0.1)
    wait_for(lambda: "time of 2 starts, " in job.said.splitlines()[-1])


@pytest.mark.timeout(600)  # scontrol gives up on a silent controller after half a minute, each time
def test_a_controller_that_is_away_when_a_job_wants_to_go_on_is_waited_for(
    cluster: Cluster, tmp_path: Path, undisturbed: Run
) -> None:
    job = in_mid_epoch(two_nodes(cluster, tmp_path))
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    cluster.stop_controller()
    try:
        wait_for(lambda: "scontrol requeue failed, and is tried again" in job.said, timeout_s=240)
        assert job.result["state"] == "stopped"
    finally:
        cluster.start_controller()
    wait_for(lambda: len(job.attempts) == 2, timeout_s=240)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["timeout", "completed"]
    check_same(job, undisturbed)
    check_times(job)


def test_a_run_without_progress_is_given_up_with_a_code_of_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ["what=raise", "at_rank=1", "batch_size=10", "--nodes=2"]
    job = submit(cluster, tmp_path, RECIPES / "trouble.py", *words)
    assert job.wait() == "FAILED"
    assert cluster.job(job.job)["ExitCode"] == "76:0"
    assert verdicts(job) == ["failed", "failed"]
    assert cluster.job(job.job)["Restarts"] == "0"  # it started again on the nodes it had
    wait_for(lambda: "given up: the last start made no progress" in job.said)


def test_two_jobs_on_the_same_nodes_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    words = ["--nodes=2", "--sbatch", "overcommit"]
    for name in "ab":
        (tmp_path / name).mkdir()
    env = {"GLOO_SOCKET_IFNAME": "lo"}  # as whoever submits from within a run has it
    jobs = [submit(cluster, tmp_path / name, "digits", f"seed={seed}", "epochs=3", *words, env=env)
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


def test_a_node_that_failed_its_checks_is_left_out_though_slurm_was_not_told_in_time(
    cluster: Cluster, tmp_path: Path
) -> None:
    # What `doctor.vet` does on a bad node, in shell: n1 is the one that a job gets first.
    lines = f"""
        setup = ['export PATH="{tmp_path}/bin:$PATH"']
        node_setup = ['if [ "$SLURMD_NODENAME" = n1 ]; then mkdir -p "$1/slurm/bad-nodes"',
                      'echo "disk full" > "$1/slurm/bad-nodes/n1.txt"; exit 1; fi']
    """
    (tmp_path / "site.toml").write_text(lines)
    real = shutil.which("scontrol")
    lost = '[ "$1$SLURM_RESTART_COUNT" = update ] && exit 1'  # at the first start, until KillWait
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\n{lost}\nexec {real} "$@"\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    words = ["digits", "epochs=1", "--max-failures=1", "--profile", tmp_path / "site.toml"]
    job = submit(cluster, tmp_path, *words)
    assert job.wait() == "COMPLETED", job.said
    assert "scontrol update failed, and is tried again" in job.said
    assert f"job {job.job} leaves out n1: back into the queue" in job.said
    assert [(one.nodes, one.bad_nodes) for one in job.attempts] == [("n1", ["n1"]), ("n2", [])]
    assert cluster.job(job.job)["ExcNodeList"] == "n1"
    assert cluster.job(job.job)["Restarts"] == "2"


def test_what_slurm_would_refuse_is_refused_before_anything_is_written(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = launcher("submit", "digits", "--partition=nowhere", cwd=tmp_path, env=cluster.env)
    assert done.returncode == 2
    assert "sbatch refuses the job: " in done.stderr
    assert "invalid partition" in done.stderr
    assert not list(tmp_path.iterdir())


BEYOND = [
    (["--time=90"], "it could never start: partition low gives 1:00:00, not --time=90 (command"),
    (["--nodes=3"], "hint: partition low has 2 nodes, jobs of 1:00:00; "),
    (["--constraint=v100"], "hint: partition low has 2 nodes, jobs of 1:00:00; "),
]


@pytest.mark.parametrize(("words", "said"), BEYOND)
def test_what_a_partition_does_not_allow_is_told_before_anything_is_queued(
    cluster: Cluster, tmp_path: Path, words: list[str], said: str
) -> None:
    done = launcher("submit", "digits", *words, cwd=tmp_path, env=cluster.env)
    assert done.returncode == 2
    assert said in done.stderr
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
    # A quality of service may allow more than its partition: only SLURM knows.
    words = ["submit", "digits", "--no-checks", "--time=90", "--qos=any"]
    words += ["--run-dir", str(tmp_path / "a b")]
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
