"""Gradients averaged in shared memory: exact, and nothing is left of it."""

import platform
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import PROJECT, RECIPES, Run, command, family, launcher, started, survivors, wait_for

from launcher.ranks.context import Context
from launcher.ranks.shared_memory import is_possible
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.run.record import Record

pytestmark = [
    pytest.mark.warm,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or sys.platform != "linux",
        reason="shared memory is used on Linux and x86-64 only; everything else works without it",
    ),
]
DIGITS = PROJECT / "recipes" / "digits.py"


@pytest.mark.parametrize("world", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_average_is_that_of_adding_ranks_in_order(tmp_path: Path, world: int) -> None:
    script = PROJECT / "tests" / "averaged_gradients.py"
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = command(sys.executable, script, tmp_path, str(world), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("rank-*"))) == world
    assert "gradients go through sockets" in done.stdout  # where there is too little memory
    assert "are too much for this machine" in done.stdout


@pytest.mark.slow
def test_two_processes_train_to_the_same_bytes_without_it(tmp_path: Path) -> None:
    for name, word in (("with", "true"), ("without", "false")):
        words = [f"shared_gradients={word}", "epochs=3", "--nproc", "2", "--run-dir", name]
        done = launcher("run", DIGITS, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        timed = "communication" in Run(tmp_path / name).result["time_shares"]
        assert timed == (name == "with")
    assert Run(tmp_path / "with").weight_bytes == Run(tmp_path / "without").weight_bytes


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_wait_for_a_killed_one_end_at_once_and_it_is_named(
    tmp_path: Path, world: int
) -> None:
    words = ["epochs=500", "samples=997", "--nproc", world, "--run-dir", "r"]
    with started("run", RECIPES / "curve.py", *words, cwd=tmp_path) as process:
        wait_for(lambda: reached(tmp_path / "r", 30))
        seen = family(process)
        doomed = next(p for p in seen if owns(p, tmp_path / "r" / "logs" / "rank-1.log"))
        maps = Path(f"/proc/{doomed.pid}/maps").read_text()
        assert "/memfd:gradients (deleted)" in maps  # no name that could be left behind
        doomed.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    assert process.returncode not in (0, 2, 75)
    assert "rank 1" in said
    assert "SIGKILL" in said
    assert not survivors(seen)
    for record in Record.read_all(RunDir(tmp_path / "r"), {0, world - 1} - {1}):
        assert record.state == "failed"
        assert not record.first_cause  # it says that another one has gone


def reached(run: Path, steps: int) -> bool:
    found = mark.read(run / "logs" / "rank-0.mark")
    return found is not None and found.steps >= steps


def owns(process: psutil.Process, log: Path) -> bool:
    return any(Path(file.path) == log for file in process.open_files())


@pytest.mark.parametrize(
    ("local_world", "machine", "possible"),
    [("2", "x86_64", True), ("1", "x86_64", False), ("2", "aarch64", False)],
)
def test_it_is_for_one_machine_that_orders_its_stores(
    monkeypatch: pytest.MonkeyPatch, local_world: str, machine: str, possible: bool
) -> None:
    context: Any = Context(cpu=True)
    context.world_size = 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert is_possible(context) == possible
