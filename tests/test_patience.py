"""What takes long is waited for, and what never ends is not: saves, stops, data, exits."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from training import (
    RECIPES,
    Run,
    command,
    family,
    guards_of,
    launcher,
    started,
    survivors,
    wait_for,
)

from launcher.run import mark

pytestmark = [pytest.mark.slow, pytest.mark.warm]
SLOW = RECIPES / "slow_disk.py"


@pytest.mark.parametrize(
    ("nproc", "number", "to_all", "save_s"),
    [(2, signal.SIGINT, False, 12), (3, signal.SIGTERM, True, 6), (1, signal.SIGTERM, True, 6)],
)
def test_a_stop_has_its_checkpoint_however_long_it_takes(
    tmp_path: Path, nproc: int, number: signal.Signals, to_all: bool, save_s: int
) -> None:
    """A scheduler signals every process of a job, and does it again."""
    words = ["run", SLOW, "--nproc", str(nproc), "epochs=9", "step_s=0.8", f"save_s={save_s}"]
    words += ["num_workers=1", "hang_timeout=3", "--run-dir", "r"]
    first = tmp_path / "r" / "logs" / "rank-0.mark"
    with started(*words, cwd=tmp_path) as process:
        wait_for(lambda: (at := mark.read(first)) is not None and at.steps > 0, timeout_s=150)
        everybody = family(process)
        for one in everybody if to_all else []:  # data workers, too
            one.send_signal(number)
        process.send_signal(number)
        if to_all:
            time.sleep(3)  # now it saves
            for one in everybody:
                with suppress(psutil.NoSuchProcess):  # what has nothing to save may have ended
                    one.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    result = Run(tmp_path / "r").result
    assert result["state"] == "stopped"
    steps = [int(path.name[5:13]) for path in (tmp_path / "r" / "checkpoints").glob("step-*")]
    assert max(steps) == result["step"] or f"after step {max(steps)} " in result["error"]
    assert not survivors(everybody)


def test_final_weights_may_take_longer_than_a_hang(tmp_path: Path) -> None:
    words = ["run", SLOW, "--nproc", "2", "weights_s=7", "hang_timeout=2", "--run-dir", "r"]
    done = launcher(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").weights
    again = ["verify_s=4", "epochs=2", "weights_s=0", "--allow-changes"]
    done = launcher("resume", "r", *again, cwd=tmp_path)  # what is verified may take as long, too
    assert done.returncode == 0, done.stderr


def test_a_start_that_never_ends_is_noticed(tmp_path: Path) -> None:
    words = ["run", SLOW, "--nproc", "2", "data_s=1000", "start_timeout=20", "--run-dir", "r"]
    done = launcher(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "no progress for 20 s: rank 1 was not ready for its first step" in done.stderr
    assert "train_data" in (tmp_path / "r" / "logs" / "rank-1.log").read_text()


def test_a_machine_waits_for_the_disk_of_another(tmp_path: Path) -> None:
    port = 21_000 + os.getpid() % 10_000
    tail = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank"]
    slow = ["epochs=1", "batch_size=9", "checkpoint_every=4", "save_s=5", "hang_timeout=3"]
    words = ["run", SLOW, *slow, "--run-dir", "r", *tail]
    with started(*words, "0", cwd=tmp_path) as a, started(*words, "1", cwd=tmp_path) as b:
        _, stderr = a.communicate(timeout=150)
        _, other = b.communicate(timeout=150)
    assert (a.returncode, b.returncode) == (0, 0), stderr + other


def test_a_save_is_not_lost_with_a_rank_that_fails_meanwhile(tmp_path: Path) -> None:
    words = ["run", SLOW, "--nproc", "2", "batch_size=9", "checkpoint_every=4", "save_s=8"]
    done = launcher(*words, "fail_at=6", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "rank 1" in done.stderr
    assert "ValueError: the real reason" in done.stderr
    assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == [
        "step-00000004-epoch-0000"
    ]


@pytest.mark.parametrize("nproc", [1, 2])
def test_what_a_recipe_leaves_running_does_not_keep_a_run_that_has_completed(
    tmp_path: Path, nproc: int
) -> None:
    words = ["run", SLOW, "--nproc", str(nproc), "thread_s=1000", "--run-dir", "r"]
    # One process, and a place in another world: it trains as if there were none.
    env = {"HANGS_AT_EXIT": "all"} if nproc == 2 else {"RANK": "1", "WORLD_SIZE": "2"}
    done = launcher(*words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").result["state"] == "completed"
    assert "this process leaves without what still runs: forgotten" in done.stdout
    logs = "".join(path.read_text() for path in (tmp_path / "r" / "logs").glob("*.log"))
    assert "nanobind" not in logs


@pytest.mark.parametrize("start", ["launcher", "torchrun"])
def test_an_error_is_told_before_anybody_hangs_at_the_exit(tmp_path: Path, start: str) -> None:
    words = ["fail_at=3", "batch_size=9", "--run-dir", "r"]
    env = {"HANGS_AT_EXIT": "1", "OMP_NUM_THREADS": "1"}
    if start == "launcher":
        done = launcher("run", SLOW, *words, "--nproc", "2", cwd=tmp_path, env=env)
        assert "rank 1" in done.stderr
        assert "the group waits 1 day, 0:00:00" in done.stdout
    else:
        by = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        done = command(
            *by,
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
            SLOW,
            *words,
            cwd=tmp_path,
            env=env,
        )
        assert "the group waits 0:30:00" in done.stdout  # where nobody watches
    assert done.returncode == 1
    assert "ValueError: the real reason" in done.stderr
    assert Run(tmp_path / "r").result["state"] == "failed"


def test_the_rank_whose_data_worker_died_is_named(tmp_path: Path) -> None:
    """Not the one whose data workers the agent's signals reached after that."""
    words = ["run", SLOW, "--nproc", "2", "epochs=99", "num_workers=1", "step_s=0.1"]
    with started(*words, "--run-dir", "r", cwd=tmp_path) as process:
        wait_for((tmp_path / "r" / "metrics.jsonl").exists, timeout_s=150)
        agent = guards_of(process)[1].children()[0]
        log = str(tmp_path / "r" / "logs" / "rank-1.log")
        [rank_1] = [w for w in agent.children() if log in [file.path for file in w.open_files()]]
        wait_for(lambda: rank_1.children() != [], timeout_s=60)  # it may be behind rank 0
        rank_1.children()[0].kill()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "rank 1 on" in stderr
    assert "DataLoader worker" in stderr
    assert "Terminated" not in stderr
