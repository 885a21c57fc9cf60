"""A job's scripts on this machine: how they are stopped, and that nothing of them stays."""

import signal
import subprocess
from pathlib import Path

import pytest
from training import Run, family, launcher, started, survivors, wait_for

from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder

pytestmark = pytest.mark.slow
WORDS = ["digits", "epochs=5000", "--local", "--no-checks", "--no-snapshot", "--run-dir", "r"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_one_for_the_run_and_ends_the_job(
    tmp_path: Path, number: signal.Signals
) -> None:
    with started("submit", *WORDS, "--json", cwd=tmp_path) as process:
        run = begun(tmp_path, process)
        everybody = family(process)
        process.send_signal(number)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert '"state": "stopped"' in said
    assert "go on: launcher resume r" in errors
    assert not survivors(everybody)
    if number is signal.SIGTERM:
        newest = max((tmp_path / "r" / "checkpoints").glob("step-*"))
        assert run.result["step"] == int(newest.name.split("-")[1])
        steps = run.result["step"] + 3
        assert launcher("resume", "r", f"steps={steps}", cwd=tmp_path).returncode == 0
        assert run.result["step"] == steps


def test_scripts_end_with_the_process_that_runs_them(tmp_path: Path) -> None:
    with started("submit", *WORDS, cwd=tmp_path) as process:
        run = begun(tmp_path, process)
        everybody = family(process)
        process.send_signal(signal.SIGKILL)
        assert not survivors(everybody)
    assert run.result["state"] == "stopped"


AGAIN = """\
import os, pathlib, sys
start = os.environ["LAUNCHER_START"]
pathlib.Path("seen", start + os.environ["NODE_RANK"]).touch()
sys.exit(start == "1")
"""


def test_what_fails_starts_again_within_the_same_script(tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(AGAIN)
    (tmp_path / "seen").mkdir()
    words = ["--nodes=2", "--local", "--no-checks", "--no-snapshot", "--run-dir", "r"]
    done = launcher("submit", "again.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    attempts = SlurmFolder.of(RunDir(tmp_path / "r")).attempts()
    found = [(one.start, one.restart, one.verdict) for one in attempts]
    assert found == [(1, 0, "failed"), (2, 0, "completed")]
    assert {path.name for path in (tmp_path / "seen").iterdir()} >= {"20", "21"}


def begun(folder: Path, process: "subprocess.Popen[str]") -> Run:
    """The run, once it trains."""
    run = Run(folder / "r")
    wait_for(lambda: bool(run.rows) or process.poll() is not None, timeout_s=120)
    return run
