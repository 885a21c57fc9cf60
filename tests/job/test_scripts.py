"""How a start of a job ended that ran a script, from what agents and processes have left."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import LauncherError, Stopped, TrainingFailed
from launcher.files import write_json
from launcher.job.budgets import Budgets
from launcher.job.scripts import cause, judged, with_grace
from launcher.launch.ended import AskedAgain
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder
from launcher.run.node_marks import Came
from launcher.script.ends import End, Ends
from launcher.script.script import Script

Row = tuple[int, int, bool]  # of a process: exit code, when it ended, whether by itself


def told(**changes: Any) -> dict[str, Any]:
    script = Script(file="train.py", **changes).told()
    return {"kind": "script", "script": script, "world_size": 2, "nodes": 2}


def ended(run: RunDir, *nodes: tuple[Row, bool] | None) -> None:
    """Leave what the agents of nodes with one process each leave; None: it was lost."""
    run.logs.mkdir(parents=True)
    for rank, node in enumerate(nodes):
        if node:
            (code, moment, by_itself), asked = node
            Ends([End(rank, code, moment, f"n{rank}", 0, by_itself)], asked).write(run, rank)


@pytest.mark.parametrize(
    ("nodes", "stopped", "expected"),
    [
        ([((0, 1, True), False), ((0, 2, True), False)], False, None),
        ([((0, 1, True), False), ((0, 2, True), False)], True, None),  # the request came too late
        ([((0, 1, True), True), ((0, 2, True), True)], True, Stopped),
        ([((0, 1, True), True), ((0, 2, True), True)], False, Stopped),
        ([((-15, 1, True), True), ((-15, 2, True), True)], True, Stopped),
        ([((1, 1, True), False), ((-15, 2, False), False)], False, TrainingFailed),
        ([((1, 1, True), False), ((-15, 2, True), True)], False, TrainingFailed),  # srun asked it
        ([((-15, 2, True), True), ((1, 1, True), False)], False, TrainingFailed),
        ([((-15, 1, True), True), ((1, 2, True), False)], False, Stopped),  # it lost a peer by that
        ([((-9, 1, True), False), ((-15, 2, False), False)], False, TrainingFailed),
        ([((75, 1, True), False), ((75, 2, True), False)], False, AskedAgain),
        ([((75, 1, True), False), ((-15, 2, False), False)], False, AskedAgain),
        ([((0, 1, True), False), None], True, Stopped),  # a node was lost
        ([((0, 1, True), False), None], False, TrainingFailed),
    ],
)
def test_what_ended_a_start(
    tmp_path: Path, nodes: list[Any], stopped: bool, expected: type[LauncherError] | None
) -> None:
    run = RunDir(tmp_path)
    ended(run, *nodes)
    came = [Came(f"n{node}", 4) for node in range(2)]
    found = cause(run, told(), came, 1, stopped=stopped)
    assert type(found) is (expected or type(None))


BEGAN = Attempt("1", 0, "n1", started=time.time() + 1e6)  # less than a minute ago, whenever asked
OLD = Attempt("1", 0, "n1", started=0)
FAILED = Attempt("1", 0, "n1", 0, "failed", 75, 0, 60, error="rank 1 failed first: no 17 here")
LIKE = TrainingFailed("rank 0 failed first: no 4 here")
OTHER = TrainingFailed("rank 0 failed first: out of memory")


@pytest.mark.parametrize(
    ("before", "verdict", "error", "got_on"),
    [
        ([BEGAN], "failed", LIKE, True),
        ([FAILED, BEGAN], "failed", LIKE, False),
        ([FAILED, BEGAN], "failed", OTHER, True),
        ([FAILED, OLD], "failed", LIKE, True),  # it took longer than a minute
        ([FAILED, BEGAN], "timeout", Stopped("stopped"), True),
    ],
)
def test_a_start_that_fails_like_the_one_before_within_a_minute_did_not_get_on(
    before: list[Attempt], verdict: Any, error: LauncherError, got_on: bool
) -> None:
    last = judged(told(), before, Attempt("1", 1, "n1", 0, verdict, 75), error)
    assert last.got_on is got_on
    assert last.error == error.message
    given_up = Budgets(9, 9, restart=True).used_up([*before[:-1], last])
    assert given_up == (None if got_on else "the last start made no progress")


def test_where_progress_is_told_it_is_the_newest_file_that_counts(tmp_path: Path) -> None:
    saved = tmp_path / "ckpt" / "last.pt"
    saved.parent.mkdir()
    for verdict in ("failed", "timeout"):
        last = Attempt("1", 1, "n1", 0, verdict, 75)
        told_of = told(progress=str(saved.parent))
        start = Attempt("1", 1, "n1", started=1000)
        saved.unlink(missing_ok=True)
        assert judged(told_of, [FAILED, start], last, OTHER).got_on is False
        saved.touch()
        os.utime(saved, (999, 999))  # of the start before
        assert judged(told_of, [FAILED, start], last, OTHER).got_on is False
        os.utime(saved, (1001, 1001))
        assert judged(told_of, [FAILED, start], last, LIKE).got_on is True


def test_steps_that_are_told_count_as_those_of_a_recipe() -> None:
    last = Attempt("1", 1, "n1", 0, "failed", 75, step=7)
    assert judged(told(), [FAILED, BEGAN], last, LIKE).got_on is None


@pytest.mark.parametrize(
    ("signal", "asked", "grace"),
    [("B:USR1@120", None, 120), ("R:USR1@300", None, 300), ("USR1", None, None), ("USR1@9", 4, 4)],
)
def test_a_script_has_to_stop_before_the_time_limit(
    tmp_path: Path, signal: str, asked: float | None, grace: float | None
) -> None:
    run = RunDir(tmp_path)
    SlurmFolder.of(run).path.mkdir()
    option = {"value": signal, "source": "default"}
    write_json(SlurmFolder.of(run).job, {"options": {"signal": option}})
    assert with_grace(run, told(grace=asked))["script"]["grace"] == grace
    recipe: dict[str, Any] = {"hyperparameters": {}}
    assert with_grace(run, recipe) == recipe
