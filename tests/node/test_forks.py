"""Workers that are forked: told their place, ended with their agent, like others to torchrun."""

import json
import sys
from pathlib import Path

import pytest
from training import PROJECT, Run, command, launcher

pytestmark = pytest.mark.warm

AGENT = """
import json, os, signal, subprocess, sys, time
from launcher.node.forks import Fork

def work():
    print("said by the fork", flush=True)
    if os.environ["DO"] == "sleep":
        time.sleep(60)
    seen = {"rank": os.environ["RANK"], "home": os.environ.get("HOME"), "session": os.getsid(0)}
    with open("seen.json", "w") as file:
        json.dump(seen | {"pid": os.getpid()}, file)
    return 7
"""


def agent(folder: Path, program: str) -> str:
    """What a process says that forks like the agent does."""
    (folder / "agent.py").write_text(AGENT + program)
    done = command(sys.executable, "agent.py", "word", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fork_gets_its_place_and_its_exit_code_is_known(tmp_path: Path) -> None:
    said = agent(
        tmp_path,
        """
open("out.txt", "w").close()
fork = Fork(work)
assert fork.poll() is None
fork.begin({"RANK": "3", "DO": "", "LAUNCHER_PARENT": "1"}, {1: "out.txt"})
print(fork.wait(30), fork.poll(), fork.pid)
""",
    )
    code, again, pid = map(int, said.split())
    assert (code, again) == (7, 7)
    seen = json.loads((tmp_path / "seen.json").read_text())
    # The environment is what was told and nothing else; a session of its own can be signalled.
    assert seen == {"rank": "3", "home": None, "session": pid, "pid": pid}
    assert (tmp_path / "out.txt").read_text() == "said by the fork\n"


def test_a_fork_that_gets_no_place_ends(tmp_path: Path) -> None:
    assert (
        agent(tmp_path, "fork = Fork(work); os.close(fork._writer); print(fork.wait(30))") == "0\n"
    )


def test_a_fork_that_is_killed_is_known_to_be(tmp_path: Path) -> None:
    said = agent(
        tmp_path,
        """
fork = Fork(work)
fork.begin({"RANK": "0", "DO": "sleep"}, {1: "/dev/null"})
try:
    fork.wait(0.2)
except subprocess.TimeoutExpired:
    os.killpg(fork.pid, signal.SIGTERM)
print(fork.wait(30))
""",
    )
    assert said == "-15\n"


@pytest.mark.slow
def test_forks_compute_with_several_threads_what_commands_compute(tmp_path: Path) -> None:
    """Pools of threads of the agent must not be in the way of those of its forks."""
    digits = PROJECT / "recipes" / "digits.py"
    for name, extra in (("forked", []), ("started", ["--", "--num_cpu_threads_per_process", "2"])):
        words = ["run", digits, "--nproc", "2", "epochs=2", "hidden=1024", "--run-dir", name]
        done = launcher(*words, *extra, cwd=tmp_path, env={"OMP_NUM_THREADS": "2"})
        assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "forked").weight_bytes == Run(tmp_path / "started").weight_bytes
