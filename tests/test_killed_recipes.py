"""What a recipe can say is exact over kill -9: the bytes of a run that nobody disturbed."""

from pathlib import Path
from typing import Any

import pytest
from training import CLOCKED, Run, forked_runs

pytestmark = [pytest.mark.slow, pytest.mark.warm]
SAVES = {"checkpoint_every": 2, "log_every": 3}
STREAM = {"recipe": "streamed", "dtype": "float64", "dropout": 0.0, **SAVES}
# A recipe, and the training pass in which all its processes are killed: not at a checkpoint.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    # In the second epoch, in the middle of all lanes.
    "a stream that is read again": ({**STREAM, "keeps": "nothing"}, 14),
    "a stream with a state": ({**STREAM, "keeps": "state"}, 14),
    "optimizers in turns": ({"recipe": "turns", "critics": 2, "dropout": 0.5, **SAVES}, 12),
    "a plateau and patience": (
        {"recipe": "optimised", "schedule": "plateau", "test_every": 3, "patience": 3}
        | {"epochs": 30, **SAVES},
        18,
    ),
    "an order with partners": ({"recipe": "mixing", "num_workers": 1, **SAVES}, 14),
    "sums and rows": ({"recipe": "counted", **SAVES}, 16),
}
ON_THREE = [name for name in CASES if "stream" in name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of them whole; killed and gone on with; some gone on with on another world size."""
    folder = tmp_path_factory.mktemp("runs")
    cases = []
    for name, (values, kill_at) in CASES.items():
        of_two = values | {"processes": 2}
        cases += [of_two | {"name": name}]
        for again, world in [("again", 2)] + [("on three", 3)] * (name in ON_THREE):
            killed = {"name": f"{name}, {again}"}
            cases += [
                of_two | killed | {"kill_at": kill_at},
                values | killed | {"processes": world},
            ]
    forked_runs(folder, cases)
    return folder


def told(run: Run) -> list[dict[str, Any]]:
    rows = [*run.rows, run.result]
    return [{k: v for k, v in row.items() if k not in {*CLOCKED, "time_shares"}} for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(runs: Path, name: str) -> None:
    whole, again = Run(runs / name), Run(runs / f"{name}, again")
    assert again.weight_bytes == whole.weight_bytes
    assert told(again) == told(whole)
    assert (whole.result["out_of_patience"] is not None) == ("patience" in name)


@pytest.mark.parametrize("name", ON_THREE)
def test_a_killed_stream_goes_on_with_other_processes(runs: Path, name: str) -> None:
    whole, again = Run(runs / name), Run(runs / f"{name}, on three")
    assert again.farthest(whole) <= 1e-12
    assert again.result["test_correct"] == whole.result["test_correct"]
