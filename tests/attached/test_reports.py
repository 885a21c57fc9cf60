"""`run.log`: each step once, numbers only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import counting, python
from training import Run, launcher

from launcher.attached.reports import Reports, number
from launcher.errors import BadInput
from launcher.run.directory import RunDir

pytestmark = pytest.mark.slow


def test_a_row_has_the_numbers_as_recipes_have_them(tmp_path: Path) -> None:
    done = counting("run.log(step, loss=1 / (1 + step), bad=float('nan'), n=step)", 2, tmp_path)
    assert "step 1: loss: 0.5, bad: nan, n: 1" in done.stdout
    rows = Run(tmp_path / "r").rows
    assert [row.pop("time") > 1e9 for row in rows] == [True, True]
    first = {"split": "train", "step": 0, "line": 0, "loss": 1.0, "bad": None, "n": 0}
    assert rows == [first, first | {"step": 1, "line": 1, "loss": 0.5, "n": 1}]


def test_what_runs_and_report_say_of_a_script(tmp_path: Path) -> None:
    counting("run.log(step, loss=2.0, lr=0.1)", 3, tmp_path)
    [told] = json.loads(launcher("runs", ".", "--json", cwd=tmp_path).stdout)
    assert (told["state"], told["step"], told["train_loss"]) == ("completed", 3, 2.0)
    assert launcher("report", "r", cwd=tmp_path).returncode == 0
    assert "lr" in (tmp_path / "r" / "report.html").read_text()


def steps_of(run: RunDir) -> list[int]:
    return [row["step"] for row in Run(run.path).rows]


def logged(run: RunDir, steps: list[int], **begin: int) -> None:
    """Log steps as one start of a run does."""
    reports = Reports(run)
    if "rows" in begin:
        reports.begin(begin["rows"])
    for step in steps:
        if not reports.begun:
            reports.begin_before(step)
        reports.log(step, {"loss": step})


def test_each_step_is_logged_once_over_starts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    logged(run, [0, 1, 2, 3])
    logged(run, [2, 3, 4], rows=2)  # the checkpoint had two rows
    assert steps_of(run) == [0, 1, 2, 3, 4]
    logged(run, [3, 4, 5])  # it goes on by checkpoints of its own
    assert steps_of(run) == [0, 1, 2, 3, 4, 5]
    logged(run, [0, 4, 4], rows=4)  # the 0 of a start is there already
    assert steps_of(run) == [0, 1, 2, 3, 4, 4]
    logged(run, [0], rows=0)
    assert steps_of(run) == [0]


def test_a_row_that_was_torn_is_not_gone_on_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    logged(run, [0, 1, 2])
    run.metrics.write_bytes(run.metrics.read_bytes()[:-9])
    logged(run, [2, 3])
    assert steps_of(run) == [0, 1, 2, 3]


def test_steps_are_logged_in_order(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`run.log\(1\)` after `run.log\(2\)`"):
        logged(RunDir(tmp_path), [2, 1])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1, 1),
        (True, 1),
        (0.5, 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor([[2]]), 2),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([1.5]), 1.5),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    ],
    ids=repr,
)
def test_what_is_a_number(value: object, found: float) -> None:
    assert number("n", value) == found
    assert type(number("n", value)) in (int, float)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.5", "got str"),
        (None, "got NoneType"),
        ([1.0], "got list"),
        (torch.zeros(2), r"got Tensor of shape \(2,\)"),
        (torch.zeros(0), r"got Tensor of shape \(0,\)"),
        (np.zeros((1, 2)), r"got ndarray of shape \(1, 2\)"),
        (1j, "got complex"),
        (np.array(["a"]), "got ndarray"),
        (Path(), "got "),
    ],
    ids=repr,
)
def test_what_is_none(value: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        number("n", value)


@pytest.mark.parametrize("name", ["split", "time", "line"])
def test_a_row_s_own_names_are_not_to_be_had(name: str) -> None:
    with pytest.raises(BadInput, match="of its own"):
        number(name, 1.0)


def test_a_script_with_a_wandb_run_of_its_own_is_not_mirrored(tmp_path: Path) -> None:
    text = """
    import sys, types, launcher
    run = launcher.attach(dir="r")
    sys.modules["wandb"] = types.SimpleNamespace(run=types.SimpleNamespace(url="an address"))
    for step in run.steps(2):
        run.log(step, loss=1.0)
    """
    done = python(text, cwd=tmp_path, env={"WANDB_MODE": "offline"})
    assert done.stderr.count("W&B: this script has a run of its own") == 1
    told = json.loads((tmp_path / "r" / "wandb.json").read_text())
    assert told == {"url": "an address", "complete": True, "own": True}
    assert not (tmp_path / "r" / "wandb").exists()
    assert "recorded offline" not in done.stderr
