"""Where reports go: the quickstart's lines, and metrics.jsonl."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.train.trackers import (
    ConsoleTracker,
    JsonlTracker,
    Position,
    Report,
    Trackers,
    accuracy_words,
)

TRAIN = Report(
    "train",
    epoch=0,
    step=1,
    samples=64,
    loss=2.302585,
    accuracy=0.125,
    time=5.0,
    learning_rate=0.1,
    gradient_norm=2.5,
    samples_per_second=640.0,
    step_time=0.1,
    data_wait=0.25,
)
TEST = Report("test", epoch=0, step=9, samples=360, loss=0.5, accuracy=0.981, time=6.0)
POSITION = Position(epoch=0, epochs=2, done=64, size=1437)


def test_the_console_speaks_like_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleTracker()
    console.report(TRAIN, POSITION)
    console.report(TRAIN, Position(0, 2, 1437, 1437))
    console.report(TEST, Position(0, 2, 1437, 1437))
    console.progress(Position(1, 2, 0, 1437))
    console.progress(Position(1, 2, 64, 1437))
    console.close()
    assert capsys.readouterr().out == (
        "Epoch 1\n"
        "-------------------------------\n"
        "loss: 2.302585 [   64/ 1437], lr: 0.1\n"
        "loss: 2.302585 [ 1437/ 1437], lr: 0.1\n"
        "Test Error: Accuracy: 98.1%, Avg loss: 0.500000\n\n"
        "Epoch 2\n"
        "-------------------------------\n"
    )


def test_a_console_without_a_bar_is_never_silent_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = ConsoleTracker()
    console.progress(Position(0, 2, 0, 1437, step=0, steps=1000))
    console.progress(Position(0, 2, 64, 1437, step=1, steps=1000))
    assert capsys.readouterr().out == f"Epoch 1\n{'-' * 31}\n"
    spoke = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: spoke + 50)
    console.progress(Position(0, 2, 640, 1437, step=100, steps=1000))
    console.progress(Position(0, 2, 704, 1437, step=101, steps=1000))
    assert capsys.readouterr().out == "step 100 of 1000, 2 steps/s, 0:07:30 left\n"


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (None, ""),
        (0.0, "Accuracy: 0.0%, "),
        (0.9814, "Accuracy: 98.1%, "),
        (1.0, "Accuracy: 100.0%, "),
    ],
)
def test_accuracy_is_told_in_percent_or_not_at_all(accuracy: float | None, words: str) -> None:
    assert accuracy_words(accuracy) == words


def rows(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_report_is_a_line_of_json_as_soon_as_it_is_made(tmp_path: Path) -> None:
    file = JsonlTracker(tmp_path / "metrics.jsonl")
    file.report(TRAIN, POSITION)
    assert rows(tmp_path / "metrics.jsonl") == [
        {
            "split": "train",
            "epoch": 0,
            "step": 1,
            "samples": 64,
            "loss": 2.302585,
            "accuracy": 0.125,
            "epochs": 0,
            "time": 5.0,
            "learning_rate": 0.1,
            "learning_rates": None,
            "gradient_norm": 2.5,
            "samples_per_second": 640.0,
            "step_time": 0.1,
            "data_wait": 0.25,
            "rank_time_median": None,
            "rank_time_slowest": None,
            "slowest_rank": None,
            "rank_time_of": None,
            "gpu_memory": None,
            "steps_in_all": None,
            "eta_seconds": None,
            "tflops": None,
            "mfu": None,
        }
    ]
    file.progress(POSITION)
    file.report(TEST, POSITION)
    file.close()
    assert [row["split"] for row in rows(tmp_path / "metrics.jsonl")] == ["train", "test"]


def test_lines_are_added_to_those_of_a_run_that_goes_on(tmp_path: Path) -> None:
    for kept in (0, 1, 1):
        file = JsonlTracker(tmp_path / "metrics.jsonl", rows=kept)
        file.report(TRAIN, POSITION)
        file.close()
    assert len(rows(tmp_path / "metrics.jsonl")) == 2  # the third superseded the second


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_json_lacks_is_null(loss: float, tmp_path: Path) -> None:
    file = JsonlTracker(tmp_path / "metrics.jsonl")
    file.report(Report("test", 0, 1, 64, loss, None), POSITION)
    file.close()
    [row] = rows(tmp_path / "metrics.jsonl")
    assert (row["loss"], row["accuracy"]) == (None, None)


def test_all_trackers_hear_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in "ab"]
    trackers = Trackers(*map(JsonlTracker, files), ConsoleTracker())
    trackers.progress(POSITION)
    trackers.report(TEST, POSITION)
    trackers.close()
    assert rows(files[0]) == rows(files[1])
    assert "Epoch 1" in capsys.readouterr().out


def test_no_trackers_are_fine() -> None:
    trackers = Trackers()
    trackers.progress(POSITION)
    trackers.report(TRAIN, POSITION)
    trackers.close()


ON_A_TERMINAL = """
from launcher.train.trackers import ConsoleTracker, Position, Report
console = ConsoleTracker()
console.progress(Position(0, 2, 10, 1437))
console.report(Report("train", 0, 1, 64, 2.5, None), Position(0, 2, 64, 1437))
console.close()
"""


@pytest.mark.floors
def test_a_terminal_gets_a_bar_and_the_same_lines() -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    argv = [sys.executable, "-c", ON_A_TERMINAL]
    subprocess.run(argv, stdout=theirs, stderr=theirs, env=env, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "loss: 2.500000 [   64/ 1437]" in shown
    assert "epoch 1/2" in shown
    assert "/1437" in shown


OVER_ONE_THAT_CLOSES = """
import os, pty, sys
from launcher.console import Lasting
ours, theirs = pty.openpty()
os.dup2(theirs, 1)
os.close(theirs)
sys.stdout = Lasting(sys.stdout, open("log", "a"))
"""
AS_IT_IS_ASKED = """
was = Lasting.isatty
Lasting.isatty = lambda stream: was(stream) and not os.close(ours)
"""


@pytest.mark.parametrize(
    "script",
    [
        AS_IT_IS_ASKED + ON_A_TERMINAL,
        ON_A_TERMINAL.replace("Tracker()\n", "Tracker()\nos.close(ours)\n"),
    ],
    ids=["before-the-bar", "below-the-bar"],
)
def test_a_terminal_that_closes_at_any_moment_ends_nothing(script: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", OVER_ONE_THAT_CLOSES + script]
    env = {**os.environ, "TERM": "xterm", "FORCE_COLOR": "1"}  # rich has found a terminal, too
    done = subprocess.run(argv, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert "loss: 2.500000 [   64/ 1437]" in (tmp_path / "log").read_text()
