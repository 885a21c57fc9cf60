"""Stage 1: the bundled recipe is started in all the ways that there are, and says where it runs."""

import re
import sys
from pathlib import Path
from subprocess import CompletedProcess

from check import PROJECT, Note
from training import Run, command, launcher

DIGITS = PROJECT / "recipes" / "digits.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"),
    *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
]


def ended(done: "CompletedProcess[str]") -> str:
    """Return what a command said; fails where it failed."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def main(cpu: bool, folder: Path, note: Note) -> None:
    where = ["--cpu"] if cpu else []
    env = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    words = ["epochs=6"]
    said = ended(launcher("run", "digits", "--run-dir", "run", *where, *words, cwd=folder))
    device = said.splitlines()[0]
    note(device=device)
    assert ("on the CPU" in device) == cpu
    script = [*words, "--run-dir"]
    ended(command(*TORCHRUN, DIGITS, *script, "torchrun", cwd=folder, env=env))
    note(torchrun="ok")
    ended(command(*ACCELERATE, *where, DIGITS, *script, "accelerate", cwd=folder, env=env))
    note(accelerate="ok")
    runs = [Run(folder / name) for name in ("run", "torchrun", "accelerate")]
    note(accuracy=[round(run.result["test_accuracy"], 4) for run in runs])
    note(weights_differ_by=max(runs[0].farthest(run) for run in runs[1:]))
    assert all(run.result["test_accuracy"] > 0.93 for run in runs)
    assert max(runs[0].farthest(run) for run in runs[1:]) < 1e-5
    # Packages that a bare machine lacks (wandb, plotly) are found missing, and that is right.
    told = launcher("doctor", "--nproc", "1", *where, cwd=folder, timeout_s=90)
    lines = [line.strip() for line in told.stdout.splitlines()]
    note(doctor=[line for line in lines if re.match(r"(ok|FAILED)\s+(devices|processes)", line)])
    found = [line for line in lines if line.startswith("ok") and "devices" in line]
    assert found, told.stdout + told.stderr
