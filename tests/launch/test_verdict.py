"""What a run that has ended says of itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import (
    BadInput,
    LauncherError,
    NodeFailed,
    PeerFailed,
    Stopped,
    TrainingFailed,
)
from launcher.files import write_json
from launcher.launch.verdict import first_failure, verdict
from launcher.run.directory import RunDir
from launcher.run.record import Record


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create({"hyperparameters": {}}, "")
    return run


def record(rank: int, error: BaseException | None = None, at: float = 0) -> Record:
    """A rank that died unheard, or at some second of an error."""
    made = Record(rank, "here", 1, "running", 0)
    if error:
        made.end("failed", error)
    made.time = at
    return made


OWN = ValueError("odd")
LOST = PeerFailed("a peer has gone")


@pytest.mark.parametrize(
    ("records", "exits", "words"),
    [
        ([record(0, OWN, 2), record(1, KeyError("x"), 1)], {}, ["rank 1", "KeyError: 'x'"]),
        ([record(0, LOST, 1), record(1, OWN, 2)], {}, ["rank 1", "ValueError: odd"]),
        ([record(0, LOST, 1), record(1)], {"1": -9}, ["rank 1", "killed by SIGKILL"]),
        ([record(0, LOST, 1), record(1)], {"1": -11}, ["rank 1", "killed by SIGSEGV"]),
        ([record(0), record(1)], {"1": 3}, ["rank 1", "without a word (exit code 3)"]),
        ([record(0), record(1)], {"0": -15, "1": -9}, ["rank 1", "killed by SIGKILL"]),
        ([record(0, OWN, 9), record(1)], {"1": -9}, ["rank 0", "ValueError: odd"]),
        ([record(0, LOST, 1)], {}, ["a peer has gone"]),
    ],
)
def test_the_first_cause_is_named(
    records: list[Record], exits: dict[str, int], words: list[str], run: RunDir
) -> None:
    failure = first_failure(records, run, exits)
    assert isinstance(failure, TrainingFailed)
    assert all(word in failure.message for word in words)
    assert failure.hint


def test_a_model_that_does_not_fit_is_told_with_the_way_out(run: RunDir) -> None:
    failure = first_failure([record(0, torch.OutOfMemoryError("tried to allocate"))], run, {})
    assert failure
    assert "OutOfMemoryError: tried to allocate" in failure.message
    assert "micro_batch_size" in str(failure.hint)
    assert "rank-0.log" in str(failure.hint)


@pytest.mark.parametrize("records", [[], [record(0)]])
def test_processes_that_were_only_ended_are_no_cause(records: list[Record], run: RunDir) -> None:
    assert first_failure(records, run, {"0": -15}) is None


def test_a_process_that_died_unheard_speaks_through_its_log(run: RunDir) -> None:
    run.log(0).write_text("".join(f"line {number}\n" for number in range(30)))
    failure = first_failure([record(0)], run, {"0": -11})
    assert failure
    assert "line 29" in failure.message
    assert "line 5\n" not in failure.message


def state(run: RunDir, *records: Record, result: dict[str, Any] | None = None) -> None:
    for one in records:
        one.write(run)
    if result:
        write_json(run.result, result)


def test_a_run_that_completed_has_nothing_to_say(run: RunDir) -> None:
    done = [record(0), record(1)]
    for one in done:
        one.end("completed")
    state(run, *done, result={"state": "completed"})
    assert verdict(run, range(2), [0], 0) is None


@pytest.mark.parametrize(
    ("records", "kind", "exit_code"),
    [
        ([record(0, BadInput("no", hint="yes")), record(1, LOST)], BadInput, 2),
        ([record(0, Stopped("after step 3")), record(1, Stopped("after step 3"))], Stopped, 75),
        ([record(0, OWN), record(1, Stopped("after step 3"))], TrainingFailed, 1),
        ([], TrainingFailed, 1),
    ],
)
def test_the_verdict_has_the_exit_code_of_what_happened(
    records: list[Record], kind: type[LauncherError], exit_code: int, run: RunDir
) -> None:
    state(run, *records)
    error = verdict(run, range(2), [0], 1)
    assert isinstance(error, kind)
    assert error.exit_code == exit_code


def test_what_all_ranks_have_completed_stays_completed(run: RunDir) -> None:
    """Whatever happened when they left: a hang, a crash, a signal."""
    done = [record(0), record(1)]
    for one in done:
        one.end("completed")
    state(run, *done, result={"state": "completed"})
    assert verdict(run, range(2), [0], -9, NodeFailed("no progress")) is None
    assert isinstance(verdict(run, range(3), [0], 1), TrainingFailed)  # one is missing


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record(0), record(1, OWN)], "ValueError: odd"),
        ([record(0, Stopped("after 3")), record(1, Stopped("after 3"))], "after 3"),
        ([record(0, LOST), record(1)], "no progress"),
        ([record(0, Stopped("after 3")), record(1)], "no progress"),
        ([], "no progress"),
    ],
)
def test_a_hang_is_the_cause_where_nobody_has_said_another(
    records: list[Record], words: str, run: RunDir
) -> None:
    state(run, *records)
    error = verdict(run, range(2), [0], -9, NodeFailed("no progress"))
    assert error
    assert words in error.message


def test_a_stop_before_anybody_could_hear_it_is_a_stop(run: RunDir) -> None:
    state(run, record(0))
    assert isinstance(verdict(run, range(1), [0], -15, Stopped("early")), Stopped)
    assert not isinstance(verdict(run, range(1), [0], -9, Stopped("early")), Stopped)


def test_a_signal_is_named_although_nobody_says_anything(run: RunDir) -> None:
    error = verdict(run, range(1), [0], -11)
    assert error
    assert error.message == "the run was killed by SIGSEGV before any process could say why"


def test_the_only_process_is_known_by_the_commands_own_exit_code(run: RunDir) -> None:
    state(run, record(0))
    error = verdict(run, range(1), [0], -9)
    assert error
    assert "killed by SIGKILL" in error.message


def test_an_end_without_any_record_shows_the_agents_words(run: RunDir) -> None:
    run.agent(0).write_text("no such module\n")
    error = verdict(run, range(2), [0], 1)
    assert error
    assert "exit code 1" in error.message
    assert error.hint == "no such module"
