"""One writer: a living holder is respected, a dead one is not."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.errors import RunDirError
from launcher.run import lock
from launcher.run.directory import RunDir

HOLD = """
import sys, time
from pathlib import Path
from launcher.run import lock
from launcher.errors import RunDirError
from launcher.run.directory import RunDir
try:
    with lock.held(RunDir(Path(sys.argv[1]))):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except RunDirError as error:
    print("refused", flush=True)
"""


def write_lock(run: RunDir, *, host: str, pid: int, started: float, age_s: float = 0) -> None:
    run.lock.write_text(json.dumps({"host": host, "pid": pid, "started": started}))
    then = time.time() - age_s
    os.utime(run.lock, (then, then))


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with lock.held(run):
        assert lock.holder(run.lock) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RunDirError, match=f"process {os.getpid()} on"), lock.held(run):
            pass
    assert lock.holder(run.lock) is None
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path), "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunDirError), lock.held(RunDir(tmp_path)):
            pass
        process.kill()
        process.wait()
    with lock.held(RunDir(tmp_path)):
        assert (tmp_path / "lock.json").exists()


def test_a_pid_that_now_belongs_to_another_process_holds_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    started = psutil.Process().create_time() - 1000
    write_lock(run, host=socket.gethostname(), pid=os.getpid(), started=started)
    with lock.held(run):
        pass


def test_another_machine_holds_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_lock(run, host="elsewhere", pid=1, started=0, age_s=lock.STALE_AFTER_S / 2)
    with pytest.raises(RunDirError, match="process 1 on elsewhere"), lock.held(run):
        pass
    write_lock(run, host="elsewhere", pid=1, started=0, age_s=lock.STALE_AFTER_S * 2)
    with lock.held(run):
        pass


def test_a_holder_s_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    run = RunDir(tmp_path)
    with lock.held(run):
        os.utime(run.lock, (0, 0))
        deadline = time.monotonic() + 10
        while run.lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
def test_of_several_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    write_lock(RunDir(tmp_path), host=socket.gethostname(), pid=2**22 + 1, started=0)
    words = [sys.executable, "-c", HOLD, str(tmp_path), "3"]
    racers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert said == ["held", "refused", "refused", "refused"]


def test_a_holder_that_was_thought_dead_leaves_its_successor_s_lock(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with lock.held(run):
        write_lock(run, host="elsewhere", pid=1, started=0)
    assert json.loads(run.lock.read_text())["host"] == "elsewhere"


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path), "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, 9)
        deadline = time.monotonic() + 10
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with lock.held(RunDir(tmp_path)):  # nobody has waited for the process yet
            pass


@pytest.mark.parametrize("text", ["{}", '{"host": "elsewhere"}', "not JSON"])
def test_a_lock_that_says_nothing_holds_nobody_up(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock.json").write_text(text)
    assert lock.holder(tmp_path / "lock.json") is None
