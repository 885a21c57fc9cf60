"""When a rank is told to be slow: in a row, by much, and not for having more samples."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli.jobs import status
from launcher.files import write_json
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.run.record import Record
from launcher.times import slow
from launcher.times.slow import RankTimes, SlowRanks


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "logs").mkdir()
    return RunDir(tmp_path)


def judge(
    judged: SlowRanks,
    run: RunDir,
    *reports: list[float],
    steps: int = 20,
    step_s: float = 0.2,
    uneven: float = 1.0,
) -> list[int]:
    """The ranks that are noted after some reports."""
    for each in reports:
        judged.judge(run, RankTimes(each, False), steps=steps, step_s=step_s, uneven=uneven)
    return [one.rank for one in slow.read(run)]


@pytest.mark.parametrize(
    ("each", "median", "slowest"),
    [
        ([0.1, 0.3], 0.1, 1),  # of two the faster one
        ([0.3, 0.1, 0.2], 0.2, 0),
        ([0.1, 0.1, 0.3, 0.3], 0.1, 2),  # one machine of two
    ],
)
def test_the_median_is_a_rank_that_is_not_slow(
    each: list[float], median: float, slowest: int
) -> None:
    times = RankTimes(each, False)
    assert (times.median, times.slowest) == (median, slowest)


def test_a_rank_that_is_slow_three_reports_in_a_row_is_told_once_and_noted_while_it_lasts(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record.started(5)
    record.host = "n3"
    record.write(run)
    judged, well = SlowRanks(), [0.1] * 8
    late = [0.1] * 5 + [0.145] + [0.1] * 2
    assert judge(judged, run, late, late, well, late, late) == []
    assert capsys.readouterr().out == ""
    assert judge(judged, run, late) == [5]
    words = "rank 5 on n3 was 1.4 times the median, 3 reports in a row"
    assert capsys.readouterr().out == f"WARNING: {words}\n"
    assert slow.read(run) == [slow.Slow(5, "n3", words)]
    assert judge(judged, run, late, late) == [5]
    assert judge(judged, run, well) == []
    assert judge(judged, run, late, late, late) == [5]
    assert capsys.readouterr().out == ""


def test_all_ranks_of_a_slow_machine_are_told_whoever_is_the_slowest(run: RunDir) -> None:
    reports = [[0.1, 0.1, 0.1, 0.2, 0.15], [0.1, 0.1, 0.1, 0.15, 0.2], [0.1, 0.1, 0.1, 0.2, 0.15]]
    assert judge(SlowRanks(), run, *reports) == [3, 4]


@pytest.mark.parametrize(
    ("each", "changes", "found"),
    [
        ([0.1, 0.15], {}, [1]),
        ([0.1, 0.139], {}, []),
        ([0.0, 0.15], {}, [1]),
        ([0.1, 0.15], {"steps": 6}, []),  # 0.9 s in three reports
        ([0.001, 0.009], {"steps": 1000}, []),  # of a step of 0.2 s
        ([0.1, 0.15], {"uneven": 2.0}, []),  # it may have two samples, and the other one
        ([0.1, 0.3], {"uneven": 2.0}, [1]),
        ([0.1, 9.0], {"uneven": math.inf}, []),  # the other has none
    ],
)
def test_what_is_little_or_fair_is_not_slow(
    each: list[float], changes: dict[str, float], found: list[int], run: RunDir
) -> None:
    assert judge(SlowRanks(), run, each, each, each, **changes) == found  # type: ignore[arg-type]


def test_what_an_earlier_start_has_noted_goes_with_the_first_report(run: RunDir) -> None:
    judge(SlowRanks(), run, *[[0.1, 0.5]] * 3)
    assert run.slow in run.process_files()
    assert judge(SlowRanks(), run, [0.1, 0.5]) == []


@pytest.mark.parametrize("text", ["", "{}", '{"slow": 1}', '{"slow": [{"rank": 1}]}', "[]"])
def test_a_note_that_is_none_tells_of_nobody(text: str, run: RunDir) -> None:
    run.slow.write_text(text)
    assert slow.read(run) == []


def test_status_tells_of_them_in_a_line_and_in_json(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.create({"hyperparameters": {}, "world_size": 2, "nodes": 2, "cpu": True}, "")
    SlurmFolder.of(run).path.mkdir()
    write_json(SlurmFolder.of(run).job, {"submitted": 1.0, "nodes": 2, "nproc": 1})
    words = "rank 1 on n2 was 1.5 times the median, 3 reports in a row"
    write_json(run.slow, {"slow": [{"rank": 1, "node": "n2", "words": words}]})
    told = CliRunner().invoke(status, [str(run.path)])
    assert (told.exit_code, told.output.splitlines()[1].strip()) == (0, words)
    [row] = json.loads(CliRunner().invoke(status, [str(run.path), "--json"]).output)
    assert row["slow"] == [words]
