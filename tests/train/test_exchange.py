"""What ranks tell each other at reports."""

from pathlib import Path

import pytest
from training import Run, many_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_save_that_failed_on_every_rank_is_one_failure(tmp_path: Path, ranks: int) -> None:
    case = {"name": "r", "recipe": "full_disk", "failures": 2, "batch_size": 10}
    many_runs(tmp_path, ranks, [{**case, "checkpoint_every": 1}])
    assert Run(tmp_path / "r").result["state"] == "completed"
