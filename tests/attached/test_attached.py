"""`launcher.attach`: whatever happens to a script, it ends where the undisturbed one does."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import Run, command, family, launcher, started, survivors, wait_for
from wandb_server import wandb_server

pytestmark = pytest.mark.warm

HERE = Path(__file__).parent
MLP = HERE / "mlp.py"
STEPS = 12
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


def by_python(world: int, *words: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run the script by python, or by torchrun, in the folder `r`."""
    several = [*TORCHRUN, f"--nproc-per-node={world}"] if world > 1 else []
    env = {"DIR": "r", "OMP_NUM_THREADS": "1"}
    return command(sys.executable, *several, MLP, STEPS, *words, cwd=cwd, env=env)


def by_launcher(world: int, *words: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    options = ["--nproc", world, "--run-dir", "r", "--max-restarts", 2]
    env = {"OMP_NUM_THREADS": "1"}
    return launcher("run", MLP, *options, "--", STEPS, *words, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Any, ...]]:
    """What is left of a run that nobody disturbed, by number of processes."""
    made: dict[int, tuple[Any, ...]] = {}

    def left(world: int) -> tuple[Any, ...]:
        if world not in made:
            folder = tmp_path_factory.mktemp(f"whole-{world}")
            start = by_launcher if world == 2 else by_python
            done = start(world, cwd=folder)
            assert done.returncode == 0, done.stderr[-3000:]
            made[world] = remains(folder / "r")
            assert [row["step"] for row in Run(folder / "r").rows] == list(range(STEPS))
        return made[world]

    return left


def remains(run: Path) -> tuple[Any, ...]:
    """What a run has come to: weights, rows, checkpoints. Nothing half done is there."""
    assert not list((run / "checkpoints").glob(".*"))
    assert not (run / "lock.json").exists()
    assert Run(run).result["state"] == "completed"
    rows = [{k: v for k, v in row.items() if k != "time"} for row in Run(run).rows]
    files = sorted(str(p.relative_to(run)) for p in (run / "checkpoints").rglob("*"))
    return (run / "final.txt").read_text(), rows, files


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_script_that_is_killed_and_stopped_ends_as_undisturbed(
    tmp_path: Path, whole: Callable[[int], tuple[Any, ...]], world: int
) -> None:
    last = world - 1
    killed = by_python(world, f"1:KILL:{last}:4", cwd=tmp_path)
    assert killed.returncode not in (0, 75)
    assert Run(tmp_path / "r").rows[-1]["step"] in (3, 4)
    stopped = by_python(world, f"1:TERM:{last}:5", cwd=tmp_path)
    assert "continuing from step 3" in stopped.stdout
    assert "stopped on request after" in stopped.stdout
    assert stopped.returncode == (75 if world == 1 else 1)  # torchrun's
    assert Run(tmp_path / "r").result["state"] == "stopped"
    codes = re.findall(r"exitcode  : (-?\d+)", stopped.stderr)
    if world > 1:  # torchrun ends who is still leaving when another has
        assert "75" in codes
        assert {*codes} <= {"75", "-15"}
    done = by_python(world, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert remains(tmp_path / "r") == whole(world)


@pytest.mark.slow
def test_the_launcher_starts_it_again_and_it_ends_as_undisturbed(
    tmp_path: Path, whole: Callable[[int], tuple[Any, ...]]
) -> None:
    done = by_launcher(3, "1:KILL:2:4", "2:KILL:0:7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert remains(tmp_path / "r") == whole(3)
    assert Run(tmp_path / "r").result["starts"] == 3


@pytest.mark.slow
def test_everybody_is_killed_and_a_stop_request_is_heard_by_all(
    tmp_path: Path, whole: Callable[[int], tuple[Any, ...]]
) -> None:
    run = tmp_path / "r"
    words = ["run", MLP, "--nproc", 2, "--run-dir", "r", "--", STEPS, "1:STOP:1:4", "2:STOP:1:7"]
    env = {"OMP_NUM_THREADS": "1"}
    with started(*words, cwd=tmp_path, env=env) as process:
        wait_for(lambda: len(Run(run).rows) > 3)
        seen = family(process)
        for one in [psutil.Process(process.pid), *seen]:
            one.kill()
        process.communicate(timeout=60)
    assert not survivors(seen)
    # What is left takes longer than ranks go without asking each other.
    with started("resume", "r", cwd=tmp_path, env=env | {"PAUSE_S": "0.4"}) as process:
        wait_for(lambda: any(one.status() == psutil.STATUS_STOPPED for one in family(process)))
        process.terminate()
        for one in family(process):
            one.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert Run(run).result["state"] == "stopped"
    assert len(Run(run).rows) < STEPS
    done = launcher("resume", "r", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert remains(run) == whole(2)


@pytest.mark.slow
def test_under_the_launcher_wandb_has_each_row_once_over_starts(tmp_path: Path) -> None:
    with wandb_server() as server:
        env = server.env() | {"WANDB_MODE": "online"}
        words = ["run", MLP, "--nproc", 1, "--run-dir", "r", "--max-restarts", 1, "--"]
        done = launcher(*words, STEPS, "1:KILL:0:5", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert not server.problems
        [run] = server.runs.values()
        assert [row["trainer/step"] for row in run.rows] == list(range(STEPS))
        assert run.finished
        assert run.exit_code == 0
        quiet = tmp_path / "quiet.py"
        quiet.write_text("print('no rows')")
        done = launcher("run", quiet, "--run-dir", "q", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert len(server.runs) == 1
