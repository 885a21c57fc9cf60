"""Scripts as each tool's documentation has them, and Accelerate's own, find each other."""

import socket
from pathlib import Path

import pytest
from test_scripts import log_of, result_of
from training import launcher, started

pytestmark = [pytest.mark.slow, pytest.mark.warm(scripts=True), pytest.mark.timeout(600)]
PROGRAMS = Path(__file__).parent / "programs"
# As SLURM has it for a task: Lightning must not take this for its own.
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
HF = ["--output_dir", "out", "--use_cpu", "--num_train_epochs", "2", "--save_steps", "4"]
# A program, its own words, what each rank says at its end.
TOOLS: dict[str, tuple[list[str], str]] = {
    "ddp.py": ([], "world 2 rank {rank} local {rank}"),
    "by_accelerate.py": ([], "world 2 rank {rank}, 4 batches"),
    "by_trainer.py": ([*HF, "--report_to", "none"], "world 2 rank {rank}, step 8"),
    "by_lightning.py": (["2"], "world 2 rank {rank} by TorchElasticEnvironment"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_finds_its_world_as_under_torchrun(name: str, tmp_path: Path) -> None:
    words, said = TOOLS[name]
    options = ["--nproc", "2", "--cpu", "--run-dir", "r", "--", *words]
    done = launcher("run", PROGRAMS / name, *options, cwd=tmp_path, env=JOB)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert said.format(rank=rank) in log_of(tmp_path / "r", rank)


@pytest.mark.parametrize("name", ["by_trainer.py", "by_lightning.py"])
def test_a_tool_s_script_is_a_job_on_this_machine(name: str, tmp_path: Path) -> None:
    words, said = TOOLS[name]
    words = words if name == "by_trainer.py" else ["1"]
    options = ["--local", "--nproc=1", "--no-checks", "--run-dir", "r", "--", *words]
    done = launcher("submit", PROGRAMS / name, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = said.replace("world 2", "world 1").replace("step 8", "step 16")
    assert said.format(rank=0) in log_of(tmp_path / "r")
    assert result_of(tmp_path / "r")["state"] == "completed"


def test_lightning_alone_leaves_the_queue_to_the_launcher(tmp_path: Path) -> None:
    words = ["--cpu", "--run-dir", "r", "--", "1"]
    done = launcher("run", PROGRAMS / "by_lightning.py", *words, cwd=tmp_path, env=JOB)
    assert done.returncode == 0, done.stderr
    assert "world 1 rank 0 by LightningEnvironment" in done.stdout


@pytest.mark.parametrize("name", ["test_script", "test_sync"])
def test_accelerate_s_own_scripts_end_as_under_torchrun(name: str, tmp_path: Path) -> None:
    module = f"accelerate.test_utils.scripts.{name}"
    done = launcher("run", "-m", module, "--nproc", "2", "--cpu", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


TWO_MACHINES = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ones, start = torch.ones(1), os.environ["LAUNCHER_START"]
dist.all_reduce(ones)
print(f"{ones.item():g} of {dist.get_world_size()}, start {start}", flush=True)
if dist.get_rank() == 1 and "fail" in sys.argv:
    raise ValueError("at one")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("way", ["well", "fail"])
def test_machines_meet_and_end_together(way: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TWO_MACHINES)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["train.py", "--cpu", "--nnodes=2", f"--rdzv-endpoint=localhost:{port}"]
    words += ["--run-dir", "r"]
    with started("run", *words, "--node-rank=1", "--", way, cwd=tmp_path) as other:
        done = launcher("run", *words, "--", way, cwd=tmp_path)
        _, errors = other.communicate(timeout=200)
    assert done.returncode == other.returncode == (way == "fail"), done.stderr + errors
    assert ("rank 1 on" in errors and "ValueError: at one" in errors) == (way == "fail")
    for rank in range(2):
        assert "2 of 2, start 1\n" in log_of(tmp_path / "r", rank)
