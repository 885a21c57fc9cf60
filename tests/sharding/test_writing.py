"""Checkpoints that all ranks write together, and disks and ranks that fail meanwhile."""

from pathlib import Path

import pytest
from training import RECIPES, Run, launcher

from launcher.run.directory import RunDir
from launcher.sharding.writing import Writer

RUN = ["run", RECIPES / "full_disk.py", "--cpu", "--run-dir", "r", "--nproc"]


def test_a_folder_that_cannot_be_made_is_a_failed_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(RunDir(tmp_path), keep_last=1, keep_best=0)
    assert writer.begin("step-00000001-epoch-0000")
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints").touch()
    assert not writer.begin("step-00000002-epoch-0000")
    assert writer.failures == 1
    assert "WARNING: checkpoint step-00000002-epoch-0000 could not" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_save_that_failed_on_every_rank_is_one_failure(tmp_path: Path, ranks: int) -> None:
    done = launcher(*RUN, ranks, "at=1,2,4,5,6,7,8,9", "samples=90", cwd=tmp_path)
    assert done.returncode == 1
    said = f"rank 0 and {ranks - 1} more: OSError: [Errno 28] No space left on device"
    for row in (1, 2):
        assert f"({said}); training goes on, {row} of 3 failures in a row" in done.stdout
    assert f"3 checkpoints in a row could not be written: {said}" in done.stderr
    checkpoints = tmp_path / "r" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000003-epoch-0000"]


@pytest.mark.slow
def test_a_rank_that_is_killed_while_all_save_leaves_the_checkpoint_before_as_the_newest(
    tmp_path: Path,
) -> None:
    done = launcher(*RUN, 2, "at=1,3", "on_rank=1", "kill=true", cwd=tmp_path)
    assert done.returncode != 0
    assert "killed by SIGKILL" in done.stderr
    assert "could not be written (rank 1: OSError: [Errno 28] No space left" in done.stdout
    listed = launcher("checkpoints", "r", cwd=tmp_path).stdout
    assert [line.split()[1] for line in listed.splitlines()] == ["2"]
    assert "valid" in listed
    done = launcher("resume", "r", "at=", "kill=false", "--allow-changes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 2" in done.stdout
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))
    launcher(*RUN[:-2], "whole", "--nproc", 2, cwd=tmp_path)
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes
