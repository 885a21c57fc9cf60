"""Runs that a program starts: `launcher.start`, with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import RECIPES, Run, clean_environment, launcher, survivors, wait_for

from launcher import start
from launcher.child.started import StartedRun
from launcher.errors import BadInput

pytestmark = [pytest.mark.slow, pytest.mark.warm]
TROUBLE = RECIPES / "trouble.py"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, without what surrounds these tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def test_a_run_is_returned_finished(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = start("digits", nproc=2, cpu=True, epochs=1, tags=["a b"])
    assert run.path.parent == folder / "runs"
    assert (run.state, run.error, run.exit_code) == ("completed", None, 0)
    assert run.result == Run(run.path).result
    assert run.metrics() == Run(run.path).rows
    config = json.loads((run.path / "config.json").read_text())
    assert config["world_size"] == 2
    assert config["tracking"]["tags"] == ["a b"]
    said = capsys.readouterr()
    assert "Done: test accuracy" in said.out
    assert said.err == ""
    now = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert now == before
    assert Path.cwd() == folder


def test_two_threads_start_two_runs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    runs: dict[int, StartedRun] = {}

    def train(seed: int) -> None:
        runs[seed] = start("digits", epochs=1, seed=seed, run_dir=f"r{seed}", quiet=True)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [runs[seed].state for seed in (1, 2)] == ["completed"] * 2
    losses = {(run.result or {})["test_loss"] for run in runs.values()}
    assert len(losses) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("what", "keywords", "message", "hint"),
    [
        ("digits", {"learning_rat": 1}, "no hyperparameter `learning_rat`", "learning_rate"),
        ("digits", {"epochs": [1]}, "`epochs` must be int", None),
        ("digit", {}, "there is no recipe `digit`", "digits"),
        ("digits", {"tracking": "on"}, "Invalid value for '--tracking'", None),
    ],
)
def test_a_mistake_in_what_is_asked_is_raised_and_leaves_nothing(
    folder: Path, what: str, keywords: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(BadInput) as caught:
        start(what, quiet=True, **keywords)
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)
    assert not list(folder.iterdir())


def test_a_run_that_fails_is_returned_with_its_error() -> None:
    run = start(TROUBLE, what="raise", at_step=1, quiet=True)
    assert (run.state, run.exit_code) == ("failed", 1)
    assert "the third wheel came off" in str(run.error)
    assert run.result == Run(run.path).result


def test_a_run_that_goes_on_is_stopped_and_can_be_resumed(folder: Path) -> None:
    run = start("digits", epochs=5000, checkpoint_every=50, run_dir="r", wait=False, quiet=True)
    assert (run.state, run.error, run.result) == ("running", None, None)
    with pytest.raises(TimeoutError):
        run.wait(0.01)
    wait_for(lambda: bool(run.metrics()))
    run.stop()
    assert run.wait(60) is run
    assert (run.state, run.exit_code, run.error is None) == ("stopped", 75, False)
    run.stop()  # it has ended: nothing happens
    step = (run.result or {})["step"]
    steps = step + 3  # a few more, and it is completed
    done = launcher("resume", "r", f"steps={steps}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Run(folder / "r").result["step"] == steps


def test_a_stop_at_once_is_heard_as_soon_as_there_is_a_run_to_stop() -> None:
    run = start("digits", epochs=5000, run_dir="r", wait=False, quiet=True)
    run.stop()
    assert run.wait(250).state == "stopped"


OUTER = """
import os, sys
import launcher

if len(sys.argv) > 1:
    told = [os.environ.get(name) for name in ("RANK", "LAUNCHER_START", "WANDB_RUN_ID")]
    print("inner", sys.argv[1:], told, os.environ["LAUNCHER_RUN_DIR"])
    sys.exit(3)
run = launcher.start(__file__, script_args=["--lr", 1e-3], run_dir="inner", tracking="disabled")
print("outer", run.state, run.result["exit_code"], run.error.partition("\\n")[0])
"""


def test_a_script_of_the_launcher_s_starts_a_run_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "outer.py").write_text(OUTER)
    run = start("outer.py", nproc=1, run_dir="outer", tracking="offline")
    assert run.state == "completed", run.error
    said = capsys.readouterr().out
    inner = str(folder / "inner")
    assert f"inner ['--lr', '0.001'] [None, '1', None] {inner}\n" in said
    assert "outer failed 3 rank 0 on " in said
    assert Run(folder / "inner").result["starts"] == 1


PROGRAM = """
import sys, threading, time
import launcher

def train():
    global run
    run = launcher.start("digits", nproc=2, epochs=5000, run_dir="r", wait=False)

thread = threading.Thread(target=train)
thread.start()
thread.join()  # the child outlives the thread
time.sleep(1000) if "sleep" in sys.argv else run.wait()
"""


def program(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """A program that has started a run of two processes in `r`, which has begun to train."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: bool(Run(folder / "r").rows))
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ends_with_the_program_that_has_started_it(
    folder: Path, number: signal.Signals
) -> None:
    process = program(folder, "sleep")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # launcher, guard, agent, workers
    process.send_signal(number)
    process.communicate(timeout=120)
    assert not survivors(family)
    assert Run(folder / "r").result["state"] == "stopped"
    assert not (folder / "r" / "lock.json").exists()


def test_ctrl_c_stops_the_run_and_is_raised(folder: Path) -> None:
    process = program(folder)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "stopping after this step" in said
    assert Run(folder / "r").result["state"] == "stopped"
