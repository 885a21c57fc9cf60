"""Train cases in processes forked from a warm one, killing some (see training.forked_runs)."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from many_runs import RECIPES, forked

from launcher.ranks.context import Context
from launcher.recipe.base import Recipe
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.run import config
from launcher.run.checkpoint_files import all_of
from launcher.run.directory import RunDir
from launcher.train.worker import work


def main(cases: Path, folder: Path) -> None:
    for number, case in enumerate(json.loads(cases.read_text())):
        world, kill_at = case.pop("processes"), case.pop("kill_at", None)
        codes = forked(partial(train, case, folder, kill_at), world, folder / f"store-{number}")
        assert codes == {-signal.SIGKILL if kill_at else 0}, (case, codes)
        run = RunDir(folder / case["name"])
        assert run.result.exists() == (kill_at is None)
        assert all_of(run.checkpoints), "killed before there was anything to go on from"


def train(case: dict[str, Any], folder: Path, kill_at: int | None) -> int:
    """Train a case, or go on with it, in this process."""
    values = dict(case)
    name, recipe_name = values.pop("name"), values.pop("recipe")
    torch.set_num_threads(1)
    context = Context(cpu=True)
    file = find(str(RECIPES / f"{recipe_name}.py"))
    recipe = configure(load(file), file.name, values)
    run = RunDir(folder / name)
    if context.rank == 0 and not run.config.exists():
        run.create(config.describe(file, recipe, nproc=context.world_size), file.source)
    context.agree(False)
    if kill_at:
        killed_in(recipe, kill_at)
    work(recipe, run, context, file.source)
    context.close()
    return 0


def killed_in(recipe: Recipe, step: int) -> None:
    """Have the first process that comes to its n-th training pass kill all of them."""
    passes, inner = [0], recipe.train_step

    def counted(model: torch.nn.Module, *given: Any) -> Any:
        passes[0] += model.training  # a test step may be a train step
        if passes[0] == step:
            for other in psutil.Process(os.getppid()).children():
                if other.pid != os.getpid():
                    other.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(model, *given)

    object.__setattr__(recipe, "train_step", counted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
