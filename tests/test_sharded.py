"""Models in pieces: the same numbers as whole ones, at 1, 2 and 3 processes, and between them."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import load_checkpoint_in_model
from huggingface_hub import load_torch_model
from safetensors.torch import load_file
from training import RECIPES, Run, launcher, many_runs, started, wait_for

from launcher.model.files import read
from launcher.recipe.file import find, load
from launcher.run import checkpoint_files, mark
from launcher.run.directory import RunDir
from launcher.run.weights import files_of, index_of

pytestmark = [pytest.mark.slow, pytest.mark.warm]

# What each is about stands in its name; 13 samples a step of 50, over 1, 2 and 3 processes.
MLP = {"kind": "mlp", "clip_norm": 0.5, "ema_decay": 0.9, "epochs": 4}
GPT = {"kind": "gpt", "micro_batch_size": 2, "both": True, "adam": True, "epochs": 2}
CASES: Mapping[str, Mapping[str, Any]] = {
    "mlp": MLP,
    "gpt": GPT,
    "single": {"kind": "mlp", "exact": False, "adam": True, "epochs": 3},
    "stream": {"recipe": "streamed", "dtype": "float64", "keeps": "state", "num_workers": 0},
    "uneven": {"kind": "mlp", "uneven": True, "adam": True, "epochs": 3},
    "ghosts": {"kind": "mlp", "batch_size": 2, "samples": 7, "epochs": 4, "adam": True},
}
HALF = MLP | {"epochs": 2}
SHARES = {"shard_checkpoints": True}
BF16 = {"kind": "mlp", "exact": False, "mixed_precision": "bf16", "epochs": 3}


def case(name: str, shard: bool, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "recipe": "sharding", "shard": shard, **parameters, **more}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process without `shard`."""
    folder = tmp_path_factory.mktemp("whole")
    many_runs(
        folder, 1, [case(n, False, c) for n, c in CASES.items()] + [case("half", False, HALF)]
    )
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes with `shard`."""
    folder = tmp_path_factory.mktemp("two")
    stopped = case("stopped", True, MLP, stops=[["train", 6]])
    cases = [case(n, True, c) for n, c in CASES.items()] + [stopped, case("half", True, HALF)]
    cases += [case("gpt shares", True, GPT | SHARES, stops=[["train", 9]])]
    cases += [case("stream shares", True, CASES["stream"], **SHARES, stops=[["train", 5]])]
    cases += [case("bf16", True, BF16), case("bf16 stopped", True, BF16, stops=[["train", 5]])]
    cases += [case("half shares", True, HALF | SHARES), case("large", True, MLP, large=2000)]
    many_runs(folder, 2, cases)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, whole: Path, two: Path) -> Path:
    """Runs of three processes with `shard`; some go on from one process, and from two."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copytree(whole / "half", folder / "from whole")
    shutil.copytree(two / "half", folder / "from two")
    shutil.copytree(two / "half shares", folder / "from shares")
    shutil.copytree(two / "large", folder / "small again")
    shutil.copytree(two / "mlp", folder / "large now")
    cases = [case(n, True, c) for n, c in CASES.items()]
    cases += [case("small again", True, MLP), case("large now", True, MLP, large=2000)]
    cases += [case(f"from {n}", True, MLP) for n in ("two", "shares")]
    many_runs(folder, 3, [case("from whole", True, MLP | SHARES), *cases])
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, two: Path) -> Path:
    """Runs of one process: with `shard`, and one without that goes on from two with."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(two / "half", folder / "from two")
    shutil.copytree(two / "half shares", folder / "from shares")
    cases = [case(n, True, c) for n, c in CASES.items()]
    cases += [case("bf16", True, BF16), case("float32", True, BF16, mixed_precision="no")]
    many_runs(folder, 1, [case(f"from {n}", False, MLP) for n in ("two", "shares")] + cases)
    return folder


def assert_same(run: Run, wanted: Run, tolerance: float) -> None:
    assert run.farthest(wanted) <= tolerance
    for row, told in zip(run.rows, wanted.rows, strict=True):
        assert row["step"] == told["step"]
        assert abs(row["loss"] - told["loss"]) <= tolerance
    for name in ("test_correct", "test_samples", "step"):
        assert run.result[name] == wanted.result[name]


@pytest.mark.parametrize("world", ["one", "two", "three"])
@pytest.mark.parametrize("name", CASES)
def test_a_sharded_run_has_the_numbers_of_a_whole_one(
    name: str, world: str, whole: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(world)
    tolerance = 1e-5 if name == "single" else 1e-12
    assert_same(Run(folder / name), Run(whole / name), tolerance)


def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(two: Path) -> None:
    assert Run(two / "stopped").weight_bytes == Run(two / "mlp").weight_bytes
    assert Run(two / "gpt shares").weight_bytes == Run(two / "gpt").weight_bytes
    assert Run(two / "stream shares").weight_bytes == Run(two / "stream").weight_bytes
    assert Run(two / "bf16 stopped").weight_bytes == Run(two / "bf16").weight_bytes


def test_bf16_rounds_what_is_computed_and_keeps_weights_as_they_are(one: Path, two: Path) -> None:
    mine, alone, exact = Run(two / "bf16"), Run(one / "bf16"), Run(one / "float32")
    assert {weight.dtype for weight in mine.weights.values()} == {torch.float32}
    for others in (alone, exact):
        assert 0 < mine.farthest(others) < 0.02
        for row, told in zip(mine.rows, others.rows, strict=True):
            assert abs(row["loss"] - told["loss"]) < 0.02


def test_a_large_state_is_written_by_each_rank_and_large_weights_are_several_files(
    two: Path,
) -> None:
    run = RunDir(two / "large")
    for checkpoint in checkpoint_files.all_of(run.checkpoints):
        names = sorted(path.name for path in checkpoint.path.iterdir())
        shares = [f"rank-{rank}-of-2.safetensors" for rank in range(2)]
        assert names == ["manifest.json", *shares, "training.pt"]
    for path, kind in ((run.weights, ""), (run.plain_weights, "-plain")):
        assert not path.exists()
        assert len(files_of(path)) > 3
        whole = load_file(two / "mlp" / f"model{kind}.safetensors")
        told = read(index_of(path))
        assert told.keys() == whole.keys()
        assert all(torch.equal(value, whole[name]) for name, value in told.items())


def test_weights_in_one_form_take_the_place_of_those_in_the_other(three: Path, two: Path) -> None:
    again, now = RunDir(three / "small again"), RunDir(three / "large now")
    assert Run(again.path).weight_bytes == Run(two / "mlp").weight_bytes
    assert sorted(again.path.glob("model*")) == [again.plain_weights, again.weights]
    for path in (now.weights, now.plain_weights):
        assert not path.exists()
        assert len(files_of(path)) == len(files_of(two / "large" / path.name)) > 3


def test_other_tools_load_weights_in_several_files(two: Path) -> None:
    whole = load_file(two / "mlp" / "model.safetensors")
    for tool, place in ((load_torch_model, ""), (load_checkpoint_in_model, "model.safetensors")):
        model = load(find(str(RECIPES / "sharding.py")))().model()
        tool(model, str(index_of(two / "large" / place) if place else two / "large"))
        assert all(torch.equal(model.state_dict()[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "goes_on",
    ["three/from two", "three/from shares", "three/from whole", "one/from two", "one/from shares"],
)
def test_a_checkpoint_is_one_for_any_number_of_processes_sharded_or_not(
    goes_on: str, whole: Path, request: pytest.FixtureRequest
) -> None:
    world, name = goes_on.split("/")
    run = Run(request.getfixturevalue(world) / name)
    assert run.farthest(Run(whole / "mlp")) <= 1e-12
    assert run.result["step"] == Run(whole / "mlp").result["step"]


WORDS = ["shard=true", "epochs=4", "checkpoint_every=3", "ema_decay=0.9", "adam=true", "--cpu"]


def in_a_step(run: Path) -> bool:
    found = mark.read(run / "logs" / "rank-0.mark")
    return found is not None and found.steps >= 5


def in_a_save(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*9-*.tmp"))


def test_a_rank_that_is_killed_in_a_step_or_a_save_costs_no_byte(tmp_path: Path) -> None:
    command = ["run", RECIPES / "sharding.py", *WORDS, "--nproc", "2", "--max-restarts", "1"]
    done = launcher(*command, "--run-dir", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a checkpoint: gathered on rank 0 in " in done.stdout
    # The save is one of all ranks, into one folder.
    for name, moment, rank in (("step", in_a_step, 1), ("save", in_a_save, 1)):
        more = [f"shard_checkpoints={name == 'save'}", "--run-dir", name]
        with started(*command, *more, cwd=tmp_path) as process:
            wait_for(partial(moment, tmp_path / name), timeout_s=120, every_s=0.0005)
            record = json.loads((tmp_path / name / "logs" / f"rank-{rank}.json").read_text())
            os.kill(record["pid"], signal.SIGKILL)
            _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert "restarting; 0 restarts left" in stderr
        assert Run(tmp_path / name).weight_bytes == Run(tmp_path / "whole").weight_bytes
        assert not list((tmp_path / name / "checkpoints").glob(".*"))


def test_what_is_tested_and_saved_is_the_average_and_training_goes_on_without_it(
    whole: Path, two: Path
) -> None:
    for name in ("model.safetensors", "model-plain.safetensors"):
        mine, theirs = (load_file(folder / "mlp" / name) for folder in (two, whole))
        assert max(float((w - theirs[n]).abs().max()) for n, w in mine.items()) <= 1e-12
    plain, average = (
        load_file(two / "mlp" / f"model{kind}.safetensors") for kind in ("-plain", "")
    )
    assert max(float((w - average[n]).abs().max()) for n, w in plain.items()) > 1e-3


def test_a_checkpoint_of_shares_is_tested_replayed_and_begun_with(tmp_path: Path) -> None:
    words = ["run", RECIPES / "sharding.py", *WORDS, "shard_checkpoints=true", "--nproc", "2"]
    done = launcher(*words, "--run-dir", "r", cwd=tmp_path)
    assert "a checkpoint: each process's share copied in " in done.stdout
    run = Run(tmp_path / "r")
    assert launcher("checkpoints", "r", cwd=tmp_path).stdout.count("valid") == 3
    told = json.loads(launcher("test", "r", "--json", cwd=tmp_path).stdout)
    assert told["test_loss"] == run.result["test_loss"]
    made = launcher("debug", "r", "--step", "15", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "from checkpoint step-00000015-epoch-0003, by 2 processes" in made.stdout
    for path in run.path.glob("model*"):
        path.unlink()
    begun = launcher(
        "run", RECIPES / "sharding.py", "--init-from", "r", "--run-dir", "b", cwd=tmp_path
    )
    assert begun.returncode == 0, begun.stderr
    assert "starting from 24 of 24 tensors of the model in r/checkpoints/step-" in begun.stdout
