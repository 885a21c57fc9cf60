"""Optimizers and schedules of all kinds: the same from 1, 2 and 3 processes, stopped or not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, RMSprop
from training import CLOCKED, Run, many_runs

from launcher.errors import RecipeError
from launcher.model.optimizers import Optimizers, asked_for
from launcher.run import checkpoint_files

pytestmark = pytest.mark.warm

BASE: dict[str, Any] = {"recipe": "optimised"}
CASES = [
    {**BASE, "name": "epoch", "schedule": "epoch"},
    {**BASE, "name": "cosine", "schedule": "cosine", "epochs": 3},
    {**BASE, "name": "torch", "schedule": "torch", "steps": 25},
    {**BASE, "name": "plateau", "schedule": "plateau", "test_every": 3},
    {**BASE, "name": "groups", "optimizers": "groups"},
    {**BASE, "name": "two", "optimizers": "two", "schedule": "both", "clip_norm": 0.5}
    | {"micro_batch_size": 4},
    {**BASE, "name": "loss", "optimizers": "loss", "clip_norm": 0.5, "micro_batch_size": 4},
    {"recipe": "turns", "name": "turns", "micro_batch_size": 4, "clip_norm": 0.5},
    {"recipe": "turns", "name": "critics", "critics": 2, "ema_decay": 0.9},
    {"recipe": "turns", "name": "drawn", "dropout": 0.5},
    {**BASE, "name": "ghosts", "optimizers": "loss", "samples": 31, "test_every": 1},
]
# Once in a step, once in the middle of an epoch's last step and of a test.
STOPPED = [{**case, "stops": [["train", 10], ["test", 1]]} for case in CASES]
STOPPED = [{**case, "name": f"{case['name']}-stopped"} for case in STOPPED[:-1]]
# What is drawn differs by rank.
NAMES = [str(case["name"]) for case in CASES if case["name"] != "drawn"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world-1")
    many_runs(folder, 1, CASES + STOPPED)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(world, marks=pytest.mark.slow) for world in (1, 2, 3)],
    ids="world-{}".format,
)
def several(
    request: pytest.FixtureRequest, one: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == 1:
        return one
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    many_runs(folder, request.param, CASES + STOPPED)
    return folder


def told(run: Run) -> list[dict[str, Any]]:
    """The reports of a run, without what a clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in run.rows]


@pytest.mark.parametrize("name", NAMES)
def test_every_report_is_that_of_one_process(one: Path, several: Path, name: str) -> None:
    mine, theirs = Run(several / name), Run(one / name)
    assert mine.farthest(theirs) < 1e-10
    for row, other in zip(told(mine), told(theirs), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], abs=1e-10), (name, row["step"], key)


@pytest.mark.parametrize("case", STOPPED, ids=lambda case: case["name"])
def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(
    several: Path, case: dict[str, Any]
) -> None:
    mine, theirs = (Run(several / n) for n in (case["name"], case["name"].split("-")[0]))
    assert mine.weight_bytes == theirs.weight_bytes
    assert told(mine) == told(theirs)
    assert newest(mine)["optimizer"] == newest(theirs)["optimizer"]
    assert newest(mine)["scheduler"] == newest(theirs)["scheduler"]
    assert newest(mine)["loss"] == newest(theirs)["loss"]


def newest(run: Run) -> dict[str, Any]:
    """The parts of the last checkpoint, tensors as lists."""
    path = checkpoint_files.all_of(run.path / "checkpoints")[-1].path / checkpoint_files.TRAINING
    state: dict[str, Any] = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.tolist(), torch.load(path, weights_only=True)
    )
    return state


def rates(run: Run) -> dict[int, float]:
    return {row["step"]: row["learning_rate"] for row in run.rows if row["split"] == "train"}


def test_rates_are_those_of_what_each_schedule_counts(several: Path) -> None:
    assert rates(Run(several / "epoch")) == pytest.approx(
        {step: 0.1 * 0.7 ** ((step - 1) // 7) for step in rates(Run(several / "epoch"))}
    )
    cosine = rates(Run(several / "cosine"))  # 21 steps, of which 4 grow
    assert cosine[3] == pytest.approx(0.1 * 3 / 4)
    assert cosine[21] == pytest.approx(0.05 * (1 + math.cos(16 / 17 * math.pi)))
    whole = rates(Run(several / "torch"))
    assert whole[25] == pytest.approx(0.05 * (1 + math.cos(24 / 25 * math.pi)))


def test_a_plateau_looks_at_the_accuracy_of_each_test(several: Path) -> None:
    best, rate, expected = -1.0, 0.1, {}
    for row in Run(several / "plateau").rows:
        if row["split"] == "train":
            expected[row["step"]] = rate
        elif row["accuracy"] > best * (1 + 1e-4) or best < 0:
            best = row["accuracy"]
        else:
            rate /= 2
    assert rates(Run(several / "plateau")) == pytest.approx(expected)
    assert rate < 0.1  # there was a plateau


def test_all_learning_rates_are_told(several: Path) -> None:
    kept = {"two": {"Turned", "AdamW"}, "groups": {"SGD 0", "SGD 1"}}
    for name, keys in kept.items():
        rows = [row for row in Run(several / name).rows if row["split"] == "train"]
        assert {frozenset(row["learning_rates"]) for row in rows} == {frozenset(keys)}
    assert rows[0]["learning_rates"] == {"SGD 0": 0.01, "SGD 1": 0.1}
    assert {row["learning_rates"] for row in Run(several / "epoch").rows} == {None}


def test_what_a_loss_has_learned_is_in_the_checkpoint(several: Path) -> None:
    saved = newest(Run(several / "loss"))["loss"][0]["sharpness"]
    assert len(saved) == 3
    assert saved != newest(Run(several / "ghosts"))["loss"][0]["sharpness"]


def test_each_turn_tells_its_own_loss_and_their_sum(several: Path) -> None:
    rows = [row for row in Run(several / "turns").rows if row["split"] == "train"]
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_d"] + row["loss_g"])
        assert 0 < row["judged_right"] < 1
        assert row["accuracy"] is None
        assert 0 < row["accuracy_d"] < 2 * row["judged_right"]  # of the real ones
        assert "accuracy_g" not in row
    assert [*rows[0]["learning_rates"]] == ["d", "g"]
    assert rows[-1]["learning_rates"]["g"] < 0.02 == 2 * rows[-1]["learning_rates"]["d"]


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(2))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: SGD(m[0].parameters()), "are in no optimizer: 1.weight, 1.bias"),
        (lambda m: [SGD(m.parameters()), SGD(m[1].parameters())], "two optimizers: 1.weight"),
        (lambda _: [], "returned list of nothing"),
        (lambda m: [SGD(m.parameters()), 3], "returned list of SGD, int"),
        (lambda _: None, "returned NoneType"),
        (lambda m: {"d": m}, "returned dict of Sequential"),
    ],
)
def test_what_is_no_whole_set_of_optimizers_is_refused(make: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        asked_for(make, network(), nn.CrossEntropyLoss())


def test_parameters_of_a_loss_must_be_in_an_optimizer_too() -> None:
    with pytest.raises(RecipeError, match="`loss` has parameters that are in no optimizer: centre"):
        asked_for(lambda m: SGD(m.parameters()), network(), Learned())
    made = asked_for(lambda m, f: SGD([*m.parameters(), *f.parameters()]), network(), Learned())
    assert len(made.groups()[0]["params"]) == 5


def test_frozen_parameters_need_no_optimizer() -> None:
    model = network()
    model[1].requires_grad_(False)
    assert asked_for(lambda m: SGD(m[0].parameters()), model, nn.CrossEntropyLoss())


def test_optimizers_are_fused_where_they_can_be() -> None:
    model = network()
    several = Optimizers([AdamW(model[0].parameters()), RMSprop(model[1].parameters())])
    several.fuse()
    assert [group.get("fused") for group in several.groups()] == [True, None]
    assert [*several.rates()] == ["AdamW", "RMSprop"]
