"""A recipe that runs in a process which is already there: as a script, or to be debugged."""

import inspect
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from launcher.console import last_without_console
from launcher.errors import LauncherError, RecipeError, RunDirError, Stopped, TrainingFailed
from launcher.files import warn_of_disk
from launcher.leave import leave
from launcher.processes import adopt_orphans, shown, without_world
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe import untrained
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, find
from launcher.recipe.hyperparameters import configure, split_overrides, table
from launcher.run import config, lock, wandb
from launcher.run.directory import RunDir
from launcher.run.record import Record, logged, write_result
from launcher.run.wandb import ENDINGS
from launcher.tracking.mirror import Mirror
from launcher.train.prepare import prepare
from launcher.train.trackers import ConsoleTracker, Trackers
from launcher.train.worker import ended, last_words, train, work

_UNWATCHED_S = 1800.0  # at least, for data that take their time: nobody watches the ranks


def debug(recipe: Recipe, most_steps: int, init_from: Path | None = None) -> dict[str, Any]:
    """Train a few batches on the CPU in this very process, with nothing in the debugger's way.

    So there are data workers only where the user asks for them. The recipe is as it is for a run.
    Returns what result.json would say.
    """
    torch.autograd.set_detect_anomaly(True)
    for name in os.environ.keys() - without_world(os.environ).keys():
        del os.environ[name]
    context = Context(cpu=True, mixed_precision=recipe.mixed_precision)
    try:
        training = prepare(
            recipe, context, StopRequest(), most_steps=most_steps, init_from=init_from
        )
        training.trackers = Trackers(ConsoleTracker())
        result = train(training, None)
        print(last_words(result, None))
        return result
    finally:
        context.close()


def main(recipe_type: type[Recipe]) -> None:
    """Train a recipe that was started as a script: by python, torchrun or accelerate launch.

    Reads `key=value` hyperparameters and `--run-dir DIR` from the command line and exits.
    """
    untrained.is_trained()
    if recipe_type.__module__ != "__main__":
        raise RecipeError(
            f"`main({recipe_type.__name__})` runs whenever the file is loaded",
            hint='write `if __name__ == "__main__":` above it',
        )
    rank = int(os.environ.get("RANK", "0"))
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {sys.argv[0]} [--run-dir DIR] [KEY=VALUE]...\n\n{table(recipe_type)}")
        sys.exit(0)
    try:
        words, run_path = _script_arguments(sys.argv[1:])
        file = find(inspect.getfile(recipe_type))
        recipe = configure(recipe_type, str(file.path), split_overrides(words))
        if recipe.micro_batch_size == "auto":
            raise RecipeError(
                "`micro_batch_size=auto` starts processes again until they fit",
                hint=f"`launcher run {shown(file.path)}` can do that; or give a number",
            )
        context = Context(
            mixed_precision=recipe.mixed_precision,
            find_unused_parameters=recipe.find_unused_parameters,
            patience_s=max(recipe.hang_timeout, _UNWATCHED_S),
        )
    except LauncherError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    adopt_orphans()
    last_without_console()
    code = _run_as_script(recipe, file, run_path, context)
    # Where a rank has failed, leaving the group might wait for it (NCCL).
    whole = code in (0, Stopped.exit_code)
    leave(code, context.close if whole else None, unguarded=True)


def _script_arguments(words: list[str]) -> tuple[list[str], Path | None]:
    """Split `[--run-dir DIR] key=value …`; anything else is refused later, by its own name."""
    words = [part for w in words for part in (w.split("=", 1) if w.startswith("--") else [w])]
    if "--run-dir" not in words:
        return words, None
    at = words.index("--run-dir")
    if at + 1 == len(words):
        raise RecipeError("--run-dir needs a folder")
    return words[:at] + words[at + 2 :], Path(words[at + 1])


def _run_as_script(
    recipe: Recipe, file: RecipeFile, run_path: Path | None, context: Context
) -> int:
    """Make the run directory on rank 0 and train; collective. Returns the exit code."""
    run = RunDir(Path(context.gather(str(run_path or config.new_run_path(file.name)))[0]))
    error: LauncherError | None = None
    made: list[Path] = []
    if context.rank == 0:
        nodes = context.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        try:
            description = config.describe(
                file,
                recipe,
                nproc=context.world_size // nodes,
                nnodes=nodes,
                threads=torch.get_num_threads(),
                tracking=wandb.tracking(file.name),
            )
            made = run.create(description, file.source)
        except LauncherError as caught:
            error = caught
            print(f"error: {caught}", file=sys.stderr)
    if context.agree(error is not None):
        return error.exit_code if error else 1
    if context.agree(_is_foreign(run, context)):
        if context.rank == 0:
            run.remove(made)
        return RunDirError.exit_code
    record, started = Record.started(context.rank), time.time()
    with lock.held(run) if context.rank == 0 else nullcontext():
        mirror = Mirror.of(run) if context.rank == 0 else None
        if context.rank == 0:
            warn_of_disk(run.path)
        with logged(run, context.rank, supervised=False) as log:
            code = ended(record, run, log, lambda: work(recipe, run, context, file.source))
        if code:
            _say_how_it_ended(record, run, context, time.time() - started)
        if mirror:
            mirror.close(None if record.users_mistake else ENDINGS[record.state])
        if record.users_mistake and context.rank == 0:
            run.remove(made)
    return code


def _is_foreign(run: RunDir, context: Context) -> bool:
    """Whether a machine that does not see rank 0's run directory has something else in its place.

    The first process of each machine looks, and says what there is.
    """
    if context.rank == 0 or os.environ.get("LOCAL_RANK") != "0":
        return False
    try:
        run.refuse_foreign()
    except RunDirError as error:
        print(f"error: {error}", file=sys.stderr)
        return True
    return False


def _say_how_it_ended(record: Record, run: RunDir, context: Context, seconds: float) -> None:
    """Do what the launcher does where there is one, as far as this rank knows."""
    if record.first_cause and (context.rank == 0 or record.traceback):
        print(f"error: {record.users_frames or record.error}", file=sys.stderr)
    if context.rank > 0 or record.users_mistake:
        return
    ending = Stopped if record.state == "stopped" else TrainingFailed
    write_result(run, context.world_size, ending(record.error), seconds)
    again = record.made_again(run) if record.state == "failed" else []
    print("hint: " + "; ".join([*again, f"launcher resume {shown(run.path)}"]), file=sys.stderr)
