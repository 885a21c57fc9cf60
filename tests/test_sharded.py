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
from safetensors.torch import load_file
from training import RECIPES, Run, launcher, many_runs, started, wait_for

from launcher.run import mark

pytestmark = [pytest.mark.slow, pytest.mark.warm]

# What each is about stands in its name; 13 samples a step of 50, over 1, 2 and 3 processes.
MLP = {"kind": "mlp", "clip_norm": 0.5, "ema_decay": 0.9, "epochs": 4}
GPT = {"kind": "gpt", "micro_batch_size": 2, "both": True, "adam": True, "epochs": 2}
CASES: Mapping[str, Mapping[str, Any]] = {
    "mlp": MLP,
    "gpt": GPT,
    "single": {"kind": "mlp", "exact": False, "adam": True, "epochs": 3},
    "ghosts": {"kind": "mlp", "batch_size": 2, "samples": 7, "epochs": 4, "adam": True},
}
HALF = MLP | {"epochs": 2}


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
    many_runs(folder, 2, cases)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, whole: Path, two: Path) -> Path:
    """Runs of three processes with `shard`; some go on from one process, and from two."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copytree(whole / "half", folder / "from whole")
    shutil.copytree(two / "half", folder / "from two")
    cases = [case(n, True, c) for n, c in CASES.items()]
    many_runs(folder, 3, cases + [case(f"from {n}", True, MLP) for n in ("whole", "two")])
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, two: Path) -> Path:
    """Runs of one process: with `shard`, and one without that goes on from two with."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(two / "half", folder / "from two")
    cases = [case(n, True, c) for n, c in CASES.items()]
    many_runs(folder, 1, [case("from two", False, MLP), *cases])
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


@pytest.mark.parametrize("goes_on", ["three/from two", "three/from whole", "one/from two"])
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
    for name, moment, rank in (("step", in_a_step, 1), ("save", in_a_save, 1)):
        with started(*command, "--run-dir", name, cwd=tmp_path) as process:
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
