"""Ranks whose weights are no longer the same: seen after the first step, and at reports."""

import json
import sys
from typing import Any

import pytest
import torch
from drifting import DRIFTING, HEALTHY
from training import PROJECT, command

from launcher.ranks.drift import _MOST, _bits


@pytest.fixture(
    scope="module",
    params=[pytest.param(world, marks=pytest.mark.slow) for world in (2, 3)],
    ids="world-{}".format,
)
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How each recipe ended on each rank."""
    folder, world = tmp_path_factory.mktemp("drift"), request.param
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    script = PROJECT / "tests" / "drifting.py"
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = command(sys.executable, *torchrun, script, folder, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(folder.glob("rank-*.json"))
    assert len(found) == world
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.parametrize("name", DRIFTING)
def test_ranks_that_drift_apart_are_told_after_the_first_step(endings: Any, name: str) -> None:
    first = endings[0][name]
    assert first is not None
    assert all(theirs[name] == first for theirs in endings)
    kind, message = first
    differing = {
        "inner": "body.0.weight (6, 8), body.1.weight (6,)",
        "part": "body.0.weight (6, 8), body.1.weight (6,)",
        "second": "head.weight (3, 6), head.bias (3,)",
        "outside": "parameter 0 of SGD (8, 8)",
        "by-hand": "fixed.weight (6, 6)",
        "unfreezes": "fixed.weight (6, 6), fixed.bias (6,)",
        "unsynchronised": "body.0.weight (6, 8), body.1.weight (6,)",
    }[name]
    since = "step 5 and step 10" if name == "by-hand" else "the last start and step 1"
    words = f"ranks have drifted apart between {since}: they differ in {differing}"
    assert message.startswith(words)
    assert kind == ("TrainingFailed" if name == "by-hand" else "RecipeError")


@pytest.mark.parametrize("name", HEALTHY)
def test_ranks_that_only_look_different_are_left_alone(endings: Any, name: str) -> None:
    assert [theirs[name] for theirs in endings] == [None] * len(endings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (4, 3, 5, 5)])
def test_one_last_bit_changes_the_checksum(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, dtype=dtype)
    before = int(_bits(weights, 1))
    assert int(_bits(weights.clone(), 1)) == before
    weights.reshape(-1).view(torch.uint8)[0] ^= 1
    assert int(_bits(weights, 1)) != before


def test_of_a_large_parameter_all_is_looked_at_in_turn() -> None:
    weights = torch.zeros(_MOST * 5 // 2)
    for place in (0, _MOST + 1, len(weights) - 1):
        changed = weights.clone()
        changed[place] = 1
        seen = [step for step in range(10) if int(_bits(changed, step))]
        assert 0 < len(seen) < 10
