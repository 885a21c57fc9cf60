"""Requests to stop: signals, which a script may have handlers for, too."""

import signal
from pathlib import Path

import pytest
from scripted import python, record

pytestmark = pytest.mark.slow

COUNTED = """
import os, signal, sys, threading, time
import launcher
"""


def test_a_handler_that_the_script_had_is_called_too(tmp_path: Path) -> None:
    text = f"""{COUNTED}
signal.signal(signal.SIGTERM, lambda number, frame: print("mine", number))
run = launcher.attach(dir="r")
for step in run.steps(9):
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
"""
    done = python(text, cwd=tmp_path)
    assert done.returncode == 75
    assert done.stdout.splitlines()[0] == f"mine {int(signal.SIGTERM)}"
    assert "stopped on request after 4 steps; attach() has no `save`" in done.stdout


def test_another_thread_is_told_that_it_hears_no_signals(tmp_path: Path) -> None:
    text = f"""{COUNTED}
def work():
    try:
        launcher.attach(dir="r")
    except launcher.errors.BadInput as error:
        print(error)
thread = threading.Thread(target=work, name="trainer")
thread.start()
thread.join()
"""
    done = python(text, cwd=tmp_path)
    assert "`launcher.attach` was called in the thread `trainer`" in done.stdout
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_what_a_script_has_forked_ends_as_it_would(tmp_path: Path) -> None:
    text = f"""{COUNTED}
import multiprocessing
run = launcher.attach(dir="r")
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
child.start()
os.kill(child.pid, signal.SIGUSR1)  # a scheduler says it to everybody
time.sleep(0.3)
print(child.is_alive())
child.terminate()
child.join(10)
print(child.exitcode)
for step in run.steps(3):
    pass
"""
    done = python(text, cwd=tmp_path)
    assert done.stdout.split() == ["True", "-15"]
    assert done.returncode == 0
    assert record(tmp_path / "r")["state"] == "completed"


@pytest.mark.parametrize("says", ["", "sys.exit(75)"])
def test_a_loop_of_another_shape_hears_of_a_request(tmp_path: Path, says: str) -> None:
    text = f"""{COUNTED}
run = launcher.attach(dir="r")
begun = int(run.checkpoint.name.split("-")[1]) if run.checkpoint else 0
for step in range(begun, 9):
    run.log(step, loss=1.0)
    run.tick(step + 1)
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    if run.should_stop():
        with run.saving(step + 1) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "state.txt").write_text(str(step))
        print(run.checkpoint)
        {says}
        break
"""
    done = python(text, cwd=tmp_path)
    assert done.returncode == (75 if says else 0), done.stderr
    place = tmp_path / "r" / "checkpoints" / "step-00000004"
    assert done.stdout.splitlines()[-1] == str(place)
    assert (place / "deep" / "state.txt").read_text() == "3"
    assert record(tmp_path / "r")["state"] == "stopped"
    again = python(text, cwd=tmp_path)
    assert again.stdout.splitlines()[0] == "step 4: loss: 1"
