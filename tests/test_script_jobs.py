"""Scripts as jobs, on a real cluster of two nodes and on this machine: disturbed, they go on."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from slurm_cluster import Cluster, missing, slurm_cluster
from submitted import ENDS, Submitted, submit, verdicts
from training import Run, launcher, started, wait_for

import launcher as api
from launcher.job.place import first_step
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.control import log_of

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]

# As people write them: a checkpoint of its own, and a signal that is heard.
PLAIN = """\
import argparse, os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from helper import NAME

def leave(*_):
    print("asked", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, leave)
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
parser.add_argument("--resume")
args = parser.parse_args()
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
saved = Path("ckpt", "last.txt")
step = int(Path(args.resume, "last.txt").read_text()) if args.resume else 0
print(f"{NAME} {rank} of {world}, start {os.environ['LAUNCHER_START']} from {step}", flush=True)
while step < args.steps:
    ones = torch.ones(1)
    dist.all_reduce(ones)
    assert ones.item() == world
    step += 1
    if rank == 0:
        saved.parent.mkdir(exist_ok=True)
        saved.with_suffix(".new").write_text(str(step))
        saved.with_suffix(".new").rename(saved)
    time.sleep(0.3)
dist.destroy_process_group()
print("done", step, flush=True)
"""

ATTACHED = """\
import sys, time
import torch, torch.distributed as dist
import launcher

dist.init_process_group("gloo")
torch.manual_seed(0)
weights = torch.zeros(4)

def save(folder):
    if run.rank == 0:
        torch.save(weights, folder / "weights.pt")

def load(folder):
    weights.copy_(torch.load(folder / "weights.pt"))

run = launcher.attach(save=save, load=load, checkpoint_every=5)
for step in run.steps(int(sys.argv[1])):
    gradient = torch.arange(4.0) * (run.rank + 1) / (step + 1)
    dist.all_reduce(gradient)
    weights -= 0.1 * gradient
    run.log(step, loss=float(weights.norm()))
    time.sleep(float(sys.argv[2]))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    extra = ["MessageTimeout=10"]  # as in test_cluster_jobs
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), cpus=4, extra=extra) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the scripts."""
    (tmp_path / "train.py").write_text(PLAIN)
    (tmp_path / "helper.py").write_text("NAME = 'rank'\n")
    (tmp_path / "attached.py").write_text(ATTACHED)
    return tmp_path


def test_a_plain_script_goes_on_after_a_time_limit_and_a_lost_node_with_its_own_checkpoint(
    cluster: Cluster, folder: Path
) -> None:
    words = ["--nodes=2", "--nproc=1", "--progress=ckpt", "--on-resume=--resume ckpt"]
    job = submit(cluster, folder, "train.py", *words, "--sbatch=hold", after=["--steps", 60])
    (folder / "helper.py").write_text("raise SystemExit('edited')")  # too late
    cluster.run("scontrol", "release", str(job.job))
    saved = job.path / "snapshot" / "ckpt" / "last.txt"
    wait_for(lambda: saved.exists() or job.state == "FAILED", timeout_s=120)
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    wait_for(lambda: job.log(1)[-1].startswith("rank 1 of 2, start 2"), timeout_s=120)
    lose(cluster, "n2", job)
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["timeout", "interrupted", "completed"]
    told = {name: job.result[name] for name in ("state", "exit_code", "starts", "world_size")}
    assert told == {"state": "completed", "exit_code": 0, "starts": 3, "world_size": 2}
    for rank in (0, 1):
        first, *later = [line for line in job.log(rank) if line.startswith("rank")]
        assert first == f"rank {rank} of 2, start 1 from 0"
        assert [line.split()[5] for line in later] == ["2", "3"]
        assert not any(line.endswith(" 0") for line in later)
        assert job.log(rank).count("asked") >= 1  # SLURM's own warning kills nobody
        assert job.log(rank)[-1] == "done 60"
    assert not any(cluster.processes(node) for node in cluster.nodes)
    check_commands(cluster, job)


def lose(cluster: Cluster, node: str, job: Submitted) -> None:
    """Take the power from a node, until SLURM has given it up."""
    cluster.kill_node(node)
    job.wait("PENDING", timeout_s=120)
    cluster.start_node(node)


def check_commands(cluster: Cluster, job: Submitted) -> None:
    """What there is for jobs knows one of a script."""
    status = launcher("status", job.path, "--json", cwd=job.path, env=cluster.env)
    [row] = json.loads(status.stdout)
    assert (row["state"], row["starts"]) == ("completed", 3)
    logs = launcher("logs", job.path, "--rank", 1, cwd=job.path, env=cluster.env)
    assert logs.stdout == log_of(job.path, 1).read_text()
    again = launcher("resubmit", job.path, cwd=job.path, env=cluster.env)
    assert again.returncode == 2
    assert "completed" in again.stderr


PROGRAMS = Path(__file__).parent / "programs"
HF = ["--output_dir", "out", "--use_cpu", "--num_train_epochs", "2", "--save_steps", "4"]
# A program, its own words, what each rank says at its end.
TOOLS: dict[str, tuple[list[object], str]] = {
    "by_trainer.py": ([*HF, "--report_to", "none"], "world 2 rank {rank}, step 8"),
    "by_lightning.py": ([1, 2], "world 2 rank {rank} by TorchElasticEnvironment"),
}


def test_scripts_of_the_tools_train_on_two_nodes(cluster: Cluster, folder: Path) -> None:
    jobs = {}
    for name, (words, _) in TOOLS.items():
        (folder / name[:-3]).mkdir()
        options = [PROGRAMS / name, "--nodes=2", "--nproc=1"]
        jobs[name] = submit(cluster, folder / name[:-3], *options, after=words)
    for name, (_, said) in TOOLS.items():
        job = jobs[name]
        assert job.wait() == "COMPLETED", job.said
        assert verdicts(job) == ["completed"]
        assert all(said.format(rank=rank) in job.log(rank) for rank in range(2))


def test_a_script_with_attach_ends_as_an_undisturbed_one_whatever_befalls_its_nodes(
    cluster: Cluster, folder: Path
) -> None:
    job = submit(cluster, folder, "-m", "attached", "--nodes=2", "--nproc=1", after=[60, 0.3])
    befalls: list[Callable[[], None]] = [
        lambda: preempt(cluster, folder),
        lambda: lose(cluster, "n2", job),
        lambda: os.kill(agent_on(cluster, "n2"), signal.SIGKILL),
    ]
    for start, happens in enumerate(befalls, 1):
        wait_for(partial(is_training, job, start), timeout_s=120)
        happens()
    assert job.wait() == "COMPLETED", job.said
    assert verdicts(job) == ["interrupted", "interrupted", "failed", "completed"]
    assert str(job.attempts[2].error).startswith("rank 1 on n2 failed first: killed by SIGKILL")
    assert [row["step"] for row in job.rows] == list(range(60))
    newest = job.attempts[-1]  # how long it took to its first step is what another would take
    assert newest.started < (first_step(RunDir(job.path)) or 0) < (newest.ended or 0)
    assert job.result["state"] == "completed"
    alone = launcher(
        *("submit", "attached.py", "--local", "--nodes=2", "--nproc=1", "--no-checks"),
        *("--run-dir", "whole", "--", 60, 0),
        cwd=folder,
    )
    assert alone.returncode == 0, alone.stderr
    assert losses(job) == losses(Run(folder / "whole"))
    for run in (job.path, folder / "whole"):
        assert not list((run / "checkpoints").glob(".*"))
    last = "checkpoints/step-00000060/weights.pt"
    assert (job.path / last).read_bytes() == (folder / "whole" / last).read_bytes()
    assert not any(cluster.processes(node) for node in cluster.nodes)


def is_training(job: Submitted, start: int) -> bool:
    """Whether a start has saved a checkpoint of its own; fails where the job has ended."""
    assert job.state not in ENDS, job.said
    log = RunDir(job.path).log(0)
    lines = log.read_text().splitlines() if log.exists() else []
    begins = [at for at, line in enumerate(lines) if line.startswith("continuing from")]
    return len(begins) == start - 1 and len(lines) > max(begins, default=0) + 7


def agent_on(cluster: Cluster, node: str) -> int:
    """The pid of what starts a script's processes on a node."""
    words = " -m launcher.node.start programs "
    found = {one.pid for one in cluster.processes(node) if words in one.command}
    [agent] = found - {psutil.Process(pid).ppid() for pid in found}  # without its guards
    return agent


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.rows]


def preempt(cluster: Cluster, folder: Path) -> None:
    """Take the nodes away for a moment."""
    script = folder / "high.sh"
    script.write_text("#!/bin/bash\nsleep 2\n")
    words = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.submit(script, *words)


def test_a_script_that_fails_alike_at_once_is_not_started_for_ever(
    cluster: Cluster, folder: Path
) -> None:
    source = "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('the third wheel')\n"
    (folder / "bad.py").write_text(source + "import time; time.sleep(60)\n")
    job = submit(cluster, folder, "bad.py", "--nodes=2")
    assert job.wait() == "FAILED"
    assert cluster.job(job.job)["ExitCode"] == "76:0"
    assert verdicts(job) == ["failed", "failed"]
    assert cluster.job(job.job)["Restarts"] == "0"  # it started again on the nodes it had
    assert "given up: the last start made no progress: rank 1 on" in job.result["error"]
    assert "ValueError: the third wheel" in job.result["error"]


def told_of(job: Submitted, word: str) -> bool:
    """Whether the script has said a word, as far as it has begun."""
    return RunDir(job.path).log(0).exists() and word in job.log(0)


AGAIN = """\
import os, signal, sys, time
start = int(os.environ["LAUNCHER_START"])
if start == 1:
    sys.exit(75)  # start me again
if start == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(1000)
assert "RANK" not in os.environ
"""


def test_a_script_is_started_again_that_asks_for_it_or_does_not_stop(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    (folder / "again.py").write_text(AGAIN)
    soon = {"signal": "B:USR1@2"}
    told = api.submit("again.py", no_checks=True, sbatch=soon, run_dir="r", quiet=True)
    job = Submitted(told.path, cluster, int(told.jobs[0]))
    wait_for(lambda: told_of(job, "deaf"), timeout_s=120, every_s=0.3)
    cluster.run("scancel", "--signal=USR1", "--batch", str(job.job))
    assert job.wait() == "COMPLETED", job.said
    assert told.status().state == "completed"
    assert verdicts(job) == ["interrupted", "timeout", "completed"]
    assert told.result == job.result
    assert job.result["starts"] == 3
    # Who asks for it starts again where it is; SLURM wants the nodes back at the time limit.
    assert cluster.job(job.job)["Restarts"] == "1"


def test_the_same_scripts_run_on_this_machine_and_are_started_again(folder: Path) -> None:
    words = ["--nodes=2", "--nproc=1", "--no-checks", "--local", "--run-dir", "r"]
    words += ["--progress=ckpt", "--on-resume=--resume ckpt", "--", "--steps", "30"]
    run = RunDir(folder / "r")
    with started("submit", "train.py", *words, cwd=folder) as process:
        saved = run.snapshot / "ckpt" / "last.txt"
        wait_for(lambda: saved.exists() or process.poll() is not None, timeout_s=120)
        [batch] = psutil.Process(process.pid).children()
        batch.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert [one.verdict for one in SlurmFolder.of(run).attempts()] == ["timeout", "completed"]
    lines = run.log(1).read_text().splitlines()
    assert lines[-2].startswith("rank 1 of 2, start 2 from ")
    assert lines[-1] == "done 30"
