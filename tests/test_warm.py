"""What starts from a warm process is what a new Python would be; see `warm`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training import clean_environment, command, launcher
from warm import WARM

from launcher.around import AGENT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes start warm on Linux"),
    pytest.mark.warm,
    pytest.mark.timeout(3600),  # so it comes first: in a process that no other test has changed
]
# What it is, but for what differs from one Python to the next.
TELL = """
import ctypes, json, os, signal, sys, threading
streams = [sys.stdin, sys.stdout, sys.stderr]
told = {
    "argv": sys.argv, "file": __file__, "name": __name__, "path": sys.path, "cwd": os.getcwd(),
    "line": open("/proc/self/cmdline").read(), "env": dict(os.environ), "parent": os.getppid(),
    "group": os.getpgrp(), "session": os.getsid(0), "nice": os.nice(0), "mask": os.umask(0),
    "files": [one for one in os.listdir("/proc/self/fd") if int(one) < 10],
    "threads": threading.active_count(), "tasks": len(os.listdir("/proc/self/task")),
    "main": sys.modules["__main__"].__dict__ is globals(), "pytest": "pytest" in sys.modules,
    "streams": [(one.name, one.encoding, one.errors, one.line_buffering, one.write_through,
                 one.closed, one.isatty(), one.fileno()) for one in streams],
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())
                if number != signal.SIGTERM],  # coverage.py hears it
}
status = dict(line.split(":") for line in open("/proc/self/status"))
glibc = 1 << 31 | 1 << 32  # what it keeps to itself
told["caught"] = [int(status[name], 16) & ~glibc for name in ("SigIgn", "SigCgt")]
bound = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(bound))  # PR_GET_PDEATHSIG
told["bound"] = bound.value
warm = "torch" in sys.modules
import torch
told["computes"] = torch.get_num_threads()
print(json.dumps({"told": told, "warm": warm}))
print("to stderr", file=sys.stderr)
"""
ENDS = [
    "pass",
    "raise ValueError('no')",
    "sys.exit(7)",
    "sys.exit('no')",
    "raise KeyboardInterrupt",
]
ENDS += ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "os._exit(3)"]
ENDS += ["__import__('atexit').register(print, 'the last')", "print('half a line', end='')"]
ENDS += ["__import__('threading').Timer(0.2, print, ['later']).start()"]


@pytest.mark.parametrize("env", [{}, {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}])
def test_a_warm_start_is_like_a_cold_one(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    found: list[dict[str, Any]] = []
    for warm in (False, True):
        monkeypatch.setattr(WARM, "wanted", warm)
        done = command(sys.executable, "tell.py", "a b", "", cwd=tmp_path, env=env)
        assert done.stderr == "to stderr\n"
        found.append(json.loads(done.stdout))
        assert found[-1]["warm"] == warm
    assert found[0]["told"] == found[1]["told"]
    assert found[1]["told"]["parent"] == os.getpid()
    assert found[1]["told"]["env"].keys() >= (clean_environment() | env).keys()


@pytest.mark.parametrize("end", ENDS)
def test_a_warm_process_ends_like_a_cold_one(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "end.py").write_text(f"import os, signal, sys\n{end}\n")
    found = []
    for warm in (False, True):
        monkeypatch.setattr(WARM, "wanted", warm)
        done = command(sys.executable, "end.py", "word", cwd=tmp_path)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0] == found[1]


def test_what_a_warm_process_starts_is_its_own_child_and_warm_too(tmp_path: Path) -> None:
    lines = ["import os, subprocess, sys", "print(os.getpid(), flush=True)"]
    start = "subprocess.run([sys.executable, 'tell.py', 'x'], start_new_session=True, check=True)"
    (tmp_path / "start.py").write_text("\n".join([*lines, start]))
    (tmp_path / "tell.py").write_text(TELL)
    done = command(sys.executable, "start.py", "x", cwd=tmp_path)
    first, second = done.stdout.splitlines()
    told = json.loads(second)
    assert told["warm"]
    assert told["told"]["parent"] == int(first)
    assert told["told"]["session"] not in (os.getsid(0), int(first))


@pytest.mark.parametrize("name", ["HF_HOME", AGENT])
def test_it_starts_cold_where_imports_may_differ_and_as_a_script_of_the_launcher(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    done = command(sys.executable, "tell.py", "x", cwd=tmp_path, env={name: "1"})
    assert not json.loads(done.stdout)["warm"]


def test_a_script_of_the_launcher_s_starts_warm_where_it_may_as_it_does_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    found = []
    for scripts in (False, True):
        monkeypatch.setattr(WARM, "scripts", scripts)
        done = launcher("run", "tell.py", "--nproc=1", "--cpu", "--", "a b", "", cwd=tmp_path)
        [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found.append(json.loads(line))
        assert found[-1]["warm"] == scripts
        told = found[-1]["told"]
        assert told["group"] == told["session"] != os.getsid(0)
        for differs in ("parent", "group", "session", "signals"):  # Python knows of `caught` less
            told.pop(differs)
        told["env"] = sorted(told["env"])
    assert found[0]["told"] == found[1]["told"]
    assert found[1]["told"]["bound"] == signal.SIGKILL


def test_a_signal_ends_a_warm_process_as_it_does_others(tmp_path: Path) -> None:

    (tmp_path / "wait.py").write_text("import time\nprint('x', flush=True)\ntime.sleep(60)\n")
    words = [sys.executable, str(tmp_path / "wait.py"), "x"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "x\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    assert not Path(f"/proc/{process.pid}").exists()
