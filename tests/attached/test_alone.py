"""A script that nobody has launched makes its run by itself, in a folder that others may use."""

import sys
from pathlib import Path

import pytest
from scripted import python
from training import Run, command, launcher

pytestmark = pytest.mark.slow

PLAIN = """
import launcher
run = launcher.attach({options})
for step in run.steps(3):
    run.log(step, loss=1.0)
print(run.dir)
"""


def test_a_run_is_made_below_runs(tmp_path: Path) -> None:
    done = python(PLAIN.format(options=""), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [made] = (tmp_path / "runs").iterdir()
    assert made.name.startswith("train-")
    assert done.stdout.splitlines()[-1] == str(made)
    assert (made / "script.py").read_text() == (tmp_path / "train.py").read_text()
    assert Run(made).result["state"] == "completed"
    assert "completed" in launcher("runs", cwd=tmp_path).stdout


@pytest.mark.parametrize("options", ["", "dir='r'"])
def test_several_processes_have_to_be_told_which(tmp_path: Path, options: str) -> None:
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    text = f"import launcher\nprint(launcher.attach({options}).world_size)"
    done = python(text, cwd=tmp_path, env=env)
    if options:
        assert done.stdout == "2\n"
    else:
        assert "has no run directory for 2 processes" in done.stderr
        assert not (tmp_path / "runs").exists()


def test_other_files_of_the_folder_are_left_as_they_are(tmp_path: Path) -> None:
    others = ["notes.txt", "logs/mine.log", "checkpoints/step-3/model.pt", "checkpoints/last.pt"]
    for name in others:
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_text(name)
    text = PLAIN.format(options="print, print, dir='r', keep_last=1, checkpoint_every=1")
    for _ in range(2):
        assert python(text, cwd=tmp_path).returncode == 0
    for name in others:
        assert (tmp_path / "r" / name).read_text() == name


TAKEN = [
    *("config.json", "metrics.jsonl", "result.json", "script.py"),
    *("checkpoints/step-00000003/model.pt", "logs/rank-0.log"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_folder_with_somebody_s_file_of_such_a_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "r" / name).parent.mkdir(parents=True)
    (tmp_path / "r" / name).write_text("{}")
    done = python(PLAIN.format(options="dir='r'"), cwd=tmp_path)
    assert done.returncode == 1
    assert "RunDirError" in done.stderr
    assert [p.relative_to(tmp_path / "r").as_posix() for p in (tmp_path / "r").rglob("*.*")] == [
        name
    ]
    assert (tmp_path / "r" / name).read_text() == "{}"


def test_a_run_that_goes_on_elsewhere_is_refused(tmp_path: Path) -> None:
    text = """
    import subprocess, sys, launcher
    run = launcher.attach(dir="r")
    if len(sys.argv) == 1:
        print(subprocess.run([sys.executable, *sys.argv, "again"]).returncode)
    """
    done = python(text, cwd=tmp_path)
    assert done.stdout == "1\n"
    assert "is in use by process" in done.stderr
    assert not (tmp_path / "r" / "lock.json").exists()


def test_a_run_of_a_recipe_is_refused(tmp_path: Path) -> None:
    assert launcher("run", "digits", "steps=1", "--run-dir", "r", cwd=tmp_path).returncode == 0
    before = (tmp_path / "r" / "config.json").read_bytes()
    done = python(PLAIN.format(options="dir='r'"), cwd=tmp_path)
    assert "is not that of a script's run" in done.stderr
    assert (tmp_path / "r" / "config.json").read_bytes() == before


def test_an_interpreter_without_a_file_has_a_run_too(tmp_path: Path) -> None:
    done = command(sys.executable, "-c", PLAIN.format(options=""), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name[:7] for path in (tmp_path / "runs").iterdir()] == ["script-"]


def test_rows_are_mirrored_to_wandb(tmp_path: Path) -> None:
    done = python(PLAIN.format(options="dir='r'"), cwd=tmp_path, env={"WANDB_MODE": "offline"})
    assert "`launcher sync r` uploads it" in done.stderr  # in time or, on a busy machine, not
    assert len(list((tmp_path / "r" / "wandb").glob("offline-run-*"))) == 1
