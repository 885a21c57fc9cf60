"""`--json`: one object at the end, whatever the end is, and nothing else on stdout."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from training import RECIPES, Run, launcher, started, wait_for

from launcher.cli.main import main

pytestmark = pytest.mark.warm

TROUBLE = RECIPES / "trouble.py"


def object_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The object that a command printed, which says how it ended."""
    told = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert told["exit_code"] == done.returncode
    return dict(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one epoch, `r`, whose object is in `told.json`."""
    path = tmp_path_factory.mktemp("answers")
    words = ("run", "digits", "epochs=1", "--nproc", "2", "--run-dir", "r", "--json")
    done = launcher(*words, cwd=path)
    assert "Test Error: Accuracy" in done.stderr
    (path / "told.json").write_text(json.dumps(object_of(done)))
    return path


@pytest.mark.slow
def test_a_run_tells_where_it_is_and_what_its_result_says(folder: Path) -> None:
    told = json.loads((folder / "told.json").read_text())
    good = {"exit_code": 0, "error": None, "hint": None, "run_dir": str(folder / "r")}
    assert told == Run(folder / "r").result | good


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("resume r", {"state": "completed", "epoch": 1, "exit_code": 0}),
        ("resume r batch_size=32", {"state": "failed", "exit_code": 2}),
        ("test r", {"state": "completed", "test_samples": 360, "exit_code": 0}),
        ("test r --checkpoint 7", {"state": "failed", "exit_code": 2}),
        ("debug digits --steps 1", {"state": "completed", "step": 1, "error": None}),
        (f"debug {TROUBLE} what=raise at_step=1", {"state": "failed", "exit_code": 1}),
        (f"run {TROUBLE} what=raise at_step=1 --run-dir bad", {"state": "failed", "exit_code": 1}),
        ("submit digits epochs=1 --local --no-snapshot --run-dir j", {"state": "completed"}),
        ("submit digits --dry-run --run-dir k", {"nproc": 1, "exit_code": 0}),
        ("doctor --nproc 1", {"ok": True, "exit_code": 0}),
    ],
)
def test_a_command_prints_one_object(folder: Path, words: str, expected: dict[str, Any]) -> None:
    told = object_of(launcher(*words.split(), "--json", cwd=folder))
    assert expected.items() <= told.items()
    if told["exit_code"] and "run_dir" in told:
        assert told["error"] == Run(Path(told["run_dir"])).result["error"]
        assert "the third wheel came off" in told["error"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run digits epochs=none --json", "`epochs` must be int, not `none`"),
        ("run nowhere.py --json", "there is no recipe `nowhere.py`"),
        ("run digits --nproc 0 --json", "Invalid value for '--nproc': 0 is not in the range x>=1."),
        ("run digits --lr 1 --json", "there is no option --lr"),
        (
            "resume nowhere --json",
            "Directory 'nowhere' does not exist",
        ),
        ("debug --json", "Missing argument 'RECIPE|RUN_DIR'"),
        ("submit digits --nodes two --json", "--nodes two is not one number"),
        ("doctor --nodes 2 --json", "--nodes is for --slurm"),
    ],
)
def test_what_is_refused_is_told_in_the_object_too(
    words: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words.split())
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.exit_code == 2
    assert told["state"] == "failed"
    assert error in told["error"]
    assert error in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_follows_two_dashes_asks_for_nothing() -> None:
    done = CliRunner().invoke(main, ["run", "nowhere.py", "--", "--json"])
    assert done.stdout == ""


@pytest.mark.slow
def test_a_run_that_is_stopped_says_that_it_was(tmp_path: Path) -> None:
    words = ("run", "digits", "epochs=2000", "--run-dir", "r", "--json")
    with started(*words, cwd=tmp_path) as process:
        wait_for(lambda: bool(Run(tmp_path / "r").rows))
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    told = json.loads(said)
    assert (told["state"], told["exit_code"], process.returncode) == ("stopped", 75, 75)
    assert told["step"] > 0
    assert told["hint"] == "launcher resume r"


def test_without_json_nothing_changes_streams() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "run", "nowhere.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 2)
