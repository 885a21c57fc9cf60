"""The moving average of the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training import PROJECT, Run, launcher

from launcher.model.averaging import Average

pytestmark = pytest.mark.warm


def test_it_is_the_average_that_the_formula_says() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.75)
    nn.init.constant_(model.weight, 3.0)
    average.update()
    assert average.weights[0].item() == pytest.approx(0.1 * 1 + 0.9 * 3)  # d = 1/10, then 2/11
    average.update()
    expected = 2 / 11 * 2.8 + 9 / 11 * 3
    assert average.weights[0].item() == pytest.approx(expected)
    with average.in_the_model():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 3.0
    average.load({"weights": average.weights, "updates": 1000}, 0)
    nn.init.constant_(model.weight, 0.0)
    average.update()
    assert average.weights[0].item() == pytest.approx(0.75 * expected)


def test_statistics_of_batch_norm_are_averaged_with_the_weights_and_other_buffers_are_not() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    model.register_buffer("mask", torch.tensor([-torch.inf, 1.0]))
    mean, mask = model.get_buffer("0.running_mean"), model.get_buffer("mask")
    average = Average(model, 0.75)
    mean.fill_(1.0)
    average.update()
    mask.fill_(-torch.inf)
    with average.in_the_model():
        assert mean.tolist() == pytest.approx([0.9, 0.9])
        assert mask.tolist() == [-torch.inf] * 2
    assert mean.tolist() == [1.0, 1.0]


def test_the_average_of_a_checkpoint_of_old_goes_on_without_its_count() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = Average(model, 0.75)
    average.load([torch.full_like(p, 7.0) for p in model.parameters()], 200)
    assert average.updates == 200
    assert [float(w) for w in average.weights] == [7.0, 7.0, 7.0, 0.0, 1.0]
    average.load(None, 200)
    assert average.updates == 0


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
    words = ["run", digits, "epochs=5"]
    done = launcher(*words, "ema_decay=0.999", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = launcher("test", "r", "--nproc", "2", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    right = Run(tmp_path / "r").result["test_correct"]
    assert f"{right} of 360 right" in tested.stdout
    assert right > 0.94 * 360  # most of it is not the weights that training began with
    assert launcher(*words, "--run-dir", "plain", cwd=tmp_path).returncode == 0
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "r")
    assert averaged.farthest(plain) > 1e-3
    # Training itself is the same.
    assert (averaged.path / "model-plain.safetensors").read_bytes() == plain.weight_bytes
