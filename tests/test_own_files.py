"""Nothing of the user's is removed or overwritten, whatever it is called and whoever is asked.

Only what the very process has made goes again, and a folder that holds anything becomes no run.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from training import command, launcher

from launcher.cli.main import main
from launcher.errors import BadInput, LauncherError, RunDirError
from launcher.job import lifecycle
from launcher.run import checkpoint_files
from launcher.run.directory import RunDir
from launcher.slurm import snapshot, submit
from launcher.slurm.client import RefusedError
from launcher.slurm.points import Wishes

pytestmark = pytest.mark.warm

# Every name that a run directory has, as files of somebody who knows nothing of runs.
THEIRS = {
    "snapshot/old/data.txt": "precious",
    "report.html": "my own report",
    "logs/rank-results.csv": "mine",
    "logs/rank-0.log": "mine, too",
    "checkpoints/.step-notes": "notes",
    "lock.json": "{}",
    "model.safetensors": "weights",
    "snapshot.diff": "a diff",
    "slurm/job.json": "{}",
}
BAD = '''"""A recipe whose data are empty, in a file that happens to be called as that of a run."""
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from launcher import ArrayDataset, Recipe, load_digits, main

@dataclass(frozen=True)
class Mine(Recipe):
    """Mine."""
    writes: str = ""
    def train_data(self):
        for name in filter(None, self.writes.split(",")):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("theirs")
        return ArrayDataset(torch.zeros(0, 64), torch.zeros(0, dtype=torch.long))
    def test_data(self): return load_digits(train=False)
    def model(self): return nn.Linear(64, 10)
    def loss(self): return nn.CrossEntropyLoss()
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)

if __name__ == "__main__":
    main(Mine)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user works in."""
    (tmp_path / "recipe.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder: Path, files: Mapping[str, str] = THEIRS) -> dict[str, str]:
    """Put files into a folder; returns all that it holds."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return tree(folder)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(errors="replace")
        if path.is_file()
        else ""
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def said(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize(
    "words",
    [
        "run recipe.py --run-dir .",
        "run digits --run-dir .",
        "run digits --nnodes 2 --node-rank 1 --rdzv-endpoint localhost:9 --run-dir .",
        "submit digits --local --run-dir .",
    ],
)
@pytest.mark.parametrize("name", [None, *THEIRS])
def test_a_folder_that_holds_anything_becomes_no_run(
    folder: Path, words: str, name: str | None
) -> None:
    if name is not None:
        (folder / "recipe.py").rename(folder.parent / "recipe.py")
        words = words.replace("recipe.py", "../recipe.py")
    before = made(folder, THEIRS if name is None else {name: THEIRS[name]})
    done = said(*words.split())
    assert done.exit_code == 2
    assert "is not empty: there is " in done.stderr or "exists" in done.stderr
    assert tree(folder) == before


@pytest.mark.parametrize("nproc", [1, 3])
def test_a_script_makes_no_run_of_such_a_folder_either(folder: Path, nproc: int) -> None:
    before = made(folder)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    start = torchrun if nproc > 1 else []
    done = command(sys.executable, *start, "recipe.py", "--run-dir", ".", cwd=folder)
    assert done.returncode == (1 if nproc > 1 else 2)  # torchrun has one exit code
    assert done.stderr.count("is not empty: there is checkpoints, lock.json, logs, ...") == 1
    assert tree(folder) == before


@pytest.mark.parametrize("how", ["run", "script"])
def test_a_run_that_never_trained_leaves_what_it_did_not_make(folder: Path, how: str) -> None:
    (folder / "there").mkdir()
    theirs = [*THEIRS, "logs/node-results.json", "notes.txt"]
    theirs.remove("lock.json")  # the run's own, while it runs
    theirs.remove("logs/rank-0.log")
    start = [sys.executable, *(["-m", "launcher", "run"] if how == "run" else [])]
    for run_dir in ("new/deep/r", "there"):
        words = [*start, "recipe.py", "--run-dir", run_dir]
        assert command(*words, cwd=folder).returncode == 2
    assert tree(folder) == {"recipe.py": BAD, "there": ""}
    written = [f"{folder}/new/r/{name}" for name in theirs]
    done = command(
        *start, "recipe.py", f"writes={','.join(written)}", "--run-dir=new/r", cwd=folder
    )
    assert done.returncode == 2
    files = {name for name, text in tree(folder / "new" / "r").items() if text}
    assert files == set(theirs)


def test_a_run_that_goes_on_leaves_what_it_did_not_make(folder: Path) -> None:
    run = RunDir(folder / "r")
    run.create({"hyperparameters": {}}, "")
    ours = ["logs/rank-0.json", "logs/rank-12.mark", "logs/node-0-exits.json", "result.json"]
    theirs = ["logs/rank-best.json", "logs/rank-0.json.bak", "logs/node-plan-exits.json"]
    theirs += ["checkpoints/.step-notes", "checkpoints/.step-1-epoch-1.tmp.txt"]
    half = "checkpoints/.step-00000001-epoch-0000.tmp/model.safetensors"
    before = made(run.path, dict.fromkeys(theirs, "theirs"))
    made(run.path, dict.fromkeys([*ours, half], "{}"))
    lifecycle._forget_last_end(run)
    checkpoint_files.clean(run.checkpoints)
    assert tree(run.path) == before


@pytest.mark.parametrize("meanwhile", ["runs/mine.txt", "deep/mine.txt"])
def test_the_doctor_removes_no_folder_that_somebody_has_filled_meanwhile(
    folder: Path, meanwhile: str
) -> None:
    where = "runs" if meanwhile.startswith("runs") else "deep/er"

    def fill() -> None:
        deadline = time.monotonic() + 30
        while not (folder / where).is_dir() and time.monotonic() < deadline:
            time.sleep(0.001)
        (folder / meanwhile).write_text("mine")

    thread = threading.Thread(target=fill)
    thread.start()
    done = launcher("doctor", "--nproc", "1", "--cpu", "--run-dir", where, cwd=folder)
    thread.join()
    assert done.returncode == 0, done.stdout + done.stderr
    left = {name: text for name, text in tree(folder).items() if text}
    assert left == {"recipe.py": BAD, meanwhile: "mine"}
    assert not (folder / "deep" / "er").exists()


def test_of_two_submissions_with_one_folder_the_first_keeps_it(folder: Path) -> None:
    wishes = Wishes("recipe.py", run_dir=Path("runs/shared"), tracking="disabled")
    first, second = submit.plan(wishes), submit.plan(wishes)
    for plan in (first, second):  # both have looked before one of them makes it
        submit.check(plan, queue=False)
    submit.make(first)
    before = tree(folder)
    with pytest.raises(RunDirError, match="runs/shared` exists") as caught:
        submit.make(second)
    assert caught.value.hint
    assert tree(folder) == before


@pytest.mark.parametrize("grid", [(), ("seed=0,1",)])
@pytest.mark.parametrize(
    ("says", "stays"),
    [
        ("Batch job submission failed: Invalid account", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
    ],
)
def test_a_submission_is_undone_where_slurm_has_refused_it_for_certain(
    folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, stays: bool, grid: tuple[str, ...]
) -> None:
    tools = folder / "bin"
    made(folder, {"bin/sbatch": f"#!/bin/sh\necho 'sbatch: error: {says}' >&2; exit 1\n"})
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    plan = submit.plan(Wishes("recipe.py", run_dir=Path("r"), grid=grid, tracking="disabled"))
    job = submit.make(plan)
    made(folder / "r", {"mine.txt": "mine"})
    with pytest.raises(LauncherError, match="sbatch failed") as caught:
        submit.submit(plan, job)
    assert isinstance(caught.value, RefusedError) is not stays
    assert job.batch.exists() == stays
    assert (tree(folder / "r") == {"mine.txt": "mine"}) is not stays
    assert stays == bool(caught.value.hint)


@pytest.mark.parametrize("grid", [(), ("seed=0,1",)])
def test_a_submission_that_cannot_be_written_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, grid: tuple[str, ...]
) -> None:
    before = tree(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submit, "write_text", full)
    wishes = Wishes("recipe.py", run_dir=Path("new/r"), grid=grid, tracking="disabled")
    with pytest.raises(RunDirError, match="No space left on device"):
        submit.make(submit.plan(wishes))
    assert tree(folder) == before


@pytest.mark.parametrize("name", [".snapshot.{pid}.tmp/mine", "snapshot.diff", "snapshot/mine"])
def test_a_snapshot_is_taken_over_nothing(folder: Path, name: str) -> None:
    run = RunDir(folder / "r")
    before = made(run.path, {name.format(pid=os.getpid()): "mine"})
    with pytest.raises(BadInput):
        snapshot.take(run, folder / "recipe.py")
    assert tree(run.path) == before


@pytest.mark.parametrize("run_dirs", [["r"], ["r", "s"]])
def test_a_page_replaces_pages_and_nothing_else(folder: Path, run_dirs: list[str]) -> None:
    for name in run_dirs:
        RunDir(folder / name).create({"recipe": "r", "hyperparameters": {}}, "")
    page = folder / ("r" if len(run_dirs) == 1 else ".") / "report.html"
    page.write_text("<html>my own</html>")
    for output in ([], ["--output", "recipe.py"], ["--output", "link"], ["--output", "/dev/null"]):
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to("recipe.py")
        done = said("report", *run_dirs, *output)
        assert done.exit_code == 2
        assert "is no page of `launcher report`" in done.stderr
    assert page.read_text() == "<html>my own</html>"
    assert (folder / "recipe.py").read_text() == BAD
    assert Path("/dev/null").is_char_device()
    page.unlink()
    for _ in range(2):
        assert said("report", *run_dirs).exit_code == 0


def test_a_recipe_is_copied_over_nothing(folder: Path) -> None:
    (folder / "link.py").symlink_to("nowhere.py")
    for name in ("recipe.py", "link.py"):
        done = said("recipes", "copy", "digits", name)
        assert done.exit_code == 2
        assert "exists" in done.stderr
    assert tree(folder) == {"recipe.py": BAD, "link.py": ""}
    assert said("recipes", "copy", "digits", "recipe.py/x/my.py").exit_code == 2
    assert said("recipes", "copy", "digits", "new/my.py").exit_code == 0
