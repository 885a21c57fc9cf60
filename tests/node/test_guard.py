"""Nothing outlives a run, however it was started and however the run ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from training import (
    RECIPES,
    clean_environment,
    command,
    guards_of,
    launcher,
    started,
    wait_for,
    wait_for_words,
)

from launcher.processes import PARENT

CHILDREN = RECIPES / "leaves_children.py"
GUARD = [sys.executable, "-m", "launcher.node.guard"]


def guarded(*line: str, **more: str) -> "subprocess.CompletedProcess[str]":
    env = clean_environment() | {PARENT: str(os.getpid())} | more
    words = [*GUARD, sys.executable, "-c", *line]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 7])
def test_a_guard_ends_with_the_code_of_its_command(code: int) -> None:
    assert guarded(f"import sys; sys.exit({code})").returncode == code


def test_a_guard_that_takes_long_to_end_ends_as_its_command_all_the_same(tmp_path: Path) -> None:
    """As on a busy machine: when Python has taken its handlers away, signals are deadly."""
    slow = "import sys, time\nclass Slow:\n    def __del__(self, wait=time.sleep): wait(1.3)\n"
    (tmp_path / "sitecustomize.py").write_text(slow + "sys.slow = Slow()\n")
    assert guarded("import sys; sys.exit(7)", PYTHONPATH=str(tmp_path)).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_guard_dies_of_the_signal_that_its_command_died_of(number: signal.Signals) -> None:
    assert guarded(f"import os; os.kill(os.getpid(), {int(number)})").returncode == -number


def test_a_guard_names_what_it_ends() -> None:
    done = guarded("import subprocess; subprocess.Popen(['sleep', '998'], start_new_session=True)")
    assert "WARNING: the run left process" in done.stdout
    assert "which is ended now: sleep 998" in done.stdout


def test_a_guard_waits_a_moment_for_what_ends_by_itself() -> None:
    assert guarded("import subprocess; subprocess.Popen(['sleep', '0.3'])").stdout == ""


def left(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if psutil.pid_exists(int(path.name))]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--nproc", "1"], ["--nproc", "2"], ["fails=true"]])
def test_no_child_of_a_recipe_outlives_its_run(tmp_path: Path, words: list[str]) -> None:
    done = launcher("run", CHILDREN, f"folder={tmp_path}/pids", "epochs=2", *words, cwd=tmp_path)
    assert (done.returncode == 0) == ("fails=true" not in words), done.stderr
    assert len(list((tmp_path / "pids").iterdir())) == 3 * (2 if "2" in words else 1)
    assert not left(tmp_path / "pids")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "agent", "second request"])
def test_no_child_of_a_recipe_outlives_a_run_that_is_killed(tmp_path: Path, victim: str) -> None:
    words = ["run", CHILDREN, f"folder={tmp_path}/pids", "step_s=100", "--nproc", "2"]
    with started(*words, cwd=tmp_path) as process:
        pids = tmp_path / "pids"
        # The other rank has its turn after this one.
        wait_for(lambda: pids.exists() and len(left(pids)) == 3, timeout_s=150)
        guard, inner = guards_of(process)
        if victim == "launcher":
            process.kill()
        elif victim == "agent":
            inner.children()[0].kill()
        else:
            process.send_signal(signal.SIGINT)
            wait_for_words(process, "again stops at once")
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        wait_for(lambda: not left(tmp_path / "pids") and not guard.is_running(), timeout_s=15)


@pytest.mark.slow
def test_no_child_of_a_recipe_outlives_it_as_a_program(tmp_path: Path) -> None:
    done = command(sys.executable, CHILDREN, f"folder={tmp_path}/pids", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "pids").iterdir())) == 3
    assert not left(tmp_path / "pids")
