"""`launcher debug RUN_DIR --step N`: a step made again, to the last bit, and what refuses to be."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from training import RECIPES, Run, clean_environment, launcher

from launcher.cli.main import main
from launcher.errors import BadInput
from launcher.launch.replay import plan, sessions_of
from launcher.run.directory import RunDir

pytestmark = pytest.mark.warm

CURVE, TROUBLE = RECIPES / "curve.py", RECIPES / "trouble.py"
NOISY = ("dropout=0.2", "augment=true", "micro_batch_size=2")
SHORT = ("samples=61", "batch_size=10", "test_samples=11", "epochs=2", "log_every=1")


SAYS = "return f'image {index} of {len(self)}'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by one process with a data worker, and by three, gone on with by two."""
    folder = tmp_path_factory.mktemp("replay")
    source = (RECIPES / "sampled.py").read_text()
    inner = "        image = self.images[index] + "
    assert inner in source
    bad = f"        assert index != BAD, 'no label'\n{inner}"
    length = "    def __len__(self)"
    source = source.replace(length, f"    def describe(self, index):\n        {SAYS}\n\n{length}")
    (folder / "bad.py").write_text("BAD = 30\n" + source.replace(inner, bad))
    words = ["num_workers=1", "log_every=1", "--run-dir", "one"]
    for command in (
        ["run", RECIPES / "sampled.py", *words],
        ["run", CURVE, *NOISY, *SHORT, "--nproc", "3", "--run-dir", "more"],
        ["resume", "more", "--nproc", "2", "epochs=3", "--allow-changes"],
    ):
        done = launcher(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def everything(run: Path) -> dict[str, tuple[int, int]]:
    """Each file of a run: when it was changed, and its size."""
    found = ((path, path.stat()) for path in [run, *run.rglob("*")])
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in found}


def row_after(run: Path, step: int) -> Mapping[str, Any]:
    """What the run reported after a step."""
    return next(r for r in Run(run).rows if (r["split"], r["step"]) == ("train", step + 1))


# By one from the start and from a checkpoint; by three from the start; by two, after the resume.
@pytest.mark.parametrize(
    ("name", "step", "processes", "start"),
    [
        ("one", 3, "1 process", "the start"),
        ("one", 9, "1 process", "checkpoint step-00000005-epoch-0001"),
        ("more", 5, "3 processes", "the start"),
        ("more", 15, "2 processes", "checkpoint step-00000014-epoch-0002"),
    ],
)
def test_a_step_is_made_again_to_the_last_bit(
    folder: Path, name: str, step: int, processes: str, start: str
) -> None:
    before = everything(folder / name)
    done = launcher("debug", name, "--step", step, "--rows", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert everything(folder / name) == before
    assert f"step {step}, from {start}, by {processes}" in done.stderr
    assert "within rounding" not in done.stderr
    assert "to the last bit as in metrics.jsonl" in done.stderr
    told, row = json.loads(done.stdout), row_after(folder / name, step)
    assert (told["step"], told["loss"]) == (step, row["loss"])
    assert told["gradient_norm"] == row["gradient_norm"]
    losses = [one["loss"] for one in told["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert len({one["index"] for one in told["rows"]}) == row["samples"]
    assert f"{told['rows'][0]['index']:>8}  loss {losses[0]:.9f}" in done.stderr
    assert {name: told["report"][name] for name in ("loss", "gradient_norm", "accuracy")} == {
        name: row[name] for name in ("loss", "gradient_norm", "accuracy")
    }


def test_another_number_of_processes_is_within_rounding_and_says_so(folder: Path) -> None:
    done = launcher("debug", "one", "--step", 9, "--nproc", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "within rounding: the run had 1 process" in done.stdout
    loss = float(done.stdout.partition("step 9: loss ")[2].split(",")[0])
    assert loss == pytest.approx(row_after(folder / "one", 9)["loss"], rel=1e-5)


def test_a_bad_sample_is_met_again_in_the_step_that_the_hint_names(folder: Path) -> None:
    done = launcher("run", "bad.py", "num_workers=1", "batch_size=7", "--run-dir", "b", cwd=folder)
    assert done.returncode == 1
    assert "hint: `launcher debug b --step 1` makes it again, with sample 30" in done.stderr
    done = launcher("debug", "b", "--step", 1, cwd=folder)
    assert done.returncode == 1
    assert "error: step 1 failed: sample 30 of `train_data` could not be loaded" in done.stderr
    assert "in __getitem__" in done.stderr
    done = launcher("debug", "b", "--step", 0, "--rows", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert all(row["describe"] == f"image {row['index']} of 47" for row in told["rows"])
    # Nothing differs in eval mode here, so they do add up.
    assert sum(row["loss"] for row in told["rows"]) / 7 == pytest.approx(told["loss"], rel=1e-6)


def test_a_nan_is_met_again_in_the_step_that_the_hint_names(folder: Path) -> None:
    words = ["what=nan", "batch_size=8", "log_every=3", "--nproc", "2", "--run-dir", "n"]
    done = launcher("run", TROUBLE, *words, cwd=folder)
    assert done.returncode == 1
    assert "hint: `launcher debug n --step 5` makes it again" in done.stderr
    done = launcher("debug", "n", "--step", 5, cwd=folder)
    assert done.returncode == 1
    assert "error: step 5 failed: " in done.stderr
    assert "returned nan values in its 0th output" in done.stderr  # anomaly detection
    assert launcher("debug", "n", "--step", 4, cwd=folder).returncode == 0


def at_a_terminal(folder: Path, *words: object, answers: str) -> str:
    """What `launcher …` says at a terminal where somebody types these answers."""
    terminal, its_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, words)],
        cwd=folder,
        env=clean_environment(),
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        start_new_session=True,
    )
    os.close(its_side)
    os.write(terminal, answers.encode())
    said = b""
    while True:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # nobody is there any more
            break
        if not more:
            break
        said += more
    os.close(terminal)
    assert process.wait(60) == 0, said.decode()
    return said.decode()


def test_the_debugger_stops_before_the_step(folder: Path) -> None:
    answers = "p 'the first', len(batch[0]), len(batch[1])\nc\n"
    said = at_a_terminal(folder, "debug", "one", "--step", "9", answers=answers)
    assert "before step 9" in said
    assert "('the first', 7, 7)" in said
    assert "step 9: loss " in said
    assert "to the last bit as in metrics.jsonl" in said


def test_one_of_several_processes_has_the_terminal_and_may_leave(folder: Path) -> None:
    source = (RECIPES / "sampled.py").read_text()
    step = """
    def train_step(self, model, batch, loss_fn):
        breakpoint()
        return super().train_step(model, batch, loss_fn)

    def loss("""
    (folder / "stops.py").write_text(source.replace("\n    def loss(", step, 1))
    env = {"PYTHONBREAKPOINT": "0"}  # while it trains
    words = ["stops.py", "--nproc", "2", "epochs=1", "--run-dir", "s"]
    done = launcher("run", *words, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    before = everything(folder / "s")
    words = ["debug", "s", "--step", "2", "--rank", "1"]
    said = at_a_terminal(folder, *words, answers="p 'mine', len(batch[0])\nq\n")
    assert "('mine', 5)" in said
    assert "rank 0: breakpoint() at stops.py:" in said
    assert said.count("is passed over") == 1
    assert "left the debugger; nothing was written" in said
    assert everything(folder / "s") == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["one"], "`one` is a run: which step of it?"),
        (["one", "--step", "10"], "the last step of the run is 9"),
        (["one", "--step", "3", "--rank", "1"], "--rank 1 is not one of 0 to 0"),
        (["one", "--step", "3", "epochs=7"], "KEY=VALUE is for a recipe, and `one` is a run"),
        (["one", "--step", "3", "--steps", "2"], "--steps is for a recipe"),
        (["one/logs", "--step", "3"], "holds no run"),
        (["digits", "--step", "3"], "--step is for a run, and `digits` is none"),
        (["digits", "--rank", "0"], "--rank is for a run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, ["debug", *words])
    assert done.exit_code == 2
    assert f"{why}\n" in f"{done.stderr}\n".replace("error: ", "") or why in done.stderr


def test_each_session_is_noted_with_what_it_went_on_with(folder: Path) -> None:
    first, second = sessions_of(RunDir(folder / "more").read_config())
    assert (first.begins, first.world_size, first.hyperparameters["epochs"]) == (0, 3, 2)
    assert (second.begins, second.world_size, second.hyperparameters["epochs"]) == (14, 2, 3)
    assert first.threads
    assert second.torch == first.torch


def test_without_a_checkpoint_of_its_session_a_step_is_retraced_or_refused(
    folder: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(folder / "more", run.path)
    for path in run.checkpoints.glob("step-*"):
        if int(path.name.split("-")[1]) >= 14:
            (path / "manifest.json").write_text("{}")  # broken, and passed over
    with pytest.raises(BadInput, match="its session began at step 14 with other"):
        plan(run, 15, None)
    told = run.read_config()
    told["first_session"]["hyperparameters"]["epochs"] = 3
    run.write_config(told)
    found = plan(run, 15, None)
    assert found.start
    assert found.start.step == 7
    assert [why for why in found.rounding if "retraced" in why]
    assert plan(run, 13, None).rounding == []


def test_a_run_that_an_older_launcher_has_resumed_says_so(folder: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(folder / "more", run.path)
    told = run.read_config()
    del told["first_session"]
    run.write_config(told)
    with pytest.raises(BadInput, match="was resumed by an older launcher"):
        plan(run, 3, None)
