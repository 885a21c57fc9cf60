"""Real runs for tests: whole commands, and many runs in one set of processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

RECIPES = Path(__file__).parent / "recipes"
PROJECT = Path(__file__).parent.parent
# What a clock says, in a row of metrics.jsonl and in result.json.
CLOCKED = {"time", "seconds", "samples_per_second", "step_time", "data_wait", "eta_seconds"}
CLOCKED |= {"tflops", "mfu"}
# What is known of several ranks alone.
CLOCKED |= {"rank_time_median", "rank_time_slowest", "slowest_rank", "rank_time_of"}


@dataclass(frozen=True)
class Run:
    """What a run left in its directory."""

    path: Path

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "result.json").read_text()))

    @property
    def rows(self) -> list[dict[str, Any]]:
        metrics = self.path / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model.safetensors")

    @property
    def weight_bytes(self) -> bytes:
        return (self.path / "model.safetensors").read_bytes()

    def farthest(self, other: "Run") -> float:
        """The largest difference between two runs' weights."""
        theirs = other.weights
        return max(float((w - theirs[name]).abs().max()) for name, w in self.weights.items())


def clean_environment() -> dict[str, str]:
    """The environment without what a surrounding run or scheduler may have set."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PET_", "TORCHELASTIC_", "OMP_NUM_THREADS")
    others = ("ACCELERATE_", "WANDB_", "GLOO_", "NCCL_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith((*ours, *others))}
    return clean | {"WANDB_MODE": "disabled"}  # but where a test is about W&B


def command(
    *words: object, cwd: Path, timeout_s: float = 280, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command of this environment to its end, without a terminal."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean_environment() | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def launcher(
    *words: object, cwd: Path, timeout_s: float = 280, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `launcher …`."""
    return command(sys.executable, "-m", "launcher", *words, cwd=cwd, timeout_s=timeout_s, env=env)


def many_runs(
    folder: Path,
    world_size: int,
    cases: Sequence[Mapping[str, Any]],
    *,
    in_ddp: bool = False,
    cpu: bool = True,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 280,
) -> None:
    """Train all cases in one set of `world_size` processes: start-up is paid once.

    A case has a `name`, which becomes its run directory, a `recipe`, and hyperparameters; one whose
    directory is there goes on. `stops` are passes, like ["test", 2], in which it is stopped, to be
    gone on with. `in_ddp` makes a group, and so DDP, of one process, too; without `cpu` they train
    on a GPU, and torchrun starts them; on a CPU they are forked.
    """
    listed = folder / "cases.json"
    listed.write_text(json.dumps(list(cases)))
    script = [str(PROJECT / "tests" / "many_runs.py"), str(listed), str(folder)]
    start, several = [sys.executable], world_size > 1 or in_ddp
    if several and not cpu:
        port = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        start += ["-m", "torch.distributed.run", *port, f"--nproc-per-node={world_size}"]
    script += ["cpu" if cpu else "cuda", str(world_size if several and cpu else 0)]
    env = {"OMP_NUM_THREADS": "1", **(env or {})}
    done = command(*start, *script, cwd=folder, timeout_s=timeout_s, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def forked_runs(
    folder: Path, cases: Sequence[Mapping[str, Any]], *, timeout_s: float = 280
) -> None:
    """Train cases one after the other, each in `processes` that are forked from a warm one.

    As for `many_runs`; all processes of one that has `kill_at`, a training pass, are killed there.
    """
    listed = folder / "cases.json"
    listed.write_text(json.dumps(list(cases)))
    script = [sys.executable, str(PROJECT / "tests" / "forked_runs.py"), str(listed), str(folder)]
    done = command(*script, cwd=folder, timeout_s=timeout_s, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@contextmanager
def started(
    *words: object, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """`launcher …` in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, words)],
        cwd=cwd,
        env=clean_environment() | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(happened: Callable[[], bool], timeout_s: float = 60, every_s: float = 0.02) -> None:
    """Wait until something has happened; fails when it has not in time."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen in {timeout_s} s"
        time.sleep(every_s)


def wait_for_words(process: "subprocess.Popen[str]", words: str) -> None:
    """Wait until a command says something on standard error; what came before is read."""
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it ended and never said {words!r}")


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """All processes that descend from one."""
    return psutil.Process(process.pid).children(recursive=True)


def guards_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The guard of a run that was just started, and the one within it."""
    outer = next(
        one
        for one in psutil.Process(process.pid).children()
        if "launcher.node.guard" in one.cmdline()
    )
    return [outer, outer.children()[0]]


def survivors(processes: list[psutil.Process], timeout_s: float = 30) -> list[psutil.Process]:
    """Those that are still alive after a while."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
