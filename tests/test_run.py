"""`launcher run` and the other ways to start a recipe, with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from training import (
    PROJECT,
    RECIPES,
    Run,
    clean_environment,
    command,
    family,
    guards_of,
    launcher,
    started,
    survivors,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.warm]
TROUBLE = RECIPES / "trouble.py"
DIGITS = PROJECT / "recipes" / "digits.py"
LAUNCHER = Path(sys.executable).with_name("launcher")


@pytest.mark.floors
def test_five_ways_to_start_give_the_same_reports(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("run", "python", "torchrun", "accelerate")]
    tail = ["epochs=2", "--run-dir"]
    launcher("run", DIGITS, "epochs=2", "--run-dir", runs[0], "--nproc", "2", cwd=tmp_path)
    command(sys.executable, DIGITS, *tail, runs[1], cwd=tmp_path)
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command(*module, "--nproc-per-node=2", DIGITS, *tail, runs[2], cwd=tmp_path)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = "--num_processes 3 --num_machines 1 --mixed_precision no --dynamo_backend no"
    with socket.create_server(("127.0.0.1", 0)) as free:  # 0 is no port to older Accelerates
        port = ["--main_process_port", free.getsockname()[1]]
    command(*accelerate, *options.split(), *port, DIGITS, *tail, runs[3], cwd=tmp_path)
    assert [Run(run).result["world_size"] for run in runs] == [2, 1, 2, 3]
    for run in runs[1:]:
        assert len(Run(run).rows) == len(Run(runs[0]).rows) == 4
        for mine, first in zip(Run(run).rows, Run(runs[0]).rows, strict=True):
            assert mine["loss"] == pytest.approx(first["loss"], abs=1e-5)
            assert mine["accuracy"] == first["accuracy"]
        assert Run(run).farthest(Run(runs[0])) < 1e-5
        assert (run / "logs" / "rank-0.log").read_text().count("Test Error: Accuracy:") == 2


# What Kubeflow, srun, mpirun and torchrun leave to what they start.
OTHER_WORLD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_what_configures_accelerate_changes_nothing_of_a_run(tmp_path: Path) -> None:
    home = tmp_path / "accelerate" / "default_config.yaml"
    home.parent.mkdir()
    home.write_text('distributed_type: "FSDP"\ngpu_ids: "3,5"\ndebug: true\n')
    source = DIGITS.read_text() + "import os\nprint('GPUs:', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    (tmp_path / "mine.py").write_text(source)
    words = ("run", "mine.py", "--cpu", "--nproc", "2", "epochs=1", "--run-dir")
    env = {"HF_HOME": str(tmp_path), "ACCELERATE_USE_FSDP": "true", "CUDA_VISIBLE_DEVICES": "7"}
    done = launcher(*words, "run", cwd=tmp_path, env=env | OTHER_WORLD)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/logs/rank-1.log").read_text().startswith("GPUs: 7\n")
    env["CUDA_VISIBLE_DEVICES"] = ""
    done = command(sys.executable, "mine.py", "--run-dir", "own", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Accelerate was told to use FSDP, which a recipe is not")
    assert not (tmp_path / "own").exists()


def test_debug_starts_no_process_and_writes_nothing(tmp_path: Path) -> None:
    done = launcher("debug", DIGITS, "--steps", "2", cwd=tmp_path, env=OTHER_WORLD)
    assert done.returncode == 0, done.stderr
    assert "loss: " in done.stdout
    assert "[  128/ 1437]" in done.stdout
    assert not list(tmp_path.iterdir())


def test_debug_changes_nothing_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "lib.py").write_text("WARM = 3\n")
    head, tail = DIGITS.read_text().split("    def model(self)")
    check = """
    def __post_init__(self):
        super().__post_init__()
        if self.epochs <= WARM:
            raise ValueError("epochs are for after the warm-up")

    def model(self)"""
    told = "        print(self.epochs, self.num_workers)\n        return nn.Sequential("
    tail = tail.replace("        return nn.Sequential(", told)
    (tmp_path / "mine.py").write_text(f"from lib import WARM\n{head}{check}{tail}")
    done = command(LAUNCHER, "debug", "mine.py", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 None\n")
    assert done.stdout.count("Test Error") == 1
    done = command(LAUNCHER, "debug", "mine.py", "epochs=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: recipe `mine.py` refuses its hyperparameters: epochs are for" in done.stderr


def test_debug_shows_the_whole_traceback(tmp_path: Path) -> None:
    done = launcher("debug", TROUBLE, "what=raise", "at_step=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise ValueError("the third wheel came off")' in done.stderr


@pytest.mark.parametrize(
    ("source", "before", "asked", "answer"),
    [
        (DIGITS, "    return images.float()", "images.shape", "torch.Size([1, 8, 8])"),
        # an ordinary dataset, which a run would leave to data workers
        (RECIPES / "sampled.py", "        return image, int", "image.shape", "torch.Size([16])"),
    ],
    ids=["arrays", "ordinary"],
)
def test_breakpoint_works_in_debug(
    tmp_path: Path, source: Path, before: str, asked: str, answer: str
) -> None:
    recipe = tmp_path / "mine.py"
    indent = " " * (len(before) - len(before.lstrip()))
    recipe.write_text(source.read_text().replace(before, f"{indent}breakpoint()\n{before}"))
    words = ["--steps", "1", "batch_size=1", "test_batch_size=1"]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "debug", str(recipe), *words],
        input=f"p {asked}\nc\nc\n",
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout


def test_digits_reaches_95_percent_and_says_so(tmp_path: Path) -> None:
    done = launcher("run", "digits", "--nproc", "2", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = Run(tmp_path / "run").result
    assert result["test_accuracy"] >= 0.95
    assert result["test_samples"] == 360
    last = done.stdout.strip().splitlines()[-1]
    assert f"test accuracy {100 * result['test_accuracy']:.1f}%" in last
    assert last.endswith(", run")


def test_the_run_directory_keeps_its_contract(tmp_path: Path) -> None:
    done = launcher("run", DIGITS, "epochs=2", "--run-dir", "r", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "r")
    assert (run.path / "recipe.py").read_text() == DIGITS.read_text()
    config = json.loads((run.path / "config.json").read_text())
    assert config["hyperparameters"]["epochs"] == 2
    assert config["world_size"] == 2
    assert {"recipe", "seed", "versions", "git", "command"} <= set(config)
    for row in run.rows:
        keys = ("split", "epoch", "step", "samples", "loss", "accuracy")
        assert tuple(row)[: len(keys)] == keys
        assert {"epochs", "time"} <= set(row)
        measured = {"learning_rate", "gradient_norm", "samples_per_second", "step_time"}
        measured |= {"rank_time_median", "rank_time_slowest", "slowest_rank", "rank_time_of"}
        trained = {key for key in (*measured, "data_wait") if row[key] is not None}
        assert trained == ({*measured, "data_wait"} if row["split"] == "train" else set())
    assert [row["step"] for row in run.rows] == [23, 23, 46, 46]
    assert run.result["state"] == "completed"
    assert {p.name for p in run.path.iterdir()} == {
        "recipe.py", "config.json", "metrics.jsonl", "result.json", "model.safetensors", "logs",
        "checkpoints", "times.jsonl",
    }  # fmt: skip
    assert {"rank-0.log", "rank-1.log"} <= {p.name for p in (run.path / "logs").iterdir()}
    assert not [p for p in run.path.rglob("*") if p.name.endswith(".tmp")]


def test_a_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    launcher("run", DIGITS, "epochs=2", "seed=7", "--run-dir", "r", "--nproc", "2", cwd=tmp_path)
    words = ["run", "r/recipe.py", "--config", "r/config.json", "--run-dir", "again"]
    done = launcher(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "again").result["world_size"] == 2
    assert Run(tmp_path / "again").weight_bytes == Run(tmp_path / "r").weight_bytes


def test_only_rank_0_writes_to_the_console(tmp_path: Path) -> None:
    words: list[str | Path] = [
        "run",
        TROUBLE,
        "what=warn",
        "at_rank=0",
        "batch_size=9",
        "--nproc",
        "3",
    ]
    done = launcher(*words, "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("said by the recipe") == 1
    assert done.stdout.count("Test Error") == 1
    done = launcher(*words, "at_rank=1", "--run-dir", "s", cwd=tmp_path)
    assert done.returncode == 2  # at_rank is given twice
    words.remove("at_rank=0")
    done = launcher(*words, "at_rank=1", "--run-dir", "s", cwd=tmp_path)
    assert done.returncode == 0
    assert "said by the recipe" not in done.stdout + done.stderr
    assert "said by the recipe" in (tmp_path / "s" / "logs" / "rank-1.log").read_text()


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("raise at_rank=1", "rank 1 on {host} failed first: ValueError: the third wheel came off"),
        ("exit at_rank=1", "rank 1 on {host} failed first: the recipe called exit(0)"),
        ("quit at_rank=2", "rank 2 on {host} failed first: it ended without a word"),
        ("kill at_rank=2", "rank 2 on {host} failed first: killed by SIGKILL"),
        ("segfault at_rank=0", "rank 0 on {host} failed first: killed by SIGSEGV"),
        ("nan", "the loss at step 5 (epoch 0) is nan"),
    ],
)
@pytest.mark.parametrize("nproc", [1, 3])
def test_a_failure_gives_one_summary_and_leaves_nobody(
    tmp_path: Path, trouble: str, expected: str, nproc: int
) -> None:
    words = f"what={trouble} batch_size=9".split()
    if nproc == 1:
        words = [w for w in words if not w.startswith("at_rank")]
        expected = expected.replace("rank 1", "rank 0").replace("rank 2", "rank 0")
    with started(
        "run", TROUBLE, *words, "--nproc", str(nproc), "--run-dir", "r", cwd=tmp_path
    ) as run:
        wait_for((tmp_path / "r" / "logs" / "rank-0.json").exists)
        seen = family(run)
        stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert sum(line.startswith("error:") for line in stderr.splitlines()) == 1
    assert expected.format(host=os.uname().nodename) in stderr
    assert "Traceback" not in stdout
    result = Run(tmp_path / "r").result
    assert result["state"] == "failed"
    assert result["error"]
    assert not survivors(seen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("nproc", [1, 3])
def test_a_stop_request_ends_all_ranks_after_the_same_step(
    tmp_path: Path, number: signal.Signals, nproc: int
) -> None:
    words = ["step_s=0.05", "epochs=1000", "batch_size=9", "--nproc", str(nproc)]
    with started("run", TROUBLE, *words, "--run-dir", "r", cwd=tmp_path) as run:
        wait_for(lambda: bool(Run(tmp_path / "r").rows))
        seen = family(run)
        run.send_signal(number)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 75
    assert "stopped on request after step" in stderr
    assert Run(tmp_path / "r").result["state"] == "stopped"
    said = {
        json.loads(record.read_text())["error"]
        for record in (tmp_path / "r" / "logs").glob("rank-?.json")
    }
    assert len(said) == 1
    assert not survivors(seen)


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    words = ["step_s=30", "batch_size=9", "--nproc", "2", "--run-dir", "r"]
    with started("run", TROUBLE, *words, cwd=tmp_path) as run:
        wait_for((tmp_path / "r" / "logs" / "rank-0.json").exists)
        time.sleep(4)
        seen = family(run)
        run.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert run.poll() is None  # it waits for the step
        before = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30)
        assert time.monotonic() - before < 5
    assert run.returncode == 130
    assert not survivors(seen, timeout_s=5)


@pytest.mark.parametrize("victim", ["launcher", "guard", "agent"])
def test_nobody_survives_the_launcher_or_the_agent(tmp_path: Path, victim: str) -> None:
    words = ["step_s=0.05", "epochs=1000", "batch_size=9", "num_workers=1", "--nproc", "2"]
    with started("run", TROUBLE, *words, "--run-dir", "r", cwd=tmp_path) as run:
        wait_for(lambda: bool(Run(tmp_path / "r").rows))
        seen = family(run)
        assert len(seen) >= 6  # guard, agent, two workers, two data workers
        guard, inner = guards_of(run)
        pids = {"launcher": run.pid, "guard": guard.pid, "agent": inner.children()[0].pid}
        os.kill(pids[victim], signal.SIGKILL)
        assert not survivors(seen)
        run.communicate(timeout=30)
    assert run.returncode not in (0, 75)


def test_on_one_machine_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    words = ["step_s=0.05", "epochs=1000", "batch_size=9", "--nproc", "2", "--run-dir", "r"]
    with started("run", TROUBLE, *words, cwd=tmp_path) as run:
        wait_for(lambda: bool(Run(tmp_path / "r").rows))
        listening = {
            connection.laddr.ip
            for process in [psutil.Process(run.pid), *family(run)]
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening == {"127.0.0.1"}


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    words: list[str | Path] = ["run", DIGITS, "epochs=3", "--nproc", "2", "--run-dir"]
    with started(*words, "a", cwd=tmp_path) as a, started(*words, "b", "seed=1", cwd=tmp_path) as b:
        a.communicate(timeout=90)
        b.communicate(timeout=90)
    assert a.returncode == b.returncode == 0
    assert Run(tmp_path / "a").rows[0]["loss"] != Run(tmp_path / "b").rows[0]["loss"]
    assert Run(tmp_path / "a").result["world_size"] == 2


def test_two_machines_without_slurm_train_as_one(tmp_path: Path) -> None:
    port = 20_000 + os.getpid() % 10_000
    words: list[str | Path] = [
        "run",
        DIGITS,
        "epochs=2",
        "--nnodes",
        "2",
        "--rdzv-endpoint",
        f"127.0.0.1:{port}",
    ]
    with (
        started(*words, "--node-rank", "0", "--run-dir", "a", cwd=tmp_path) as first,
        started(*words, "--node-rank", "1", "--run-dir", "b", cwd=tmp_path) as second,
    ):
        out, first_error = first.communicate(timeout=90)
        _, second_error = second.communicate(timeout=90)
    assert first.returncode == 0, first_error
    assert second.returncode == 0, second_error
    launcher("run", DIGITS, "epochs=2", "--run-dir", "alone", cwd=tmp_path)
    assert Run(tmp_path / "a").result["world_size"] == 2
    assert Run(tmp_path / "a").farthest(Run(tmp_path / "alone")) < 1e-5
    assert "Done" in out


def test_words_after_two_dashes_reach_accelerate(tmp_path: Path) -> None:
    words: list[str | Path] = ["run", DIGITS, "epochs=1", "--nproc", "2", "--run-dir", "r"]
    done = launcher(*words, "--", "--monitor_interval", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = launcher(*words[:-1], "s", "--", "--no-such-flag", cwd=tmp_path)
    assert done.returncode == 1
    assert "--no-such-flag" in done.stderr


def test_a_script_tells_its_hyperparameters_and_how_it_ended(tmp_path: Path) -> None:
    done = command(sys.executable, DIGITS, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "passes over the training data" in done.stdout
    done = command(
        sys.executable, TROUBLE, "what=raise", "at_step=1", "--run-dir", "r", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "ValueError: the third wheel came off" in done.stderr
    assert Run(tmp_path / "r").result["state"] == "failed"
    assert not (tmp_path / "r" / "lock.json").exists()
    done = command(sys.executable, DIGITS, "epoch=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean `epochs`?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_ranks_that_would_train_on_different_data_are_refused(tmp_path: Path) -> None:
    words = ["what=sizes", "at_rank=1", "--nproc", "3", "--run-dir", "r"]
    done = launcher("run", TROUBLE, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "ranks differ in dataset sizes: rank 1 has (91, 91), others (90, 90)" in done.stderr
