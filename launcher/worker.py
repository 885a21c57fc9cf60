"""What each training process runs: the parts of a run put together, and how it ends."""

import hashlib
import inspect
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_model

from launcher import config
from launcher.context import Context, unwrapped
from launcher.data import Loader, SizedData, sized
from launcher.errors import LauncherError, RecipeError, TrainingFailed
from launcher.faults import StopRequest
from launcher.hyperparameters import configure, split_overrides
from launcher.loops import Training, test_loop, train_loop
from launcher.metrics import Sums, Totals
from launcher.processes import die_with_parent
from launcher.randomness import seed_init
from launcher.recipe import Recipe
from launcher.recipe_file import RecipeFile, find, load
from launcher.record import Record, logged
from launcher.run_dir import RunDir, write_json, written
from launcher.sampler import ShardSampler
from launcher.tracking import ConsoleTracker, JsonlTracker, Trackers, accuracy_words


def prepare(
    recipe: Recipe,
    context: Context,
    stop: StopRequest,
    *,
    run: RunDir | None = None,
    most_steps: int | None = None,
) -> Training:
    """Build everything a recipe describes and check it; collective.

    Without a run directory nothing is written, and reports go to the console alone.
    """
    data = context.local_first(lambda: (recipe.train_data(), recipe.test_data()))
    train_data, test_data = sized(data[0], "train_data"), sized(data[1], "test_data")
    sizes = len(train_data), len(test_data)
    seed_init(recipe.seed)
    model = _expect(recipe.model(), torch.nn.Module, "model")
    loss_fn = _expect(recipe.loss(), torch.nn.Module, "loss").to(context.device)
    model = context.wrap(model)
    optimizer = _expect(recipe.optimizer(model), torch.optim.Optimizer, "optimizer")
    _refuse_divergence(recipe, context, sizes)
    console = [ConsoleTracker()] if context.rank == 0 else []
    files = [JsonlTracker(run.metrics)] if context.rank == 0 and run else []
    return Training(
        recipe=recipe,
        context=context,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        scheduler=recipe.scheduler(optimizer),
        train_loader=_loader(train_data, recipe, context),
        test_loader=_loader(test_data, recipe, context, test=True),
        trackers=Trackers(*files, *console),
        stop=stop,
        sums=Sums(recipe.log_every, context.device),
        most_steps=most_steps,
    )


def _loader(data: SizedData, recipe: Recipe, context: Context, *, test: bool = False) -> Loader:
    sampler = ShardSampler(
        len(data),
        recipe.test_batch_size if test else recipe.batch_size,
        rank=context.rank,
        world_size=context.world_size,
        micro_batch_size=recipe.micro_batch_size,
        seed=recipe.seed,
        shuffle=not test,
    )
    return Loader(data, sampler, recipe, context.device)


def _expect(made: Any, kind: type, method: str) -> Any:
    if not isinstance(made, kind):
        raise RecipeError(
            f"`{method}` returned {type(made).__name__}, not a {kind.__module__}.{kind.__name__}",
            hint=f"does the method `{method}` of the recipe end in `return`?",
        )
    return made


def _refuse_divergence(recipe: Recipe, context: Context, sizes: tuple[int, int]) -> None:
    """Raise TrainingFailed where ranks are about to train different things; collective."""
    module = inspect.getmodule(type(recipe))
    source = getattr(module, "__source__", "")
    mine = {
        "hyperparameters": repr(recipe.hyperparameters()),
        "recipe file": hashlib.sha256(source.encode()).hexdigest(),
        "dataset sizes": repr(sizes),
        "torch version": torch.__version__,
    }
    everyones = context.gather(mine)
    for what in mine:
        values = [theirs[what] for theirs in everyones]
        usual = max(values, key=values.count)
        odd = [rank for rank, value in enumerate(values) if value != usual]
        if odd:
            raise TrainingFailed(
                f"ranks differ in {what}: rank {odd[0]} has {values[odd[0]]}, others {usual}",
                hint="start every node with the same files and the same command line",
            )


def train(training: Training, run: RunDir | None) -> dict[str, Any]:
    """Train and test for all epochs; collective. Returns what result.json says."""
    recipe, context = training.recipe, training.context
    started, in_training_s, samples = time.perf_counter(), 0.0, 0
    train_loss, test = 0.0, Totals([], 0, None, 0)
    try:
        while training.epoch < recipe.epochs:
            epoch_started = time.perf_counter()
            train_loop(training)
            in_training_s += time.perf_counter() - epoch_started
            samples += training.samples_into_epoch
            train_loss = training.epoch_loss / max(training.epoch_count, 1)
            test = test_loop(training)
            training.next_epoch()
    finally:
        training.trackers.close()
    if run and context.rank == 0:
        with written(run.weights) as path:
            save_model(unwrapped(training.model), str(path))
    return {
        "state": "completed",
        "epoch": training.epoch,
        "step": training.step,
        "world_size": context.world_size,
        "train_loss": train_loss,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_correct": test.correct,
        "test_samples": test.samples,
        "seconds": time.perf_counter() - started,
        "samples_per_second": samples / max(in_training_s, 1e-9),
    }


def last_words(result: dict[str, Any], run: RunDir | None) -> str:
    """Return the line that ends a completed run."""
    accuracy = accuracy_words(result["test_accuracy"]).replace("Accuracy:", "test accuracy")
    where = f", {os.path.relpath(run.path)}" if run else ""
    return (
        f"Done: {accuracy}{result['seconds']:.1f} s, "
        f"{result['samples_per_second']:,.0f} samples/s{where}"
    )


def work(recipe: Recipe, run: RunDir, context: Context) -> None:
    """Train in this process; collective. Rank 0 leaves result.json and the last line."""
    with StopRequest() as stop:
        result = train(prepare(recipe, context, stop, run=run), run)
    if context.rank == 0:
        write_json(run.result, result)
        print(last_words(result, run), flush=True)


def ended(record: Record, run: RunDir, log: TextIO, do: Callable[[], None]) -> int:
    """Do something and note in record and log how it ended; returns the exit code."""
    record.write(run)
    try:
        do()
    except BaseException as error:  # noqa: BLE001  # whatever it was, the record must tell
        record.end("failed", error)
        if isinstance(error, SystemExit):
            record.error = f"the recipe called exit({error.code}) in the middle of the run"
        print(record.traceback or record.error, file=log, flush=True)
    else:
        record.end("completed")
    record.write(run)
    return record.exit_code


def debug(recipe: Recipe, most_steps: int) -> None:
    """Train a few batches on the CPU in this very process, with nothing in the debugger's way."""
    torch.autograd.set_detect_anomaly(True)
    context = Context(cpu=True, mixed_precision=recipe.mixed_precision)
    try:
        once = replace(recipe, epochs=1)
        training = prepare(once, context, StopRequest(), most_steps=most_steps)
        print(last_words(train(training, None), None))
    finally:
        context.close()


def main(recipe_type: type[Recipe]) -> None:
    """Train a recipe that was started as a script: by python, torchrun or accelerate launch.

    Reads `key=value` hyperparameters and `--run-dir DIR` from the command line and exits.
    """
    if recipe_type.__module__ != "__main__":
        raise RecipeError(
            f"`main({recipe_type.__name__})` runs whenever the file is loaded",
            hint='write `if __name__ == "__main__":` above it',
        )
    rank = int(os.environ.get("RANK", "0"))
    try:
        words, run_path = _script_arguments(sys.argv[1:])
        file = find(inspect.getfile(recipe_type))
        recipe = configure(recipe_type, str(file.path), split_overrides(words))
    except LauncherError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    _source_of(recipe_type, file)
    context = Context(mixed_precision=recipe.mixed_precision)
    try:
        sys.exit(_run_as_script(recipe, file, run_path, context))
    finally:
        context.close()


def _script_arguments(words: list[str]) -> tuple[list[str], Path | None]:
    """Split `[--run-dir DIR] key=value …`; anything else is refused later, by its own name."""
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
    if context.rank == 0:
        nodes = context.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        description = config.describe(file, recipe, nproc=context.world_size // nodes, nnodes=nodes)
        try:
            run.create(description, file.source)
        except LauncherError as caught:
            error = caught
            print(f"error: {caught}", file=sys.stderr)
    if context.agree(error is not None):
        return error.exit_code if error else 1
    record = Record.started(context.rank)
    with logged(run, context.rank, supervised=False) as log:
        code = ended(record, run, log, lambda: work(recipe, run, context))
    if code and record.first_cause:
        print(f"error: {record.users_frames or record.error}", file=sys.stderr)
    return code


def _source_of(recipe_type: type[Recipe], file: RecipeFile) -> None:
    module = inspect.getmodule(recipe_type)
    if module:
        vars(module)["__source__"] = file.source


def run_worker(run: RunDir, spec: RunDir) -> int:
    """Train as one of the processes that the launcher started; returns the exit code.

    `spec` holds recipe and configuration: the run directory itself, but on other machines.
    """
    die_with_parent()
    record = Record.started(int(os.environ.get("RANK", "0")))
    with logged(run, record.rank, supervised=True) as log:
        return ended(record, run, log, lambda: _work_as_told(run, spec))


def _work_as_told(run: RunDir, spec: RunDir) -> None:
    told = spec.read_config()
    # The text as it was when the run was made, under the name where the user can find it.
    source = spec.recipe.read_text(encoding="utf-8")
    file = RecipeFile(told["recipe"], Path(told["recipe_path"]), source)
    recipe_type = load(file)
    _source_of(recipe_type, file)
    recipe = configure(recipe_type, str(file.path), told["hyperparameters"])
    context = Context(
        cpu=told["cpu"],
        mixed_precision=recipe.mixed_precision,
        expected_world=told["world_size"],
    )
    try:
        work(recipe, run, context)
    finally:
        context.close()


if __name__ == "__main__":
    sys.exit(run_worker(RunDir(Path(sys.argv[1])), RunDir(Path(sys.argv[-1]))))
