"""Who is slower than the others, by what each rank does for itself: real processes, real pauses."""

import json
from pathlib import Path
from typing import Any

import pytest
from training import Run, many_runs

pytestmark = [pytest.mark.slow, pytest.mark.warm]

PAUSE_S = 0.2  # a step, that one rank takes longer
IN_A_PASS = {"where": "pass", "pause_s": PAUSE_S}
MICRO = {"micro_batch_size": 4, "where": "pass"}


def data(world: int) -> dict[str, Any]:
    return {"where": "data", "pause_s": PAUSE_S / (24 // world)}


def cases(world: int) -> list[dict[str, Any]]:
    """The first rank, which sends its buffers to the others, and the last one."""
    last = world - 1
    in_parts = {"pause_s": PAUSE_S / (24 // world // 4)}
    found = [
        {"name": "pass", "rank": last, **IN_A_PASS},
        {"name": "gloo", "rank": 0, "shared_gradients": False, **IN_A_PASS},
        {"name": "micro", "rank": last, **MICRO, **in_parts},
        {"name": "data", "rank": 0, **data(world)},
        {"name": "shard", "rank": last, "shard": True, **data(world)},
        {"name": "alike", "rank": -1, "everybody_s": 0.05},
    ]
    return [{"recipe": "slowed", **case} for case in found]


@pytest.mark.parametrize("world", [2, 3])
def test_reports_tell_the_slowest_and_the_median_rank_and_who_stays_slow_is_noted(
    tmp_path: Path, world: int
) -> None:
    many_runs(tmp_path, world, cases(world))
    for case in cases(world):
        run = Run(tmp_path / case["name"])
        rows = [row for row in run.rows if row["split"] == "train"]
        assert len(rows) == 3
        of = "data" if "shard" in case else "data, compute"
        assert {row["rank_time_of"] for row in rows} == {of}
        note = run.path / "logs" / "slow.json"
        if case["rank"] < 0:
            assert not note.exists()
            assert all(row["rank_time_median"] >= 0.05 for row in rows)
            continue
        assert [row["slowest_rank"] for row in rows] == [case["rank"]] * 3, case["name"]
        for row in rows:
            assert row["rank_time_slowest"] >= 0.9 * PAUSE_S, case["name"]
            assert row["rank_time_median"] < 0.6 * PAUSE_S, case["name"]
        [told] = json.loads(note.read_text())["slow"]
        assert told["rank"] == case["rank"]
        how = "waited for data" if "shard" in case else "was"
        assert f" {how} " in told["words"]
        assert told["words"].endswith(" times the median, 3 reports in a row")


def test_one_rank_alone_is_compared_with_nobody(tmp_path: Path) -> None:
    many_runs(tmp_path, 1, [{"name": "r", "recipe": "slowed", "rank": 0}])
    rows = Run(tmp_path / "r").rows
    names = ("rank_time_median", "rank_time_slowest", "slowest_rank", "rank_time_of")
    assert {row[name] for row in rows for name in names} == {None}
    assert not (tmp_path / "r" / "logs" / "slow.json").exists()
