"""Runs on a disk without hard links, flushing of folders and shared memory maps: a real one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from odd_disk import missing, odd_disk
from training import RECIPES, Run, command, launcher, wait_for

from launcher.doctor.checks import file_system
from launcher.run import mark

pytestmark = pytest.mark.warm

CURVE, TROUBLE = RECIPES / "curve.py", RECIPES / "trouble.py"
WORDS = ["samples=100", "test_samples=30", "checkpoint_every=3"]
LACKING = "has no hard links, no flushing of folders, no shared memory maps: runs do without"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := missing():
        pytest.skip(reason)
    with odd_disk(tmp_path_factory.mktemp("disk")) as folder:
        yield folder


def test_a_run_there_is_as_anywhere_with_one_warning(odd: Path, tmp_path: Path) -> None:
    there, here = Run(odd / "r"), Run(tmp_path / "r")
    for run in (there, here):
        words = [*WORDS, "epochs=2", "--nproc", "2", "--run-dir", run.path]
        done = launcher("run", CURVE, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("WARNING") == (run == there)
        assert (LACKING in done.stderr) == (run == there)
    assert there.weight_bytes == here.weight_bytes
    done = launcher("test", there.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step ")
    done = launcher("resume", there.path, "epochs=3", "--nproc", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert there.result["epoch"] == 3
    assert not list(odd.rglob("*.tmp")) + list(odd.rglob(".lacks-*"))


def test_a_script_there_runs_with_the_warning_too(odd: Path, tmp_path: Path) -> None:
    words = [*WORDS, "epochs=1", "--run-dir", odd / "s"]
    done = command(sys.executable, CURVE, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(LACKING) == 1


def test_who_hangs_there_is_seen_all_the_same(odd: Path, tmp_path: Path) -> None:
    words = ["what=hang", "at_rank=1", "batch_size=9", "hang_timeout=4", "--nproc", "3"]
    done = launcher("run", TROUBLE, *words, "--run-dir", odd / "h", cwd=tmp_path)
    assert done.returncode == 1
    assert "rank 1" in done.stderr.partition("error:")[2].splitlines()[0]


def test_a_mark_is_read_there_a_moment_later(odd: Path) -> None:
    marker = mark.Marker(odd / "mark")
    marker.tick()
    marker.step(7)
    wait_for(lambda: (found := mark.read(odd / "mark")) is not None and found[:2] == (1, 7))
    marker.step(8)
    wait_for(lambda: (found := mark.read(odd / "mark")) is not None and found.steps == 8)


def test_the_doctor_tries_what_a_disk_can_do(odd: Path, tmp_path: Path) -> None:
    here, there = file_system(tmp_path), file_system(odd)
    assert (here.ok, here.detail) == (True, "can do all that runs use")
    assert there.ok
    assert LACKING.removeprefix("has ") in there.detail
    assert not list(tmp_path.iterdir())
    assert not file_system(tmp_path / "nowhere").ok
