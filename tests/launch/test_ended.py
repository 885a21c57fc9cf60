"""Who failed first, and what it said, from logs and codes alone."""

from pathlib import Path

import pytest

from launcher.errors import LauncherError, Stopped, TrainingFailed
from launcher.launch.ended import AskedAgain, alike, verdict
from launcher.run.directory import RunDir
from launcher.script.ends import End, Ends

TRACE = """\
said before
Traceback (most recent call last):
  File "/old.py", line 1, in <module>
OldError: caught long ago
Traceback (most recent call last):
  File "/home/me/train.py", line 7, in <module>
    main()
    ^^^^^^
  File "/usr/lib/python3/site-packages/torch/nn/module.py", line 90, in forward
    raise ValueError("a\\nb")
ValueError: a
b
"""
LOST = """\
[rank0]: Traceback (most recent call last):
[rank0]:   File "/home/me/train.py", line 3, in <module>
[rank0]:     dist.all_reduce(x)
[rank0]: RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]:4711
"""


def told(
    folder: Path, *ranks: tuple[int, int, str, bool], asked: bool = False
) -> LauncherError | None:
    """The verdict of processes: rank, code, log, and whether it ended by itself."""
    run = RunDir(folder)
    run.logs.mkdir()
    for rank, _, log, _ in ranks:
        run.log(rank).write_text("of a start before\n" + log)
    ends = [End(rank, code, i, "h", 18, own) for i, (rank, code, _, own) in enumerate(ranks)]
    Ends(ends, asked).write(run, 0)
    return verdict(run, [rank for rank, *_ in ranks], [0], int(any(code for _, code, *_ in ranks)))


def test_own_frames_and_the_error_are_told(tmp_path: Path) -> None:
    error = told(tmp_path, (1, 1, TRACE, True), (0, -15, "", False))
    assert isinstance(error, TrainingFailed)
    assert error.message == (
        "rank 1 on h failed first: ValueError: a\n"
        '  File "/home/me/train.py", line 7, in <module>\n    main()\n    ^^^^^^\nValueError: a\nb'
    )


def test_who_only_lost_a_peer_is_not_the_first_although_it_was_faster(tmp_path: Path) -> None:
    error = told(tmp_path, (0, 1, LOST, True), (1, 1, TRACE, False))
    assert isinstance(error, TrainingFailed)
    assert error.message.startswith("rank 1 on h failed first: ValueError: a\n")


def test_who_lost_a_peer_is_told_of_where_nobody_said_more(tmp_path: Path) -> None:
    error = told(tmp_path, (0, 1, LOST, True), (1, -15, "", False))
    assert isinstance(error, TrainingFailed)
    assert "RuntimeError: [pair.cc:547] Connection closed by peer" in error.message


@pytest.mark.parametrize(
    ("codes", "asked", "kind"),
    [
        ([0, 0], False, None),
        ([0, 0], True, Stopped),
        ([1, 0], True, Stopped),
        ([75, 75], False, AskedAgain),
        ([0, 75], False, AskedAgain),
        ([75, 75], True, Stopped),
        ([3, 75], False, TrainingFailed),
    ],
)
def test_codes_and_requests_decide(
    codes: list[int], asked: bool, kind: type[LauncherError] | None, tmp_path: Path
) -> None:
    error = told(tmp_path, *((n, code, "", True) for n, code in enumerate(codes)), asked=asked)
    assert type(error) is (kind or type(None))


def test_what_changes_from_start_to_start_makes_no_other_failure() -> None:
    one = TrainingFailed("rank 0 on h: OSError: port 4711 at 0x7f3a")
    assert alike(one, TrainingFailed("rank 1 on h: OSError: port 99 at 0x11"))
    assert not alike(one, TrainingFailed("rank 1 on h: KeyError: port 99 at 0x11"))


ABORTED = """\
terminate called after throwing an instance of 'gloo::EnforceNotMet'
Fatal Python error: Aborted

Thread 0x00007f24b142db80 (most recent call first):
  <no Python frame>
"""


@pytest.mark.parametrize("code", [-6, -11])
def test_a_crash_as_an_exception_leaves_does_not_hide_it(code: int, tmp_path: Path) -> None:
    error = told(tmp_path, (0, 1, LOST, True), (1, code, TRACE + ABORTED, True))
    assert isinstance(error, TrainingFailed)
    assert error.message.startswith("rank 1 on h failed first: ValueError: a; then killed by SIG")
    assert error.message.endswith("\nValueError: a\nb")


def test_a_crash_long_after_an_exception_was_caught_is_told_by_itself(tmp_path: Path) -> None:
    went_on = "".join(f"step {step}\n" for step in range(20))
    error = told(tmp_path, (0, -6, TRACE + went_on + ABORTED, True))
    assert isinstance(error, TrainingFailed)
    assert error.message.startswith("rank 0 on h failed first: killed by SIGABRT")
