"""Records and logs: how one process tells how it ended."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import (
    DataError,
    LauncherError,
    NonFiniteLoss,
    PeerFailed,
    Stopped,
    TrainingFailed,
)
from launcher.files import read_json
from launcher.run.directory import RunDir
from launcher.run.record import Record, logged, users_frames, write_result


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.create({"hyperparameters": {}}, "")
    return run


class DistBackendError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "state", "exit_code", "users_mistake", "first_cause"),
    [
        (None, "completed", 0, False, True),
        (ValueError("odd"), "failed", 1, False, True),
        (KeyboardInterrupt(), "failed", 1, False, True),
        (RuntimeError("CUDA out of memory"), "failed", 1, False, True),
        (DataError("no data"), "failed", 2, True, True),
        (TrainingFailed("it failed"), "failed", 1, False, True),
        (NonFiniteLoss("the loss is nan"), "failed", 1, False, True),
        (Stopped("stopped after step 3"), "stopped", 75, False, True),
        (PeerFailed("rank 1 is gone"), "failed", 1, False, False),
        (DistBackendError("NCCL error"), "failed", 1, False, False),
        (RuntimeError("[gloo] Connection closed by peer"), "failed", 1, False, False),
        (ConnectionResetError("Connection reset"), "failed", 1, False, True),
    ],
    ids=lambda value: repr(value) if isinstance(value, BaseException) else None,
)
def test_a_record_tells_how_a_process_ended(
    error: BaseException | None,
    state: str,
    exit_code: int,
    users_mistake: bool,
    first_cause: bool,
) -> None:
    record = Record.started(2)
    assert (record.rank, record.state) == (2, "running")
    record.end("failed" if error else "completed", error)
    assert record.state == state
    assert record.exit_code == exit_code
    assert record.users_mistake == users_mistake
    assert record.first_cause == first_cause
    assert time.time() - 60 < record.time <= time.time()


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (ValueError("odd"), "ValueError: odd", None),
        (KeyError(), "KeyError", None),
        (LauncherError("it broke", hint="mend it"), "it broke", "mend it"),
    ],
)
def test_an_error_is_told_in_its_words(error: Exception, words: str, hint: str | None) -> None:
    record = Record.started(0)
    record.end("failed", error)
    assert (record.error, record.hint) == (words, hint)


def test_an_error_of_ours_has_no_traceback_and_any_other_has() -> None:
    ours, theirs = Record.started(0), Record.started(0)
    ours.end("failed", DataError("no data"))
    with pytest.raises(ValueError, match="odd") as caught:
        raise ValueError("odd")
    theirs.end("failed", caught.value)
    assert ours.traceback == ""
    assert 'raise ValueError("odd")' in theirs.traceback
    assert theirs.traceback.endswith("ValueError: odd\n")


def test_the_users_frames_are_theirs_and_the_last(tmp_path: Path) -> None:
    try:
        logged_by_a_file(tmp_path)
    except NotADirectoryError as error:
        frames = users_frames(error)
    assert "in logged_by_a_file" in frames
    assert f"{Path('launcher', 'record.py')}" not in frames
    assert frames.splitlines()[-1].startswith("NotADirectoryError: ")


def logged_by_a_file(folder: Path) -> None:
    (folder / "file").touch()
    with logged(RunDir(folder / "file"), 0, supervised=False):
        pass


def test_records_are_the_same_when_read_again(run: RunDir) -> None:
    records = [Record.started(rank) for rank in (0, 2)]
    records[1].end("failed", LauncherError("it broke", hint="mend it"))
    for record in records:
        record.write(run)
    assert Record.read_all(run, range(3)) == records
    assert Record.read_all(run, range(1)) == records[:1]


def test_a_record_that_cannot_be_read_is_left_out(run: RunDir) -> None:
    run.record(0).write_text('{"rank": ')
    assert Record.read_all(run, range(2)) == []


def test_a_record_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Record.started(0).write(RunDir(tmp_path / "file"))


def test_what_rank_0_says_is_heard_and_logged(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with logged(run, 0, supervised=False):
        print("été")
        print("a warning", file=sys.stderr)
    print("afterwards")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("été\nafterwards\n", "a warning\n")
    assert run.log(0).read_text(encoding="utf-8") == "été\na warning\n"


SPEAKER = """
import os, sys
from pathlib import Path
from launcher.run.record import logged
from launcher.run.directory import RunDir
with logged(RunDir(Path(sys.argv[1])), int(sys.argv[2]), supervised=sys.argv[3] == "yes"):
    print("from python", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    os.write(1, b"from C\\n")
    os.write(2, b"C warns\\n")
    if sys.argv[4] == "crash":
        os.abort()
"""


def spoken(run: RunDir, rank: int, *, supervised: bool, end: str = "") -> tuple[str, str]:
    """What a process says on its two streams."""
    words = [str(run.path), str(rank), "yes" if supervised else "no", end]
    argv = [sys.executable, "-c", SPEAKER, *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("rank", "supervised", "said", "log"),
    [
        (
            0,
            False,
            ("from python\nfrom C\n", "a warning\nC warns\n"),
            "from python\na warning\n",
        ),
        (0, True, ("from python\na warning\nfrom C\n", ""), "from python\na warning\nC warns\n"),
        (1, False, ("", ""), "from python\na warning\nfrom C\nC warns\n"),
        (1, True, ("", ""), "from python\na warning\nfrom C\nC warns\n"),
    ],
)
def test_what_a_process_says_is_in_its_log_and_only_rank_0_is_heard(
    rank: int, supervised: bool, said: tuple[str, str], log: str, run: RunDir
) -> None:
    assert spoken(run, rank, supervised=supervised) == said
    assert run.log(rank).read_text() == log


def test_a_crash_in_c_leaves_its_traceback_in_the_log(run: RunDir) -> None:
    assert spoken(run, 1, supervised=True, end="crash") == ("", "")
    assert "Fatal Python error: Aborted" in run.log(1).read_text()


def test_a_record_is_json_that_people_can_read(run: RunDir) -> None:
    Record.started(0).write(run)
    assert json.loads(run.record(0).read_text())["state"] == "running"


@pytest.mark.parametrize(
    ("error", "word"), [(Stopped("after step 3"), "stopped"), (TrainingFailed("odd"), "failed")]
)
@pytest.mark.parametrize(("split", "epochs"), [("train", 1), ("test", 2)])
def test_a_run_that_did_not_complete_has_a_result_too(
    error: LauncherError, word: str, run: RunDir, split: str, epochs: int
) -> None:
    run.metrics.write_text(f'{{"split": "{split}", "epoch": 1, "step": 30}}\n')
    write_result(run, 2, error, 1.5)
    result = read_json(run.result)
    assert result
    assert (result["state"], result["error"]) == (word, error.message)
    assert (result["epoch"], result["step"], result["seconds"]) == (epochs, 30, 1.5)
    assert result["world_size"] == 2
