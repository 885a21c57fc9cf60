"""`launcher watch`: a page of runs, drawn from their files."""

import json
import os
import pty
import select
import signal
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_runs import ROWS, made, row
from rich.console import Console

from launcher.cli.main import main
from launcher.report.watch import Curves, page, sparkline
from launcher.run import lock
from launcher.run.directory import RunDir
from launcher.run.mark import Marker


def shown(*runs: RunDir, width: int = 80, height: int = 0, job: str = "") -> list[str]:
    """The lines of a page."""
    console = Console(width=width)
    jobs = {run.path: job for run in runs if job}
    curves = [(run.path, Curves(run.metrics)) for run in runs]
    with console.capture() as capture:
        console.print(page(curves, jobs, width, height))
    return capture.get().splitlines()


def line(lines: list[str], name: str) -> str:
    """What the page says of a subject."""
    return next(one for one in lines if one.startswith(name))[16:]


def test_a_run_that_is_over_shows_its_curves_its_time_and_its_last_words(tmp_path: Path) -> None:
    rows = [one | {"miou": 0.5 + one["step"] / 100} for one in ROWS]
    shares = {"compute": 0.75, "data": 0.25}
    run = made(tmp_path / "r", rows, {"state": "completed", "time_shares": shares})
    run.logs.mkdir()
    run.log(0).write_text("first\nsecond\n-----\nthird\nDone: \x1b[2J all\n")
    lines = shown(run)
    assert lines[0].startswith("r  completed  digits, 2 processes")
    assert line(lines, "train loss") == "0.25         █▄▁"
    assert line(lines, "test accuracy") == "80.00%       █▁"
    assert line(lines, "test miou") == "0.6          ▁█"
    assert line(lines, "time") == "75% compute, 25% data"
    assert line(lines, "log") == "second"
    assert "Done" in lines[-1]
    assert "\x1b[2J" not in lines[-1]


def test_a_run_that_lives_shows_how_long_it_takes_and_who_is_behind(tmp_path: Path) -> None:
    now = {"time": time.time(), "steps_in_all": 40, "eta_seconds": 125.0, "data_wait": 0.5}
    run = made(tmp_path / "r", [row("train", 0, 10, 2.0) | now | {"samples_per_second": 1234.5}])
    run.logs.mkdir()
    for rank, steps in ((0, 20), (1, 12)):
        Marker(run.mark(rank)).step(steps)
    words = "rank 1 on n2 was 1.5 times the median, 3 reports in a row"
    run.slow.write_text(json.dumps({"slow": [{"rank": 1, "node": "n2", "words": words}]}))
    with lock.held(run):
        lines = shown(run, job="12 running n[1-2]")
    assert line(lines, "progress").startswith("step 20/40 ")
    assert line(lines, "progress").endswith("50%  ETA 2 min")
    assert line(lines, "job") == "12 running n[1-2]"
    assert line(lines, "speed") == "1,234 samples/s"
    assert line(lines, "time") == "50% waiting for data"
    assert line(lines, "ranks") == "0:20 1:12"
    assert line(lines, "behind") == "rank 1, by 8 steps"
    assert line(lines, "slow") == words


def test_what_another_node_has_noted_counts_where_its_marks_are_not_seen(tmp_path: Path) -> None:
    run = made(tmp_path / "r", ROWS, nodes=2)
    run.logs.mkdir()
    gpus = [{"use": 97, "memory_gb": 34.1, "total_gb": 80.0}]
    for node, step in ((0, 20), (1, 15)):
        note = {"time": time.time(), "host": f"n{node}", "ranks": {str(node): step}, "gpus": gpus}
        run.node_note(node).write_text(json.dumps(note))
    with lock.held(run):
        lines = shown(run)
    assert line(lines, "ranks") == "0:20 1:15"
    assert [one[16:] for one in lines if one.startswith("gpus")] == [
        "n0 0: 97% 34.1/80.0 GB",
        "n1 0: 97% 34.1/80.0 GB",
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_a_page_is_as_wide_as_it_may_be(tmp_path: Path, width: int) -> None:
    rows = [row("train", 0, step, 1 / (1 + step)) for step in range(1000)]
    lines = shown(made(tmp_path / ("r" * 150), rows, {"state": "failed", "error": "e" * 300}))
    assert max(map(len, lines)) <= 80
    assert max(map(len, shown(made(tmp_path / "s", rows), width=width))) > width - 8


def test_what_does_not_fit_is_each_run_s_first_lines(tmp_path: Path) -> None:
    runs = [made(tmp_path / name, ROWS) for name in "abc"]
    lines = shown(*runs, height=12)
    assert len(lines) <= 12
    assert [one[0] for one in lines if "digits" in one] == ["a", "b", "c"]


def test_curves_grow_with_the_file_and_begin_anew_with_another(tmp_path: Path) -> None:
    run = made(tmp_path / "r", ROWS[:2])
    curves = Curves(run.metrics)
    curves.look()
    with run.metrics.open("a") as file:
        file.write(json.dumps(ROWS[2]) + '\n{"split": "tr')
    curves.look()
    assert curves.points["train loss"] == [2.0, 1.0]
    with run.metrics.open("a") as file:
        file.write('ain", "step": 13, "loss": 0.5}\nno json\n[]\n')
    curves.look()
    assert curves.points["train loss"] == [2.0, 1.0, 0.5]
    beside = run.path / "beside"
    beside.write_text(json.dumps(ROWS[0]) + "\n")
    beside.rename(run.metrics)
    curves.look()
    assert curves.points == {"train loss": [2.0], "train accuracy": [0.5]}


def test_of_a_million_rows_a_page_takes_a_part(tmp_path: Path) -> None:
    run = made(tmp_path / "r", [row("train", 0, 1, 1.0)])
    run.metrics.write_text(json.dumps(row("train", 0, 1, 1.0)).replace("}", "}\n") * 300_000)
    with run.metrics.open("a") as file:
        file.write(json.dumps(row("train", 0, 9, 7.0)) + "\n")
    curves = Curves(run.metrics)
    curves.look()
    assert 10_000 < len(curves.points["train loss"]) <= 20_002
    assert curves.train["step"] == 9


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([3.0, 3.0], "▁▁"),
        ([0.0, 1.0], "▁█"),
        ([0, 1, 2, 3] * 9, "▁" * 9),
        ([0, 1, 9] * 3, "▁▂█" * 3),
    ],
)
def test_a_sparkline_has_the_last_value_of_each_part(values: list[float], line: str) -> None:
    assert sparkline(values, 9) == line


def test_without_a_name_the_newest_run_is_shown_once_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = CliRunner().invoke(main, ["watch"])
    assert nothing.exit_code == 2
    assert "there are no runs below ./runs" in nothing.output
    for name, created in (("old", 1e9), ("new", 2e9)):
        made(tmp_path / "runs" / name, ROWS, created=created)
    done = CliRunner().invoke(main, ["watch"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.startswith("new  killed")
    assert CliRunner().invoke(main, ["watch", "nothing"]).exit_code == 2


def on_terminal(words: list[Any], keys: bytes, columns: int) -> tuple[int, str, bool]:
    """Have Python run on a terminal and press keys, once; its exit code, output, and echo."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
        os.execv(sys.executable, [sys.executable, *map(str, words)])
    said, pressed, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # it has ended
                break
        if b"train loss" in said and not pressed:
            pressed = True
            os.write(terminal, keys)
    else:
        os.kill(pid, signal.SIGKILL)
    echoes = True
    with suppress(termios.error):  # nobody holds the other side any more
        echoes = bool(termios.tcgetattr(terminal)[3] & termios.ECHO)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, said.decode(), echoes


@pytest.mark.slow
@pytest.mark.parametrize("keys", [b"q", b"xq", b"\x03"], ids=["q", "two keys", "Ctrl-C"])
def test_on_a_terminal_it_goes_on_until_it_is_ended(tmp_path: Path, keys: bytes) -> None:
    run = made(tmp_path / "r", ROWS)
    with lock.held(run):
        code, said, echoes = on_terminal(["-m", "launcher", "watch", run.path], keys, 80)
    assert code == 0
    assert echoes
    assert "running" in said
    assert "\x1b[?1049l" in said  # the terminal has its own page back
    assert "Traceback" not in said


# Ctrl-C comes while an object is being deleted: Python drops what is raised there.
IN_A_FINALIZER = """
import os, signal
from launcher.report.live import show

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        self.gone = True

def draw(width, height):
    Last()
    return "drawn"

show(draw)
"""


def test_a_ctrl_c_is_never_lost() -> None:
    code, said, _ = on_terminal(["-c", IN_A_FINALIZER], b"", 80)
    assert code == 0
    assert "drawn" in said
