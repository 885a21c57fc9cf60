"""Train several recipes one after the other in the same processes (see training.many_runs)."""

import gc
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import Stopped
from launcher.node.forks import Fork
from launcher.processes import STORE
from launcher.ranks.context import Context
from launcher.recipe.base import Recipe
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


def main(cases: Path, folder: Path, *, cpu: bool) -> int:
    """Train all cases in this process, as one of a world; returns the exit code."""
    if cpu:
        torch.nn.parallel.DistributedDataParallel = KnowsItsDevice  # type: ignore[misc]
    context = Context(cpu=cpu)
    for case in json.loads(cases.read_text()):
        name, recipe_name, stops = case.pop("name"), case.pop("recipe"), case.pop("stops", [])
        file = find(str(RECIPES / f"{recipe_name}.py"))
        recipe = configure(load(file), file.name, case)
        run = RunDir(folder / name)
        if context.rank == 0 and not run.config.exists():
            run.create(config.describe(file, recipe, nproc=context.world_size), file.source)
        gc.collect()  # the last case's DDP goes now, and not in the middle of a step
        for stop in [*stops, None]:
            context.agree(False)
            with suppress(Stopped):
                work(stopped_in(recipe, stop), run, context, file.source)
            assert context.rank > 0 or run.result.exists() == (stop is None)
    context.close()
    return 0


def forked(work: Callable[[], int], world: int, store: Path, timeout_s: float = 1200) -> set[int]:
    """Do the same in processes that are forked from this one; returns their exit codes.

    As the agent does: what they import is imported once. Where one fails the others are ended, for
    they may wait for it.
    """
    import_module("torch._dynamo")
    gc.collect()
    gc.freeze()
    forks = [Fork(work) for _ in range(world)]
    place = {STORE: str(store), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for rank, fork in enumerate(forks):
        where = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        fork.begin({**os.environ, **place, **where}, {})
    deadline = time.monotonic() + timeout_s
    while None in (codes := {fork.poll() for fork in forks}):
        if codes - {None, 0}:
            deadline = min(deadline, time.monotonic() + 1)  # one that has failed, too, says why
        if time.monotonic() > deadline:
            for fork in forks:
                if fork.poll() is None:
                    os.kill(fork.pid, signal.SIGKILL)
        time.sleep(0.02)
    return {code for code in codes if code is not None}


def stopped_in(recipe: Recipe, call: list[Any] | None) -> Recipe:
    """The same recipe; the n-th pass of a kind, `["test", n]`, asks this process to stop."""
    recipe, passes = copy(recipe), Counter[str]()

    def counted(inner: Any, kind: str, model: torch.nn.Module, *given: Any) -> Any:
        passes[kind] += model.training == (kind == "train")  # a test step may be a train step
        if [kind, passes[kind]] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(model, *given)

    for kind in ("train", "test"):
        name = f"{kind}_step"
        object.__setattr__(recipe, name, partial(counted, getattr(recipe, name), kind))
    return recipe


if __name__ == "__main__":
    listed, place, device, processes = sys.argv[1:]
    train = partial(main, Path(listed), Path(place), cpu=device == "cpu")
    if int(processes):
        for recipe in {case["recipe"] for case in json.loads(Path(listed).read_text())}:
            load(find(str(RECIPES / f"{recipe}.py")))  # so that what it imports is here for all
        sys.exit(max(map(abs, forked(train, int(processes), Path(place, "store")))))
    sys.exit(train())
