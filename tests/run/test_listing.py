"""What run directories tell, and the command that lists them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made_runs import ROWS, made

from launcher.cli.main import main
from launcher.errors import RunDirError
from launcher.run import lock
from launcher.run.listing import age, differing, find_runs, number, rows_of, summary, word


def listed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, words)], catch_exceptions=False)


def test_a_summary_has_the_newest_and_the_best_numbers(tmp_path: Path) -> None:
    run = summary(made(tmp_path / "r", ROWS).path)
    assert (run.recipe, run.world_size, run.epochs, run.step) == ("digits", 2, 2, 13)
    assert (run.train_loss, run.test_loss, run.best_test_loss) == (0.25, 0.75, 0.5)
    assert (run.test_accuracy, run.best_test_accuracy) == (0.8, 0.9)


def test_a_result_says_more_than_the_last_rows(tmp_path: Path) -> None:
    result = {"state": "completed", "step": 14, "train_loss": 0.125, "seconds": 3.5}
    run = summary(made(tmp_path / "r", ROWS, result | {"samples_per_second": 100.0}).path)
    assert (run.step, run.train_loss, run.test_loss) == (14, 0.125, 0.75)
    assert (run.seconds, run.samples_per_second) == (3.5, 100.0)


@pytest.mark.parametrize("state", ["completed", "stopped", "failed"])
def test_a_run_that_has_ended_says_how(tmp_path: Path, state: str) -> None:
    assert summary(made(tmp_path / "r", ROWS, {"state": state}).path).state == state


def test_a_run_without_an_end_is_running_killed_or_new(tmp_path: Path) -> None:
    run = made(tmp_path / "r", ROWS)
    with lock.held(run):
        assert summary(run.path).state == "running"
        run.result.write_text('{"state": "stopped"}')
        assert summary(run.path).state == "running"
    run.result.unlink()
    assert summary(run.path).state == "killed"
    dead = {"token": "t", "host": os.uname().nodename, "pid": 2**22 + 1, "started": 0.0}
    run.lock.write_text(json.dumps(dead))
    assert summary(run.path).state == "killed"
    assert summary(made(tmp_path / "new").path).state == "new"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 3}', '{"host": "elsewhere"}'])
def test_an_odd_lock_is_nobodys(tmp_path: Path, text: str) -> None:
    run = made(tmp_path / "r", ROWS)
    run.lock.write_text(text)
    assert summary(run.path).state in ("killed", "running")
    assert listed(tmp_path).exit_code == 0


def test_torn_and_odd_files_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    run = made(tmp_path / "r", ROWS, created="yesterday", world_size=None, recipe=["\x1b[31m"])
    with run.metrics.open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"split": "test", "loss": NaN, "step": "x"}\n{"split": "tr')
    run.result.write_text('{"state": "finis')
    found = summary(run.path)
    assert (found.state, found.step, found.best_test_loss) == ("killed", 13, 0.5)
    assert "\x1b" not in found.recipe
    assert len(list(rows_of(run))) == len(ROWS) + 1
    shown = listed(tmp_path)
    assert shown.exit_code == 0
    assert "killed" in shown.output
    json.loads(listed(tmp_path, "--json").stdout)


def test_runs_are_found_at_any_depth_but_not_within_runs(tmp_path: Path) -> None:
    deep = made(tmp_path / "a" / "b" / "c" / "deep").path
    top = made(tmp_path / "top").path
    made(top / "logs" / "node-1-spec")
    made(tmp_path / ".hidden")
    made(tmp_path / "1" / "2" / "3" / "4" / "too-deep")
    (tmp_path / "latest").symlink_to(top)
    assert sorted(find_runs(tmp_path)) == sorted([deep, top])
    assert list(find_runs(top)) == [top]


def test_a_folder_that_is_no_run_is_named_and_left_out(tmp_path: Path) -> None:
    made(tmp_path / "good")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": []}')
    shown = listed(tmp_path)
    assert shown.exit_code == 0
    assert "good" in shown.stdout
    assert "model" not in shown.stdout
    assert "model" in shown.stderr
    with pytest.raises(RunDirError, match="no hyperparameters"):
        summary(tmp_path / "model")


@pytest.mark.floors
def test_the_list_is_newest_first_with_what_differs_among_runs_of_a_recipe(tmp_path: Path) -> None:
    for at, rate in enumerate([0.1, 0.2]):
        parameters = {"epochs": 4, "learning_rate": rate, "seed": 0}
        made(tmp_path / f"r{at}", ROWS, created=1e9 + at, hyperparameters=parameters)
    made(tmp_path / "other", recipe="b", hyperparameters={"epochs": 9, "width": 3}, created=1e9 + 2)
    lines = listed(tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "other", "r1", "r0"]
    assert [line.rstrip().rpartition("  ")[2] for line in lines[2:]] == [
        "learning_rate=0.2",
        "learning_rate=0.1",
    ]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert "\x1b" not in "".join(lines)
    found = json.loads(listed(tmp_path, "--json").stdout)
    assert [run["name"] for run in found] == ["other", "r1", "r0"]
    assert [run["differs"] for run in found] == [{}, {"learning_rate": 0.2}, {"learning_rate": 0.1}]
    assert found[1]["test_accuracy"] == 0.8
    assert found[1]["age"] > 1e8


def test_where_there_is_nothing_to_list_that_is_said(tmp_path: Path) -> None:
    assert listed(tmp_path).stdout == f"no runs in `{tmp_path}`\n"
    assert listed(tmp_path, "--json").stdout == "[]\n"
    missing = listed(tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert missing.stderr.count("hint: ") == 1


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_seconds(tmp_path: Path) -> None:
    for at in range(1000):
        made(tmp_path / f"r{at}", ROWS * 20)
    started = time.process_time()
    shown = listed(tmp_path)
    assert len(shown.stdout.splitlines()) == 1001
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((1, 1), (0.5, 0.5), (True, None), (None, None), ("1", None), ([], None)),
        *((float("nan"), None), (float("-inf"), None), (10**400, None)),
    ],
    ids=lambda value: str(value)[:9],
)
def test_only_finite_numbers_are_numbers(value: Any, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a b", "a b"),
        (None, "none"),
        ([1, 2], "1,2"),
        ("a\nb", r'"a\nb"'),
        ("\x1b[1m", r'"\u001b[1m"'),
    ],
)
def test_a_value_is_a_word_on_one_line(value: Any, expected: str) -> None:
    assert word(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, expected: str) -> None:
    assert age(seconds) == expected


def test_what_differs_counts_what_only_some_have() -> None:
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": None}, {"a": 1, "b": 3}]) == [
        "b",
        "c",
    ]
    assert differing([{"a": 1}]) == []
