"""times.jsonl of real runs: killed, gone on with, started again; and lines that are torn."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from made_runs import made
from training import RECIPES, launcher, started, wait_for

from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.run.mark import Marker
from launcher.times import notes
from launcher.times.goodput import EVERY_S, goodput

CURVE = RECIPES / "curve.py"
WORDS = ["epochs=4", "samples=197", "test_samples=60", "batch_size=10", "checkpoint_every=7"]


def events(run: RunDir) -> list[str]:
    """What happened, without notes of time that passes."""
    return [line["event"] for line in notes.read(run) if line["event"] != "note"]


def of_kind(run: RunDir, event: str) -> list[dict[str, Any]]:
    return [line for line in notes.read(run) if line["event"] == event]


def last_save(run: RunDir) -> int:
    return max((line["step"] for line in of_kind(run, "checkpoint")), default=0)


def is_behind_a_save(run: RunDir, step: int) -> bool:
    """Whether it has trained for a while since it saved, there or later."""
    found = mark.read(run.mark(0))
    return found is not None and found.steps > last_save(run) + 1 > step


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


@pytest.mark.slow
@pytest.mark.warm
def test_every_second_has_a_name_of_a_run_that_was_started_again_killed_and_resumed(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path / "r")
    words = ["run", CURVE, *WORDS, "step_s=0.1", "test_s=0.05", "--nproc=2", "--max-restarts=1"]
    with started(*words, "--run-dir=r", cwd=tmp_path) as process:
        wait_for(lambda: is_behind_a_save(run, 7), timeout_s=240)
        kill(psutil.Process(json.loads(run.record(1).read_text())["pid"]))
        wait_for(lambda: is_behind_a_save(run, 28), timeout_s=240)
        launcher_itself = psutil.Process(process.pid)
        kill(launcher_itself, *launcher_itself.children(recursive=True))
        killed = time.time()
    assert "end" not in events(run)[events(run).index("end") + 1 :]
    done = launcher("resume", "r", cwd=tmp_path)
    ended = time.time()
    assert done.returncode == 0, done.stderr
    first, second, third = of_kind(run, "start")
    gone_on_from = [line["step"] for line in of_kind(run, "begin")]
    assert gone_on_from[0] == 0
    assert gone_on_from == sorted(gone_on_from)
    one, other = of_kind(run, "end")
    assert (one["how"], other["how"]) == ("failed", "completed")
    # One behind the other, without a gap.
    assert first["time"] + sum(one["spent"].values()) == pytest.approx(second["time"], abs=0.02)
    assert third["time"] > killed
    assert other["steps"] == 80
    found = notes.spent(run, alive=False)
    assert found.keys() == {
        *("starting", "training", "lost", "testing", "saving", "ending", "unknown")
    }
    assert found["unknown"] <= EVERY_S  # behind the last line of who was killed
    lived_s = killed - first["time"] + ended - third["time"]
    assert sum(found.values()) - found["unknown"] <= lived_s
    assert found["training"] > 80 * 0.1
    assert found["testing"] >= 4 * 0.05
    assert notes.said(run).startswith("time of 3 starts, ")


SCRIPT = """
import sys, time
import launcher

def save(folder):
    time.sleep(0.3)
    (folder / "state.txt").write_text("all")

if len(sys.argv) == 1:
    run = launcher.attach(save, lambda folder: None, checkpoint_every=2)
    time.sleep(0.4)
    for step in run.steps(4):
        time.sleep(0.2)
else:
    time.sleep(0.2)
"""


@pytest.mark.slow
@pytest.mark.warm
def test_a_script_tells_as_much_as_it_attaches(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    for name, words in (("attached", []), ("not", ["--", "alone"])):
        done = launcher("run", "train.py", "--run-dir", name, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "attached")
    assert events(run)[:2] == ["start", "begin"]
    assert events(run)[-2:] == ["checkpoint", "end"]
    found = notes.spent(run, alive=False)
    assert found.keys() == {"starting", "training", "saving", "ending"}
    assert found["starting"] > 0.4 + 0.2
    assert found["training"] > 3 * 0.2
    assert found["saving"] > 2 * 0.3
    assert notes.spent(RunDir(tmp_path / "not"), alive=False).keys() == {"running", "ending"}


def test_lines_that_are_torn_or_of_others_are_passed_over(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    assert notes.said(run) == ""
    run.times.touch()
    assert notes.said(run) == ""
    notes.append(run, "start", time=1000.0, in_job=False)
    with run.times.open("ab") as file:
        file.write(b'{"event": "job", "time": 1.0, "name": "7", "queued": ["a"]}\n')
        file.write(b'[1]\n{"event": "end", "spent": {"training": "long"}, "steps": 1, "how": ""}\n')
        file.write(b'{"event": "begin", "spent": {"starting": 1.0}, "steps": 0}\n{"event": "no')
    notes.append(run, "note", spent={"starting": 2.00049}, steps=0)
    assert [line["event"] for line in notes.read(run)] == ["start", "note"]
    assert goodput(notes.read(run)) == {"starting": 2.0}


def test_of_notes_in_a_row_only_the_last_is_read(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    notes.append(run, "start", time=1000.0, in_job=False)
    for seconds in range(5):
        notes.append(run, "note", spent={"running": seconds}, steps=0)
    notes.append(run, "end", spent={"running": 9}, steps=0, how="stopped")
    assert [line.get("spent") for line in notes.read(run)] == [None, {"running": 4}, {"running": 9}]


def test_a_launch_that_has_no_run_to_tell_of_tells_nothing(tmp_path: Path) -> None:
    times = notes.Times()
    times.start()
    times.look()
    times.processes_ended()
    times.end(None)
    assert not list(tmp_path.iterdir())


def test_what_a_rank_marks_is_what_its_launcher_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_LOOK_S", 0.0)
    monkeypatch.setattr(notes, "EVERY_S", 0.0)
    run = made(tmp_path / "r")
    run.logs.mkdir()
    times = notes.Times(run)
    times.start()
    times.look()
    marker = Marker(run.mark(0))
    marker.goes_on_from(7)
    times.look()
    marker.step(8)
    marker.trains()
    with marker.spending("saving"):
        marker.saves(8)
        with marker.spending("testing"):
            time.sleep(0.02)
        times.look()
    marker.ends()
    times.processes_ended()
    times.end(None)
    assert events(run) == ["start", "begin", "first step", "checkpoint", "end"]
    [end] = of_kind(run, "end")
    assert end["spent"]["testing"] >= 0.02
    assert set(end["spent"]) <= {"starting", "training", "testing", "saving", "ending"}
    assert of_kind(run, "checkpoint")[0]["step"] == 8
