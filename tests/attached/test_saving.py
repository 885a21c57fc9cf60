"""Checkpoints of a script: whole or not at all, verified, and the rule for saves that fail."""

import sys
from pathlib import Path

import pytest
from scripted import counting, python, record, steps_saved
from training import Run, command

pytestmark = pytest.mark.slow

LOOP = """
import os, sys, launcher
"""


def spoil_a_file(checkpoint: Path) -> None:
    path = checkpoint / "state.txt"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def spoil_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text().replace("state", "stale"))


@pytest.mark.parametrize("spoil", [spoil_a_file, spoil_the_manifest])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, spoil: object
) -> None:
    counting("pass", 4, tmp_path)
    counting("run.log(step, loss=1.0)", 8, tmp_path)
    assert callable(spoil)
    spoil(tmp_path / "r" / "checkpoints" / "step-00000008")
    (tmp_path / "r" / "checkpoints" / ".step-00000009.tmp").mkdir()
    done = counting("run.log(step, loss=2.0)", 9, tmp_path)
    assert "checkpoint step-00000008 is not valid" in done.stderr
    assert "continuing from step 4" in done.stdout
    assert [row["loss"] for row in Run(tmp_path / "r").rows] == [2.0] * 5
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))


FAILING = f"""{LOOP}
failed = []
def save(folder):
    (folder / "half").write_text("x")
    if run.checkpoint is None and len(failed) < int(sys.argv[1]):
        failed.append(1)
        raise OSError("no disk")
run = launcher.attach(save, print, dir="r", checkpoint_every=2)
for step in run.steps(9):
    pass
"""


def test_a_save_that_fails_is_a_warning_and_three_in_a_row_the_end(tmp_path: Path) -> None:
    done = python(FAILING, 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING: checkpoint step-0000000") == 2
    assert steps_saved(tmp_path / "r") == [6, 8, 9]
    (tmp_path / "other").mkdir()
    done = python(FAILING, 9, cwd=tmp_path / "other")
    assert done.returncode == 1
    assert "TrainingFailed: 3 checkpoints in a row could not be written: no disk" in done.stderr
    assert steps_saved(tmp_path / "other" / "r") == []
    assert record(tmp_path / "other" / "r")["state"] == "failed"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("launcher.attach(save=print)", "needs both `save` and `load`"),
        ("launcher.attach(load=print)", "needs both `save` and `load`"),
        ("launcher.attach(print, print, keep_last=0)", "keep_last is 0"),
        ("launcher.attach(print, print, checkpoint_every=0)", "checkpoint_every is 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, line: str, said: str) -> None:
    done = python(f"import launcher\n{line}", cwd=tmp_path)
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_file_by_the_name_of_the_list_is_refused(tmp_path: Path) -> None:
    text = f"""{LOOP}
run = launcher.attach(dir="r")
with run.saving(1) as folder:
    (folder / "manifest.json").write_text("mine")
"""
    done = python(text, cwd=tmp_path)
    assert "saved with a file `manifest.json`" in done.stderr
    assert steps_saved(tmp_path / "r") == []


RANKS = f"""{LOOP}
run = launcher.attach(dir="r")
case = sys.argv[1]
try:
    with run.saving(3) as folder:
        (folder / f"rank-{{run.rank}}").write_text("x")
        if run.rank == 1 and case == "raises":
            raise ValueError("no")
        if run.rank == 1 and case == "dies":
            os._exit(9)
except Exception as error:
    print(run.rank, type(error).__name__)
if case == "parts":
    for step in run.steps(50):
        if run.rank == 1 and step == 5:
            break
if case == "breaks":
    for step in run.steps(9):
        if step == 4:
            break
    print(run.rank, "ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "said", "saved"),
    [
        ("breaks", ["0 ended", "1 ended"], [3]),
        ("raises", ["0 PeerFailed", "1 ValueError"], []),
        ("dies", ["0 PeerLost"], []),
        ("parts", [], [3]),
    ],
)
def test_ranks_save_together_or_not_at_all(
    tmp_path: Path, case: str, said: list[str], saved: list[int]
) -> None:
    (tmp_path / "train.py").write_text(RANKS)
    torchrun = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--nproc-per-node=2"]
    words = [*torchrun, "--rdzv-endpoint=localhost:0", "train.py", case]
    done = command(sys.executable, *words, cwd=tmp_path, timeout_s=120)
    assert (done.returncode == 0) == (case in ("breaks", "raises")), done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == said
    assert steps_saved(tmp_path / "r") == saved
    if saved:
        files = {path.name for path in (tmp_path / "r" / "checkpoints" / "step-00000003").iterdir()}
        assert files == {"manifest.json", "rank-0", "rank-1"}
    if case == "parts":
        assert "ranks have come apart" in done.stderr
