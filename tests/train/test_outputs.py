"""Where the time goes: shares at the end of each run, and traces where they are asked for."""

import json
import time
from pathlib import Path

import pytest
from training import PROJECT, Run, launcher

from launcher.ranks.timing import StepTimes
from launcher.train.worker import time_words

pytestmark = pytest.mark.warm


@pytest.mark.slow
def test_a_profiled_run_leaves_a_trace_of_each_rank_and_the_same_weights(tmp_path: Path) -> None:
    digits = PROJECT / "recipes" / "digits.py"
    words = ["run", digits, "--nproc", "2", "epochs=2", "--run-dir"]
    done = launcher(*words, "r", "--profile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert launcher(*words, "plain", cwd=tmp_path).returncode == 0
    for rank in range(2):
        trace = json.loads((tmp_path / "r" / f"trace-rank-{rank}.json").read_text())
        names = [event.get("name", "") for event in trace["traceEvents"]]
        assert sum(name.startswith("ProfilerStep#") for name in names) >= 20
        assert any(name.startswith("Optimizer.step#SGD") for name in names)
        assert any("gloo:all_reduce" in name for name in names)
    assert not list((tmp_path / "plain").glob("trace-*"))
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "plain").weight_bytes
    shares = Run(tmp_path / "r").result["time_shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert {"compute", "data", "communication", "test", "tracking", "checkpoint"} == shares.keys()
    assert time_words(shares) in done.stdout


def test_shares_are_of_the_session_and_the_rest_is_compute() -> None:
    times = StepTimes()
    for _ in times.waiting([1, 2]):
        time.sleep(0.02)
    with times.spending("test"):
        time.sleep(0.06)
    shares = times.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["test"] > shares["compute"] > shares["data"]


@pytest.mark.parametrize(("data", "hinted"), [(0.05, False), (0.3, True)])
def test_there_is_a_hint_where_training_waits_for_data(data: float, hinted: bool) -> None:
    words = time_words({"compute": 0.5, "data": data, "test": 0.5 - data})
    assert words.startswith(f"Time: 50% compute, {100 * data:.0f}% data")
    assert ("num_workers" in words) == hinted
