"""What a checkpoint holds, and which are never gone on with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import RECIPES, Run, launcher

from launcher.errors import NonFiniteLoss, RecipeError
from launcher.ranks.context import Context
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.run import checkpoint_files, config
from launcher.run.directory import RunDir
from launcher.train.worker import work

pytestmark = pytest.mark.warm

POISONED = RECIPES / "poisoned.py"


def trained(folder: Path, **values: Any) -> RunDir:
    """A run that was trained, or is gone on with, in this process."""
    run, file = RunDir(folder / "r"), find(str(POISONED))
    recipe = configure(load(file), POISONED.stem, {"checkpoint_every": 2} | values)
    if not run.config.exists():
        run.create(config.describe(file, recipe), file.source)
    work(recipe, run, Context(cpu=True), file.source)
    return run


def saved(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def rewrite(run: RunDir, harm: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """Change weights and state in the newest checkpoint, which stays whole; returns its name."""
    newest = checkpoint_files.all_of(run.checkpoints)[-1]
    weights = load_file(newest.path / checkpoint_files.MODEL)
    state = torch.load(newest.path / checkpoint_files.TRAINING, weights_only=True)
    harm(weights, state)

    def fill(folder: Path) -> None:
        save_file(weights, folder / checkpoint_files.MODEL)
        torch.save(state, folder / checkpoint_files.TRAINING)

    newest.path.rename(run.path / "before")
    checkpoint_files.write(run.checkpoints, newest.path.name, fill, newest.facts)
    return newest.path.name


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    words = ["at_step=4", "checkpoint_every=1", "keep_last=1", "keep_best=0", f"mark={tmp_path}/m"]
    run = ["run", POISONED, *words, "log_every=1", "--nproc", "2", "--run-dir"]
    done = launcher(*run, "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "the weights are not finite after step 3 (epoch 0)" in done.stderr
    assert saved(RunDir(tmp_path / "r")) == ["step-00000003-epoch-0000"]
    (tmp_path / "m").touch()
    done = launcher("resume", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    launcher(*run, "whole", cwd=tmp_path)
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes


def test_a_checkpoint_whose_weights_are_no_numbers_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path)
    name = rewrite(run, lambda weights, _: weights["linear.weight"][1].fill_(torch.nan))
    trained(tmp_path, epochs=2)
    said = capsys.readouterr().out
    assert f"{name} is not valid: the weights `linear.weight` are not finite" in said
    assert "continuing from step 4" in said
    assert f"broken-{name}" in saved(run)


def test_a_checkpoint_that_leads_to_nan_at_once_is_set_aside_for_the_one_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path)

    def harm(_: dict[str, Any], state: dict[str, Any]) -> None:
        state["optimizer"][0]["state"][0]["momentum_buffer"].fill_(torch.inf)

    name = rewrite(run, harm)
    with pytest.raises(NonFiniteLoss, match=r"after step 6|at step 7"):
        trained(tmp_path, epochs=2)
    assert f"checkpoint {name} led to this at once" in capsys.readouterr().out
    trained(tmp_path, epochs=2)
    assert "continuing from step 4" in capsys.readouterr().out


def test_the_only_checkpoint_is_not_set_aside(tmp_path: Path) -> None:
    run = trained(tmp_path, keep_last=1, keep_best=0)
    for _ in range(2):
        with pytest.raises(NonFiniteLoss):
            trained(tmp_path, at_step=1, epochs=2, keep_last=1, keep_best=0)
        assert saved(run) == ["step-00000006-epoch-0001"]


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), MemoryError()])
@pytest.mark.parametrize("place", ["torch.load", "launcher.run.checkpoint_files._checksum"])
def test_a_disk_or_memory_that_fails_is_no_mistake_of_the_user_and_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, place: str
) -> None:
    run = trained(tmp_path)
    before = saved(run)

    def fail(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(place, fail)
        with pytest.raises(type(trouble)):
            trained(tmp_path, epochs=2)
    assert saved(run) == before
    for checkpoint in checkpoint_files.all_of(run.checkpoints):
        assert checkpoint_files.problem(checkpoint) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 20}, "batch_size was 10 and is 20"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"torch_order_up_to": 5}, "shuffled by torch was True and is False"),
        ({"samples": 50}, "samples was 60 and is 50"),
    ],
)
def test_an_epoch_is_not_gone_on_with_in_another_order(
    tmp_path: Path, change: dict[str, int], words: str
) -> None:
    run = trained(tmp_path)
    shutil.rmtree(checkpoint_files.all_of(run.checkpoints)[-1].path)
    with pytest.raises(RecipeError, match=words) as refused:
        trained(tmp_path, **change)
    assert "`epochs=1` ends the epoch" in str(refused.value)
    trained(tmp_path, epochs=1)
    trained(tmp_path, epochs=2, **change)
    assert Run(run.path).result["epoch"] == 2
