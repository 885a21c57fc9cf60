"""The moving average of the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training import PROJECT, Run, launcher

from launcher.averaging import Average


def test_it_is_the_average_that_the_formula_says() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.75)
    nn.init.constant_(model.weight, 3.0)
    average.update()
    assert average.weights[0].item() == 0.75 * 1 + 0.25 * 3
    with average.in_the_model():
        assert model.weight.item() == 1.5
    assert model.weight.item() == 3.0


def test_it_leaves_the_model_as_it_was_after_an_error() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    average = Average(model, 0.5)
    nn.init.zeros_(average.weights[0])
    with pytest.raises(KeyError), average.in_the_model():
        raise KeyError
    assert torch.equal(model.weight, before)


@pytest.mark.slow
def test_the_average_is_what_is_tested_and_kept(tmp_path: Path) -> None:
    digits = PROJECT / "recipes" / "digits.py"
    words = ["run", digits, "epochs=2", "ema_decay=0.99", "--run-dir", "r"]
    done = launcher(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = launcher("test", "r", "--nproc", "2", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    right = Run(tmp_path / "r").result["test_correct"]
    assert f"{right} of 360 right" in tested.stdout
    without = launcher("run", digits, "epochs=2", "--run-dir", "plain", cwd=tmp_path)
    assert without.returncode == 0
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "r")
    assert averaged.farthest(plain) > 1e-3
    train = [
        [row["loss"] for row in run.rows if row["split"] == "train"] for run in (plain, averaged)
    ]
    assert train[0] == train[1]  # training itself is the same
