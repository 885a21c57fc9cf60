"""How scripts end: asked to stop, killed, hanging, started again; and nobody is left behind."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from test_scripts import log_of, ran, result_of, written
from training import family, guards_of, launcher, started, survivors, wait_for, wait_for_words

from launcher.run.listing import summary

pytestmark = [pytest.mark.slow, pytest.mark.warm]

# Writes down that it is there, and which signals it hears.
WAITING = """
import os, signal, sys, time
rank = os.environ.get("RANK", "0")
def hear(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    {then}
for name in ("TERM", "USR1"):
    signal.signal(getattr(signal, "SIG" + name), hear)
print("ready", flush=True)
for _ in range(600):
    time.sleep(0.1)
"""


def ready(folder: Path, ranks: int) -> bool:
    logs = [folder / "r" / "logs" / f"rank-{rank}.log" for rank in range(ranks)]
    return all(log.exists() and "ready" in log.read_text() for log in logs)


def ports(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


# What a script does when it hears, options, and the signal that it hears.
STOPS: list[tuple[str, list[str], str]] = [
    ("sys.exit(0)", [], "SIGTERM"),
    ("sys.exit(3)", ["--nproc", "2"], "SIGTERM"),
    ("raise KeyboardInterrupt", ["--stop-signal", "USR1"], "SIGUSR1"),
    ("pass", ["--grace", "1", "--nproc", "2"], "SIGTERM"),
    ("time.sleep(6); sys.exit(0) if rank == '1' else os._exit(1)", ["--nproc", "2"], "SIGTERM"),
]


@pytest.mark.cold
@pytest.mark.parametrize(("then", "words", "heard"), STOPS, ids=[row[0] for row in STOPS])
def test_whoever_is_asked_to_stop_has_stopped(
    then: str, words: list[str], heard: str, tmp_path: Path
) -> None:
    written(tmp_path, WAITING.format(then=then))
    ranks = 2 if "--nproc" in words else 1
    with started("run", "train.py", "--run-dir", "r", *words, cwd=tmp_path) as process:
        wait_for(lambda: ready(tmp_path, ranks))
        everybody = family(process)
        assert ports(everybody) <= {"127.0.0.1"}
        process.send_signal(signal.SIGTERM if ranks == 1 else signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert result_of(tmp_path / "r")["state"] == summary(tmp_path / "r").state == "stopped"
    for rank in range(ranks):
        assert log_of(tmp_path / "r", rank).count("heard") == 1  # once
        assert f"heard {heard}" in log_of(tmp_path / "r", rank)
    assert not survivors(everybody)


@pytest.mark.cold
def test_a_second_request_ends_everything_at_once(tmp_path: Path) -> None:
    written(tmp_path, WAITING.format(then="pass"))
    with started("run", "train.py", "--run-dir", "r", "--nproc=2", cwd=tmp_path) as process:
        wait_for(lambda: ready(tmp_path, 2))
        everybody = family(process)
        process.send_signal(signal.SIGINT)
        wait_for_words(process, "again stops at once")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert not survivors(everybody)


@pytest.mark.cold
def test_a_request_that_is_heard_twice_at_once_is_one(tmp_path: Path) -> None:
    """As `timeout` has it, which tells the launcher, and then the group that it is in."""
    written(tmp_path, WAITING.format(then="sys.exit(0)"))
    with started("run", "train.py", "--run-dir", "r", cwd=tmp_path) as process:
        wait_for(lambda: ready(tmp_path, 1))
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.count("again stops at once") == 1


CHILDREN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(999)"])
if (child := os.fork()) == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(999)
    os._exit(0)
os.waitpid(child, 0)
print("ready", flush=True)
time.sleep(999)
"""


@pytest.mark.cold
@pytest.mark.parametrize("victim", ["rank 1", "agent", "guard", "guard in it", "everybody"])
def test_nothing_is_left_of_whoever_is_killed(victim: str, tmp_path: Path) -> None:
    written(tmp_path, CHILDREN)
    with started("run", "train.py", "--run-dir", "r", "--nproc", "2", cwd=tmp_path) as process:
        wait_for(lambda: ready(tmp_path, 2))
        wait_for(lambda: len(family(process)) == 9)  # two guards, agent, three of each rank
        everybody = family(process)
        doomed = [psutil.Process(process.pid), *everybody]
        if victim != "everybody":
            agents = [
                p for p in everybody if p.cmdline()[2:4] == ["launcher.node.start", "programs"]
            ]
            ranks = sorted(agents[0].children(), key=psutil.Process.create_time)
            doomed = agents if victim == "agent" else ranks[-1:]
            if "guard" in victim:
                doomed = guards_of(process)[victim == "guard in it" :][:1]
        for one in doomed:
            one.kill()
        _, errors = process.communicate(timeout=60)
    assert not survivors(everybody)
    if victim == "everybody":
        assert summary(tmp_path / "r").state == "killed"
        return
    assert process.returncode == 1
    assert "killed by SIGKILL" in errors
    assert summary(tmp_path / "r").state == "failed"


# Fails at each start, having got on as its first argument says.
COUNTING = """
import os, pathlib, sys
print("start", os.environ["LAUNCHER_START"], *sys.argv[1:], flush=True)
start = int(os.environ["LAUNCHER_START"])
if start <= {gets_on}:
    pathlib.Path("saved").mkdir(exist_ok=True)
    pathlib.Path("saved/state").write_text("x" * start)
if start < {good}:
    {how}
"""
RAISES = "raise ValueError(f'at {start}')"
CHANGES = "raise [ValueError, KeyError, OSError][start % 3]"
# How far it gets on, the start that is good, how others end, options, starts, the code.
RESTARTS: list[tuple[int, int, str, list[str], int, int]] = [
    (0, 2, RAISES, [], 1, 1),
    (0, 2, RAISES, ["--max-restarts=3"], 2, 0),
    (0, 9, RAISES, ["--max-restarts=9"], 2, 1),  # the same again, at once
    (0, 4, CHANGES, ["--max-restarts=9"], 4, 0),
    (3, 9, RAISES, ["--max-restarts=9", "--progress=saved"], 4, 1),
    (9, 5, RAISES, ["--max-restarts=9", "--progress=saved/state"], 5, 0),
    (9, 9, RAISES, ["--max-restarts=2", "--progress=saved"], 3, 1),
    (0, 4, "sys.exit(75)", ["--max-restarts=9"], 4, 0),
    (0, 9, "sys.exit(75)", ["--max-restarts=2"], 3, 75),
]


@pytest.mark.parametrize(
    ("gets_on", "good", "how", "words", "starts", "code"), RESTARTS, ids=[str(r) for r in RESTARTS]
)
def test_a_script_is_started_again_as_long_as_it_gets_on(
    gets_on: int, good: int, how: str, words: list[str], starts: int, code: int, tmp_path: Path
) -> None:
    done = ran(tmp_path, COUNTING.format(gets_on=gets_on, good=good, how=how), *words)
    assert done.returncode == code, done.stderr
    lines = [line for line in log_of(tmp_path / "r").splitlines() if line.startswith("start ")]
    assert lines == [f"start {start + 1}" for start in range(starts)]
    result = result_of(tmp_path / "r")
    assert result["starts"] == starts
    assert result["state"] == {0: "completed", 1: "failed", 75: "stopped"}[code]


def test_words_are_added_at_later_starts_once_there_is_something_to_go_on_from(
    tmp_path: Path,
) -> None:
    text = COUNTING.replace("start <= {gets_on}", "start == 2").format(good=3, how=CHANGES)
    words = ["--max-restarts=3", "--on-resume", "--from 'the last'"]
    ran(tmp_path, text, *words, "--", "--lr", "1")
    with_all = "start 1 --lr 1\nstart 2 --lr 1 --from the last\nstart 3 --lr 1 --from the last\n"
    kept = [line for line in log_of(tmp_path / "r").splitlines() if line.startswith("start")]
    assert "\n".join(kept) + "\n" == with_all
    words += ["--progress=saved", "--run-dir", "s"]
    for path in (tmp_path / "saved").iterdir():
        path.unlink()
    done = launcher("run", "train.py", *words, "--", "--lr", "1", cwd=tmp_path)
    kept = [line for line in log_of(tmp_path / "s").splitlines() if line.startswith("start")]
    assert kept == ["start 1 --lr 1", "start 2 --lr 1", "start 3 --lr 1 --from the last"], done


def test_resume_starts_the_same_script_where_it_was_with_the_same_words(tmp_path: Path) -> None:
    text = COUNTING.format(gets_on=0, good=3, how=RAISES) + "print(os.getcwd())\n"
    (tmp_path / "elsewhere").mkdir()
    done = ran(tmp_path, text, "--on-resume=--again", "--", "--lr", "1")
    assert done.returncode == 1
    assert "launcher resume" not in done.stdout
    again = launcher("resume", "../r", cwd=tmp_path / "elsewhere")
    assert again.returncode == 1
    written(tmp_path, text + "print('changed')\n")
    refused = launcher("resume", "../r", cwd=tmp_path / "elsewhere")
    assert refused.returncode == 2
    assert "train.py` has changed since the run began" in refused.stderr
    assert result_of(tmp_path / "r")["starts"] == 2
    words = launcher("resume", "../r", "lr=3", "--allow-changes", cwd=tmp_path)
    assert (words.returncode, "with the arguments it had" in words.stderr) == (2, False)
    done = launcher("resume", "../r", "--allow-changes", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"start 3 --lr 1 --again\n{tmp_path}\nchanged\n"
    assert result_of(tmp_path / "r")["starts"] == 3
    assert len(json.loads((tmp_path / "r/config.json").read_text())["resumed"]) == 2
    done = launcher("resume", "r", "--allow-changes", cwd=tmp_path)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "completed")


SILENT = """
import pathlib, sys, time
def waits_for_ever():
    time.sleep(999)
for n in range({signs}):
    {sign}
    time.sleep(0.4)
waits_for_ever()
"""


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ("print(n, flush=True)", []),
        ("pathlib.Path('saved').write_text('x' * n)", ["--progress=saved"]),
    ],
    ids=str,
)
def test_a_script_that_says_nothing_any_more_is_ended_with_its_stacks(
    sign: str, words: list[str], tmp_path: Path
) -> None:
    began = time.monotonic()
    text = SILENT.format(signs=6, sign=sign)
    done = ran(tmp_path, text, "--hang-timeout=5", "--nproc=2", *words)
    assert done.returncode == 1
    assert time.monotonic() - began > 6 * 0.4 + 5
    assert "nothing new for 5 s" in done.stderr
    for rank in range(2):
        assert "in waits_for_ever" in log_of(tmp_path / "r", rank)
    assert not list(tmp_path.glob("core*"))
