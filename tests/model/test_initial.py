"""Weights to start from: what matches is taken, what does not is said, nothing is an error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training import RECIPES, Run, launcher, many_runs

from launcher.errors import BadInput, RecipeError
from launcher.model.initial import start_from
from launcher.run.weights import weights_of

pytestmark = pytest.mark.warm

CURVE = RECIPES / "curve.py"
SHORT = {"recipe": "curve", "epochs": 1, "samples": 97, "test_samples": 23, "log_every": 1}
STILL = {"learning_rate": 0.0}  # so that what a run ends with is what it began with


class Tied(nn.Module):
    """A model two of whose names are one tensor."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.norm = nn.BatchNorm1d(3)
        self.unembed = nn.Linear(3, 7, bias=False)
        self.unembed.weight = self.embed.weight
        self.head = nn.Linear(3, outputs)


def written(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "weights.safetensors"
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def test_what_matches_by_name_and_shape_is_taken_and_the_rest_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Tied()
    bias = model.head.bias.detach().clone()
    path = written(
        tmp_path,
        unembed__weight=torch.full((7, 3), 2.0),  # the other name of the tied tensor
        norm__running_mean=torch.full((3,), 3.0, dtype=torch.float64),
        head__weight=torch.zeros(9, 3),
        extra=torch.zeros(1),
    )
    start_from(model, path, say=True)
    assert model.embed.weight is model.unembed.weight
    assert bool((model.embed.weight == 2).all())
    assert torch.equal(model.state_dict()["norm.running_mean"], torch.full((3,), 3.0))
    assert torch.equal(model.head.bias, bias)
    anew = "head.bias, norm.bias, norm.num_batches_tracked, norm.running_var, norm.weight"
    assert capsys.readouterr().out.splitlines() == [
        f"starting from 3 of 9 tensors of the model in {path}",
        "  of another shape: head.weight (9, 3) there, (5, 3) here",
        f"  not there, and as the recipe makes them: {anew}",
        "  there, and not in the model: extra",
    ]


def test_all_ranks_load_and_one_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_from(Tied(), written(tmp_path, head__bias=torch.ones(5)), say=False)
    assert capsys.readouterr().out == ""


def test_a_file_without_a_parameter_of_the_model_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, norm__running_mean=torch.ones(3), other=torch.ones(2))
    with pytest.raises(RecipeError, match="no parameter of the model is in") as caught:
        start_from(Tied(), path, say=True)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(
        "there: norm.running_mean, other; the model's: embed.weight"
    )


def test_what_is_no_run_with_weights_and_no_file_of_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no weights to start from"):
        weights_of(tmp_path)
    for number, content in enumerate((b"", b"PK\x03\x04" + bytes(30), bytes(8) + b"{}")):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        with pytest.raises(BadInput, match="is no file of safetensors"):
            weights_of(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run to start from, with an average of its weights."""
    folder = tmp_path_factory.mktemp("first")
    many_runs(folder, 1, [SHORT | {"name": "run", "norm": True, "ema_decay": 0.9, "seed": 5}])
    return Run(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_run_begins_with_the_weights_of_another_and_so_does_its_average(
    first: Run, tmp_path: Path, processes: int
) -> None:
    values = ["norm=true", *(f"{k}={v}" for k, v in (SHORT | STILL).items() if k != "recipe")]
    words = ["run", CURVE, *values, "ema_decay=0.9", "--init-from", first.path, "--cpu"]
    done = launcher(*words, "--nproc", processes, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starting from 11 of 11 tensors") == 1
    run = Run(tmp_path / "run")
    for name, tensor in load_file(run.path / "model-plain.safetensors").items():
        if "running" not in name and "num_batches" not in name:  # statistics go on
            assert torch.equal(tensor, first.weights[name])
            # An average rounds, even that of equal numbers.
            assert torch.allclose(run.weights[name], tensor, atol=1e-6)
    told = json.loads((run.path / "config.json").read_text())
    assert told["init_from"] == str(first.path / "model.safetensors")


@pytest.mark.slow
def test_a_resume_does_not_load_them_again(first: Run, tmp_path: Path) -> None:
    path = tmp_path / "begin.safetensors"
    shutil.copy(first.path / "model.safetensors", path)
    values = ["norm=true", *(f"{k}={v}" for k, v in SHORT.items() if k != "recipe")]
    for name, epochs in (("whole", 2), ("parted", 1)):
        words = ["run", CURVE, *values, f"epochs={epochs}", "--init-from", path, "--run-dir", name]
        words.remove("epochs=1")
        done = launcher(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    path.unlink()  # a run that goes on does not need it
    done = launcher("resume", "parted", "epochs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "starting from" not in done.stdout
    assert Run(tmp_path / "parted").weight_bytes == Run(tmp_path / "whole").weight_bytes
    again = launcher("run", CURVE, "--config", "whole/config.json", cwd=tmp_path)
    assert again.returncode == 2
    assert f"weights `{path}` cannot be read: No such file" in again.stderr


@pytest.mark.slow
def test_debug_starts_from_them_too(first: Run, tmp_path: Path) -> None:
    checkpoint = next(first.path.glob("checkpoints/step-*"))
    done = launcher("debug", CURVE, "norm=true", "--init-from", checkpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "starting from 11 of 11 tensors" in done.stdout
