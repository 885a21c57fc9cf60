"""How long a run is and when it tests: by steps, with any number of processes, stopped anywhere."""

from pathlib import Path
from typing import Any

import pytest
from training import CLOCKED, Run, many_runs

pytestmark = pytest.mark.warm

CURVE: dict[str, Any] = {"recipe": "curve", "dtype": "float64", "samples": 197, "test_samples": 61}
CURVE |= {"test_batch_size": 20, "log_every": 3, "augment": True, "hidden": 16}  # 4 steps an epoch
CURVE |= {"sanity_test": False}  # `stops` count passes
BY_STEPS = {**CURVE, "steps": 15, "test_every": 5}
CASES = [
    {**CURVE, "name": "epochs", "epochs": 3},
    {**CURVE, "name": "twelve", "steps": 12},
    {**BY_STEPS, "name": "steps"},
    {**BY_STEPS, "name": "dropped", "drop_last": True},
    {**BY_STEPS, "name": "saved", "checkpoint_every": 5, "keep_last": 9, "steps": 14},
    # In a step; in the test after step 5 and again; in the test at the end. One more test comes
    # before the first step, of one batch.
    {**BY_STEPS, "name": "in-step", "stops": [["train", 7], ["train", 3]]},
    {**BY_STEPS, "name": "in-test", "stops": [["test", 3], ["test", 2]]},
    {**BY_STEPS, "name": "at-end", "stops": [["test", 1 + 2 * 4 + 1]]},
    {**CURVE, "name": "epochs-in-test", "epochs": 3, "stops": [["test", 2], ["test", 5]]},
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world-1")
    many_runs(folder, 1, CASES)
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
    many_runs(folder, request.param, CASES)
    return folder


def told(run: Run) -> list[dict[str, Any]]:
    """The reports of a run, without what a clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in run.rows]


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
def test_every_report_is_that_of_one_process(one: Path, several: Path, name: str) -> None:
    mine, theirs = Run(several / name), Run(one / name)
    assert mine.farthest(theirs) < 1e-12
    for row, other in zip(told(mine), told(theirs), strict=True):
        assert {k: v for k, v in row.items() if not isinstance(v, float)} == {
            k: v for k, v in other.items() if not isinstance(v, float)
        }
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("twelve", "epochs"),
        ("in-step", "steps"),
        ("in-test", "steps"),
        ("at-end", "steps"),
        ("epochs-in-test", "epochs"),
    ],
)
def test_a_length_or_a_stop_changes_no_byte(several: Path, name: str, whole: str) -> None:
    mine, theirs = Run(several / name), Run(several / whole)
    assert mine.weight_bytes == theirs.weight_bytes
    assert told(mine) == told(theirs)
    numbers = ("epoch", "step", "train_loss", "test_loss", "test_correct", "test_samples")
    assert [mine.result[n] for n in numbers] == [theirs.result[n] for n in numbers]


def test_tests_come_by_steps_and_at_the_end_and_count_every_sample(several: Path) -> None:
    for name, steps in (("steps", [5, 10, 15]), ("saved", [5, 10, 14]), ("epochs", [4, 8, 12])):
        tests = [row for row in Run(several / name).rows if row["split"] == "test"]
        assert [row["step"] for row in tests] == steps
        assert {row["samples"] for row in tests} == {61}
    assert [row["epochs"] for row in tests] == [1, 2, 3]
    assert (Run(several / "steps").result["epoch"], Run(several / "steps").result["step"]) == (
        3,
        15,
    )


def test_a_step_that_asks_for_both_has_one_checkpoint_after_its_test(several: Path) -> None:
    folder = several / "saved" / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "step-00000005-epoch-0001",
        "step-00000010-epoch-0002",
        "step-00000014-epoch-0003",
    ]


def test_the_ragged_batch_is_left_out_of_training_and_of_nothing_else(several: Path) -> None:
    rows = Run(several / "dropped").rows
    assert sum(row["samples"] for row in rows if row["split"] == "train") == 15 * 50
    assert {row["samples"] for row in rows if row["split"] == "test"} == {61}
    assert Run(several / "dropped").result["epoch"] == 5
