"""`run.steps`: what happens between steps, at the end, and where a loop is left."""

import sys
from pathlib import Path

import pytest
from scripted import counting, python, record, steps_saved
from training import PROJECT, Run, command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("body", "code", "state", "saved"),
    [
        ("pass", 0, "completed", [8]),
        ("if step == 4: break", 0, "completed", [5]),
        ("if step == 4: raise ValueError('no')", 1, "failed", []),
        ("if step == 4: sys.exit(3)", 3, "failed", []),
        ("if step == 4: sys.exit()", 0, "failed", []),
        ("if step == 4: os.kill(os.getpid(), signal.SIGTERM)", 75, "stopped", [5]),
        ("if step == 4: os.kill(os.getpid(), signal.SIGUSR1)", 75, "stopped", [5]),
        ("if step == 7: os.kill(os.getpid(), signal.SIGTERM)", 0, "completed", [8]),
        ("if step == 4: os.kill(os.getpid(), signal.SIGKILL)", -9, "running", []),
        ("if step == 4: os.kill(os.getpid(), signal.SIGTERM); break", 0, "completed", [5]),
    ],
)
def test_how_a_loop_ends(
    tmp_path: Path, body: str, code: int, state: str, saved: list[int]
) -> None:
    done = counting(body, 8, tmp_path)
    assert done.returncode == code, done.stderr
    assert record(tmp_path / "r")["state"] == state
    folder = tmp_path / "r" / "checkpoints"
    assert (steps_saved(tmp_path / "r") if folder.exists() else []) == saved
    assert done.stdout.count("saving") == len(saved)
    assert ("end" in done.stdout) == (state == "completed")
    assert "True" not in done.stdout  # no torch
    if code != -9:
        assert Run(tmp_path / "r").result["state"] == state
    again = counting("pass", 10, tmp_path)
    assert again.returncode == 0
    assert f"end {list(range(10))}" in again.stdout
    assert ("continuing from step" in again.stdout) == bool(saved)


def test_a_run_that_is_whole_makes_no_step_and_saves_nothing(tmp_path: Path) -> None:
    counting("pass", 5, tmp_path)
    for total in (5, 3, 0):
        again = counting("raise ValueError", total, tmp_path)
        assert again.returncode == 0, again.stderr
        assert "saving" not in again.stdout
        assert Run(tmp_path / "r").result["step"] == 5
    assert steps_saved(tmp_path / "r") == [5]


def test_an_error_after_the_loop_is_a_failure_all_the_same(tmp_path: Path) -> None:
    text = """
    import launcher
    run = launcher.attach(dir="r")
    for step in run.steps(3):
        pass
    raise ValueError("evaluation")
    """
    assert python(text, cwd=tmp_path).returncode == 1
    told = record(tmp_path / "r")
    assert (told["state"], told["error"]) == ("failed", "ValueError: evaluation")
    assert Run(tmp_path / "r").result["state"] == "failed"


def test_a_request_after_the_loop_lets_the_script_come_to_its_end(tmp_path: Path) -> None:
    text = """
    import os, signal, launcher
    run = launcher.attach(dir="r")
    for step in run.steps(3):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    print("whole")
    """
    done = python(text, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "whole\n")


def test_an_iterator_that_is_kept_is_no_break(tmp_path: Path) -> None:
    text = """
    import launcher
    run = launcher.attach(lambda folder: print("saving"), print, dir="r")
    def train():
        pairs = enumerate(run.steps(9))
        for n, step in pairs:
            if n == 3:
                break
    train()
    """
    done = python(text, cwd=tmp_path)
    assert "nothing tells whether by `break` or by an error" in done.stderr
    assert "saving" not in done.stdout
    assert "left its loop, with steps to make, after 3" in record(tmp_path / "r")["error"]


def test_a_last_save_that_fails_after_a_break_is_no_success(tmp_path: Path) -> None:
    text = """
    import launcher
    def save(folder):
        raise OSError("no disk")
    run = launcher.attach(save, print, dir="r")
    for step in run.steps(9):
        if step == 2:
            break
    print("goes on")
    """
    done = python(text, cwd=tmp_path)
    assert done.returncode == 1
    assert "goes on" in done.stdout
    assert "the last checkpoint could not be written: no disk" in done.stderr
    assert record(tmp_path / "r")["state"] == "failed"


def test_checkpoints_are_saved_as_often_as_asked_and_the_newest_kept(tmp_path: Path) -> None:
    text = """
    import launcher
    run = launcher.attach(lambda f: print("saving", run.checkpoint), print, dir="r", keep_last=2)
    steps = run.steps(10, checkpoint_every=3)
    print(len(steps))
    for step in steps:
        pass
    """
    done = python(text, cwd=tmp_path)
    assert steps_saved(tmp_path / "r") == [9, 10]
    assert done.stdout.splitlines()[:2] == ["10", "saving None"]
    assert done.stdout.splitlines()[-1].endswith("step-00000009")
    assert done.stdout.count("saving") == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run.steps(-1)", "steps(total) is -1, not a whole number"),
        ("run.steps(2.5)", "steps(total) is 2.5, not a whole number"),
        ("run.steps(5, checkpoint_every=0)", "checkpoint_every is 0"),
        ("run.steps(5); run.steps(5)", "was called twice"),
        ("s = run.steps(5); list(s); list(s)", "iterated over once"),
        ("launcher.attach(dir='other')", "`launcher.attach` was called twice"),
    ],
)
def test_what_no_loop_can_be_is_refused(tmp_path: Path, line: str, words: str) -> None:
    done = python(f"import launcher\nrun = launcher.attach(dir='r')\n{line}", cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr.partition("launcher.errors.BadInput: ")[2]


def test_a_step_costs_microseconds(tmp_path: Path) -> None:
    benchmark = PROJECT / "tests" / "benchmarks" / "steps.py"
    done = command(sys.executable, benchmark, cwd=tmp_path, env={"DIR": "r"})
    assert float(done.stdout.split()[0]) < 20
