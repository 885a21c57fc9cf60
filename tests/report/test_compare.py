"""`launcher diff`: where two runs part, and what they differ in."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made_runs import ROWS, made, row

from launcher.cli.main import main


def diff(*words: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, words)], catch_exceptions=False)


def pair(tmp_path: Path, theirs: Any, **config: Any) -> tuple[Path, Path]:
    """Two runs: one with the rows of all tests, the other with those that are given."""
    return made(tmp_path / "a", ROWS).path, made(tmp_path / "b", theirs, **config).path


def changed(at: int, **values: Any) -> list[Any]:
    return [one | (values if number == at else {}) for number, one in enumerate(ROWS)]


def test_runs_that_reported_the_same_are_equal_to_the_bit(tmp_path: Path) -> None:
    clock = {"time": 5.0, "samples_per_second": 1.0, "data_wait": 0.5}
    clock |= {"rank_time_median": 0.1, "rank_time_slowest": 0.2}
    slower = [one | clock | {"slowest_rank": 1, "rank_time_of": "data"} for one in ROWS]
    done = diff(*pair(tmp_path, slower), "--tolerance", 0)
    assert (done.exit_code, done.output) == (0, "equal to the bit: 5 reports\n")


@pytest.mark.parametrize(
    ("values", "tolerance", "code"),
    [
        ({"loss": 1.000001}, 1e-5, 0),
        ({"loss": 1.000001}, 0, 1),
        ({"loss": 1.0001}, 1e-5, 1),
        ({"loss": -1.0}, 1, 1),
        ({"loss": None}, 1e9, 1),
        ({"miou": 0.5}, 1e-5, 1),
        ({"learning_rates": {"d": 0.1}}, 1e-5, 1),
        ({"samples": 12}, 1e-5, 1),
    ],
    ids=str,
)
def test_a_number_that_differs_counts_beyond_the_tolerance(
    tmp_path: Path, values: dict[str, Any], tolerance: float, code: int
) -> None:
    done = diff(*pair(tmp_path, changed(2, **values)), "--tolerance", tolerance)
    assert done.exit_code == code
    assert f"first difference: step 10, train {next(iter(values))}" in done.output
    assert ("first beyond" in done.output) == bool(code)


def test_the_first_difference_at_all_and_the_first_that_counts_are_told(tmp_path: Path) -> None:
    theirs = changed(1, loss=0.5000001)
    theirs[3] = row("test", 1, 10, 0.8, 0.8)
    done = diff(*pair(tmp_path, theirs))
    assert done.exit_code == 1
    assert "first difference: step 5, test loss: 0.5 | 0.5000001 (2.0e-07 relative)" in done.output
    assert "first beyond 1e-05: step 10, test loss: 0.75 | 0.8" in done.output


def test_a_run_that_lacks_reports_is_not_equal(tmp_path: Path) -> None:
    done = diff(*pair(tmp_path, ROWS[:3]))
    assert done.exit_code == 1
    assert "only in the first: 2 reports" in done.output


def test_all_that_made_them_different_is_told_and_no_secret(tmp_path: Path) -> None:
    a, b = pair(
        tmp_path,
        ROWS,
        hyperparameters={"epochs": 5, "my_token": "s3cret"},
        world_size=3,
        versions={"torch": "2.8.0"},
        git={"commit": "abc", "dirty": True},
    )
    (a / "recipe.py").write_text("one")
    (b / "recipe.py").write_text("two")
    for run, text in ((a, "x"), (b, "y")):
        (run / "snapshot").mkdir()
        (run / "snapshot" / "net.py").write_text(text)
    done = diff(a, b)
    assert done.exit_code == 0
    for line in (
        "differs in hyperparameters:\n  epochs: 4 | 5\n  my_token: - | ***",
        "differs in recipe:\n  recipe.py: text | another text",
        "differs in git:\n  commit: - | abc\n  dirty: - | true",
        "differs in snapshot:\n  net.py: text | another text",
        "differs in versions:\n  torch: - | 2.8.0",
        "differs in machines:\n  processes: 2 | 3",
    ):
        assert line in done.output
    assert "s3cret" not in done.output + diff(a, b, "--json").output


def test_json_has_all_of_it(tmp_path: Path) -> None:
    told = json.loads(diff(*pair(tmp_path, changed(2, loss=None)), "--json").output)
    assert told["equal"] is False
    assert (told["reports"], told["only"]) == (5, [0, 0])
    assert told["first"] == told["first_beyond"] == told["largest"]
    assert told["first"]["values"] == [1.0, None]
    assert told["first"]["relative"] is None


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ([], "`{b}` has reported nothing"),
        ([row("train", 0, 1, 2.0)], "no step was reported by both"),
    ],
)
def test_runs_without_a_report_in_common_cannot_be_compared(
    tmp_path: Path, theirs: Any, words: str
) -> None:
    a, b = pair(tmp_path, theirs)
    done = diff(a, b)
    assert done.exit_code == 2
    assert words.format(b=b) in done.output


def test_a_folder_without_a_run_cannot_be_compared(tmp_path: Path) -> None:
    a, _ = pair(tmp_path, ROWS)
    for other in (tmp_path, tmp_path / "none"):
        done = diff(a, other)
        assert done.exit_code == 2
        assert "holds no run" in done.output
