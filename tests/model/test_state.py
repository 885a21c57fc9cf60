"""Everything a state_dict may hold is kept, or refused before the first step."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import _pytree as pytree
from training import RECIPES, Run, many_runs

from launcher.errors import RecipeError
from launcher.model.state import ModelState, load_into, load_safely
from launcher.ranks.context import Context
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.run import checkpoint_files, config
from launcher.run.directory import RunDir
from launcher.train.worker import work

STATES = RECIPES / "states.py"
sys.path.insert(0, str(RECIPES))
from states import BUFFERS, EXTRAS, made  # noqa: E402  # a recipe is found by path

pytestmark = pytest.mark.warm

IN_ANOTHER_FILE = {"sparse", "complex128", "dict", "array"}
KEPT = [*BUFFERS, "dict", "array", "tensor", "tied", "sliced"]


def trained(folder: Path, kind: str, **values: object) -> RunDir:
    run, file = RunDir(folder / "r"), find(str(STATES))
    recipe = configure(load(file), "states", {"kind": kind} | values)
    if not run.config.exists():
        run.create(config.describe(file, recipe), file.source)
    work(recipe, run, Context(cpu=True), file.source)
    return run


def equal(one: Any, other: Any) -> bool:
    ours, theirs = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        dense = [t.to_dense() if t.layout != torch.strided else t for t in (one, other)]
        return one.dtype == other.dtype and torch.equal(*dense)
    return bool(np.array_equal(one, other))


@pytest.mark.floors
@pytest.mark.parametrize("kind", KEPT)
def test_a_state_of_any_kind_is_saved_and_goes_on(tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path, kind, epochs=2)
    whole = run.weights.read_bytes()
    shutil.rmtree(checkpoint_files.all_of(run.checkpoints)[-1].path)
    trained(tmp_path, kind, epochs=2)
    assert run.weights.read_bytes() == whole
    again = made(kind)
    assert run.weights_others.exists() == (kind in IN_ANOTHER_FILE)
    others = load_safely(run.weights_others) if kind in IN_ANOTHER_FILE else {}
    load_into(again, ModelState(load_file(run.weights), others, dict(again.named_buffers())))
    assert equal(again.held, BUFFERS[kind]() if kind in BUFFERS else None)
    assert equal(getattr(again, "extra", None), EXTRAS[kind]() if kind in EXTRAS else None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("deque", "`_extra_state` of the model cannot be kept in a checkpoint: it holds a `coll"),
        ("not taken back", "cannot be loaded into it: later"),
        ("optimizer", "the state of the optimizer cannot be kept in a checkpoint"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_the_start(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        trained(tmp_path, kind, epochs=1000)


@pytest.mark.slow
def test_a_state_of_any_kind_is_shared_by_several_processes(tmp_path: Path) -> None:
    cases = [{"name": kind, "recipe": "states", "kind": kind} for kind in KEPT]
    many_runs(tmp_path, 3, cases)
    for kind in KEPT:
        held = BUFFERS[kind]() if kind in BUFFERS else None
        if held is not None and kind not in IN_ANOTHER_FILE:
            assert equal(Run(tmp_path / kind).weights["held"], held)
