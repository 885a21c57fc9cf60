"""Train several recipes one after the other in the same processes (see training.many_runs)."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from launcher.ranks.context import Context
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.run import config
from launcher.run.directory import RunDir
from launcher.train.worker import work

RECIPES = Path(__file__).parent / "recipes"


class KnowsItsDevice(DistributedDataParallel):
    """DDP as Accelerate makes it on a GPU: it moves what it is called with to its device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device_ids, self.device_type = [0], "cpu"  # a constructor that asks for it refuses


def main(cases: Path, folder: Path, *, cpu: bool) -> None:
    if cpu:
        torch.nn.parallel.DistributedDataParallel = KnowsItsDevice  # type: ignore[misc]
    context = Context(cpu=cpu)
    for case in json.loads(cases.read_text()):
        name, recipe_name = case.pop("name"), case.pop("recipe")
        file = find(str(RECIPES / f"{recipe_name}.py"))
        recipe = configure(load(file), file.name, case)
        run = RunDir(folder / name)
        if context.rank == 0:
            run.create(config.describe(file, recipe, nproc=context.world_size), file.source)
        gc.collect()  # the last case's DDP goes now, and not in the middle of a step
        context.agree(False)
        work(recipe, run, context, file.source)
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), cpu=sys.argv[3] == "cpu")
