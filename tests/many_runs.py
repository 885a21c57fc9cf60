"""Train several recipes one after the other in the same processes (see training.many_runs)."""

import gc
import json
import sys
from pathlib import Path

from launcher import config
from launcher.context import Context
from launcher.hyperparameters import configure
from launcher.recipe_file import find, load
from launcher.run_dir import RunDir
from launcher.worker import work

RECIPES = Path(__file__).parent / "recipes"


def main(cases: Path, folder: Path) -> None:
    context = Context(cpu=True)
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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
