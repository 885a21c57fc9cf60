"""`micro_batch_size=auto`: a run that is out of memory at once starts again with less at a time."""

import json
import sys
from pathlib import Path

import pytest
from training import RECIPES, Run, command, launcher

pytestmark = pytest.mark.slow
AUTO = ["run", RECIPES / "memory.py", "--cpu", "micro_batch_size=auto", "--run-dir", "r"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was given its micro-batch size."""
    folder = tmp_path_factory.mktemp("given")
    words = ["run", RECIPES / "memory.py", "--cpu", "micro_batch_size=2", "--run-dir", "r"]
    assert launcher(*words, cwd=folder).returncode == 0
    return Run(folder / "r")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("where=backward holds=3", 2),
        ("--nproc 2 rank=1 where=backward holds=3 shard=true", 2),
        ("--nproc 2 rank=1 holds=2 after=3 checkpoint_every=2", 2),
    ],
)
def test_half_is_tried_until_it_fits_and_the_numbers_are_those_of_that_size(
    tmp_path: Path, given: Run, words: str, found: int
) -> None:
    done = launcher(*AUTO, *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"starting again with micro_batch_size={found}\n" in done.stderr
    assert "restart" not in done.stderr  # none was given, and none is used
    told = json.loads((tmp_path / "r" / "config.json").read_text())
    assert told["hyperparameters"]["micro_batch_size"] == "auto"
    assert told["micro_batch_size"] == found
    run = Run(tmp_path / "r")
    assert run.farthest(given) <= (1e-12 if "nproc" in words else 0)


def test_a_resume_with_less_memory_halves_again_and_one_sample_too_many_is_a_failure(
    tmp_path: Path,
) -> None:
    assert launcher(*AUTO, "holds=4", cwd=tmp_path).returncode == 0  # 8, then 4
    resume = ["resume", "r", "--allow-changes"]
    done = launcher(*resume, "epochs=2", "holds=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 4 samples" in done.stderr
    assert json.loads((tmp_path / "r" / "config.json").read_text())["micro_batch_size"] == 2
    done = launcher(*resume, "epochs=3", "holds=0", cwd=tmp_path)
    assert done.returncode == 1
    assert "OutOfMemoryError: no memory in forward" in done.stderr


def test_memory_that_is_used_up_later_is_a_failure(tmp_path: Path) -> None:
    done = launcher(*AUTO, "after=20", cwd=tmp_path)
    assert done.returncode == 1
    assert "OutOfMemoryError: no memory in forward" in done.stderr
    assert "starting again" not in done.stderr


@pytest.mark.parametrize(("word", "why"), [("norm=true", "batch norm"), ("gathers=true", "gather")])
def test_what_a_micro_batch_size_decides_about_is_refused(
    tmp_path: Path, word: str, why: str
) -> None:
    done = launcher(*AUTO, word, "holds=100", cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert "auto" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_recipe_that_is_started_as_a_program_cannot_find_it(tmp_path: Path) -> None:
    done = command(sys.executable, RECIPES / "memory.py", "micro_batch_size=auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "launcher run" in done.stderr
