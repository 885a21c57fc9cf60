"""The same numbers from any number of processes: curves, weights and counts, with real gloo."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from training import RECIPES, Run, many_runs

from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.train.prepare import prepare

F64 = {"recipe": "curve", "dtype": "float64"}
CASES: list[dict[str, Any]] = [
    # the quickstart's own size, 200 steps
    {"name": "plain", "recipe": "curve", "hidden": 512},
    {"name": "micro", "recipe": "curve", "micro_batch_size": 20, "epochs": 2},
    {"name": "double", **F64},
    {"name": "small", **F64, "epochs": 2},
    {"name": "double-micro", **F64, "micro_batch_size": 4, "epochs": 2},
    {"name": "adamw", **F64, "optimizer_name": "adamw", "epochs": 2},
    {"name": "schedule", **F64, "schedule": True, "epochs": 2},
    {"name": "augmented", **F64, "augment": True, "epochs": 2},
    # fewer samples in a batch than ranks, and a last batch of one
    {"name": "ghosts", **F64, "samples": 61, "batch_size": 2, "test_samples": 2, "epochs": 2},
    {"name": "single", **F64, "samples": 13, "batch_size": 1, "test_samples": 1, "epochs": 2},
    {"name": "tokens", "recipe": "tokens", "dtype": "float64"},
    {"name": "tokens-micro", "recipe": "tokens", "dtype": "float64", "micro_batch_size": 2},
    {"name": "tokens-ghosts", "recipe": "tokens", "dtype": "float64", "batch_size": 2, "epochs": 1},
    {"name": "sparse", "recipe": "tokens", "dtype": "float64", "sparse": True},
    {"name": "sparse-clipped", "recipe": "tokens", "dtype": "float64", "sparse": True}
    | {"clip_norm": 0.1, "micro_batch_size": 2},
    {"name": "left-out", "recipe": "ignoring", "dtype": "float64"},
    {"name": "left-out-micro", "recipe": "ignoring", "dtype": "float64", "micro_batch_size": 2},
    {"name": "left-out-pixels", "recipe": "ignoring", "dtype": "float64", "pixels": 5},
    {"name": "clipped", **F64, "clip_norm": 0.2, "epochs": 2},
    {"name": "averaged", **F64, "ema_decay": 0.9, "epochs": 2},
    {"name": "convolved", **F64, "convolve": True, "epochs": 2},
    {"name": "layout", **F64, "convolve": True, "epochs": 2, "channels_last": True},
    {"name": "mixed", "recipe": "mixing", "dtype": "float64"},
    {"name": "mixed-micro", "recipe": "mixing", "dtype": "float64", "micro_batch_size": 2},
    {"name": "mixed-growing", "recipe": "mixing", "dtype": "float64", "growing": True}
    | {"steps": 30, "log_every": 100},
    {"name": "streamed", "recipe": "streamed", "dtype": "float64"},
    {"name": "streamed-endless", "recipe": "streamed", "dtype": "float64", "sized": False}
    | {"steps": 20, "test_every": 9, "num_workers": 0},
    {"name": "gathered", "recipe": "contrastive", "dtype": "float64"},
    {"name": "workers", "recipe": "sampled", "dtype": "float64", "num_workers": 2},
    {"name": "no-workers", "recipe": "sampled", "dtype": "float64", "num_workers": 0},
    {"name": "default-workers", "recipe": "sampled", "dtype": "float64"},
    {"name": "short", "recipe": "curve", "epochs": 2},
    {"name": "again", "recipe": "curve", "epochs": 2},
    {"name": "attention", "recipe": "attention"},  # AdamW, in float32
]
NAMES = [case["name"] for case in CASES]
pytestmark = [pytest.mark.slow, pytest.mark.warm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world-1")
    many_runs(folder, 1, CASES, timeout_s=560)
    return folder


@pytest.fixture(
    scope="module",
    params=[1, 2, 3, 4],  # 1: in DDP
    ids="world-{}".format,
)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    many_runs(folder, request.param, CASES, in_ddp=True, timeout_s=560)
    return folder


def tolerance(name: str) -> float:
    precise = next(c for c in CASES if c["name"] == name).get("dtype") == "float64"
    return 1e-12 if precise else 1e-5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "attention"])
def test_weights_are_those_of_one_process(one: Path, several: Path, name: str) -> None:
    assert Run(several / name).farthest(Run(one / name)) <= tolerance(name)


def test_adam_moves_what_has_no_gradient_but_rounding_and_the_rest_is_the_same(
    one: Path, several: Path
) -> None:
    run, alone = Run(several / "attention"), Run(one / "attention")
    apart = {name: (w - alone.weights[name]).abs() for name, w in run.weights.items()}
    keys = apart["layer.self_attn.in_proj_bias"][32:64]  # of queries, keys, values
    farthest = float(keys.max())
    keys.zero_()
    assert max(float(those.max()) for those in apart.values()) <= 1e-5
    assert (farthest > 1e-5) == (run.result["world_size"] > 1)
    assert farthest <= 2 * run.result["step"] * 1e-3  # the learning rate, each step


@pytest.mark.parametrize("name", NAMES)
def test_every_report_is_that_of_one_process(one: Path, several: Path, name: str) -> None:
    expected, got = Run(one / name).rows, Run(several / name).rows
    assert len(got) == len(expected) > 0
    for mine, theirs in zip(got, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5, rel=1e-6)
        for exact in ("split", "epoch", "step", "samples", "accuracy"):
            assert mine[exact] == theirs[exact]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_whole_and_equal(one: Path, several: Path, name: str) -> None:
    expected, got = Run(one / name).result, Run(several / name).result
    for count in ("test_correct", "test_samples", "step", "epoch"):
        assert isinstance(got[count], int) or (count, name) == ("test_correct", "left-out-pixels")
        assert got[count] == expected[count]
    assert got["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-6)


def test_train_reports_of_an_epoch_cover_every_sample_once(several: Path) -> None:
    rows = [row for row in Run(several / "plain").rows if row["split"] == "train"]
    for epoch in range(10):
        assert sum(row["samples"] for row in rows if row["epoch"] == epoch) == 997


def test_curves_are_real_weights_move_and_learn(one: Path) -> None:
    rows = [row for row in Run(one / "plain").rows if row["split"] == "test"]
    assert rows[0]["loss"] > rows[-1]["loss"]
    assert rows[-1]["accuracy"] > 0.8


def test_the_same_run_twice_gives_the_same_bytes(one: Path, several: Path) -> None:
    for folder in (one, several):
        assert Run(folder / "short").weight_bytes == Run(folder / "again").weight_bytes


@pytest.mark.parametrize("name", ["workers", "default-workers"])
def test_data_workers_change_nothing(one: Path, several: Path, name: str) -> None:
    for folder in (one, several):
        run, without = Run(folder / name), Run(folder / "no-workers")
        assert run.weight_bytes == without.weight_bytes
        assert [row["loss"] for row in run.rows] == [row["loss"] for row in without.rows]


def test_augmentation_and_micro_batches_are_not_vacuous(one: Path) -> None:
    assert Run(one / "augmented").farthest(Run(one / "small")) > 1e-6
    assert Run(one / "micro").weight_bytes != Run(one / "short").weight_bytes


def test_clipping_and_averaging_change_weights_and_layout_only_rounding(one: Path) -> None:
    assert Run(one / "clipped").farthest(Run(one / "small")) > 1e-6
    assert Run(one / "averaged").farthest(Run(one / "small")) > 1e-6
    assert Run(one / "layout").farthest(Run(one / "convolved")) <= 1e-12


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++: apt-get install g++")
@pytest.mark.parametrize("world", [1, 2])
def test_a_compiled_model_is_the_same_model(tmp_path: Path, world: int) -> None:
    cases = [
        {"name": name, "recipe": "curve", "epochs": 2, "compile": name == "compiled"}
        for name in ("plain", "compiled")
    ]
    many_runs(tmp_path, world, cases)
    plain, compiled = Run(tmp_path / "plain"), Run(tmp_path / "compiled")
    assert compiled.weights.keys() == plain.weights.keys()
    assert compiled.farthest(plain) < 1e-4  # other kernels, other rounding


@pytest.mark.parametrize("asked", [False, True])
def test_a_model_is_compiled_only_where_it_is_asked_for(asked: bool) -> None:
    recipe = configure(load(find(str(RECIPES / "curve.py"))), "curve", {"compile": asked})
    training = prepare(recipe, Context(cpu=True), StopRequest())
    assert (training.model._compiled_call_impl is not None) == asked
