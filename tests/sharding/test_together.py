"""A sharded model that is used as it cannot be used ends in words, on all ranks."""

import json
import sys
from pathlib import Path

import pytest
from training import PROJECT, command

pytestmark = pytest.mark.slow

# What is done, and what the error says of it.
TROUBLES = {
    "alone": ("TrainingFailed", "the forward pass of the model"),
    "twice": ("TrainingFailed", "a backward pass"),
    "skipped": ("TrainingFailed", "the forward pass of `parts.0`"),
    "method": ("RecipeError", "`parts.1` is used otherwise than by calling it"),
    "penalty": ("RecipeError", "of weights"),
    "unused": ("RecipeError", "spare.weight"),
    "listed": ("RecipeError", "last.weight"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all of them, one after the other."""
    folder = tmp_path_factory.mktemp("not alike")
    start = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    script = PROJECT / "tests" / "not_alike.py"
    done = command(
        *(sys.executable, *start, "--nproc-per-node=2", script, folder, "", *TROUBLES),
        cwd=folder,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_ranks_do_not_do_alike_ends_in_words_on_all_of_them(
    trouble: str, folder: Path
) -> None:
    kind, words = TROUBLES[trouble]
    for rank in range(2):
        told = json.loads((folder / f"{rank}.json").read_text())
        assert told[trouble][0] == kind
        assert words in told[trouble][1]


def test_after_test_may_call_the_model_and_the_folder_of_rank_0_is_kept(folder: Path) -> None:
    for rank in range(2):
        assert "" not in json.loads((folder / f"{rank}.json").read_text())
    [file] = (folder / "none" / "after_test").glob("step-*/*")
    assert file.name == "of rank 0"
