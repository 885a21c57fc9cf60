"""What each training process runs: the parts of a run put together, and how it ends."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_model
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

import launcher
from launcher import checkpoint_files
from launcher.checkpoint import Saver, load_model, restore
from launcher.checkpoint_files import Checkpoint
from launcher.context import Context, unwrapped
from launcher.data import Loader, SizedData, sized
from launcher.errors import RecipeError, Stopped, TrainingFailed
from launcher.faults import StopRequest
from launcher.hyperparameters import configure
from launcher.loops import checkpoint, test_loop, train_loop
from launcher.mark import Marker
from launcher.metrics import Sums
from launcher.processes import die_with_parent
from launcher.randomness import seed_init
from launcher.recipe import Recipe
from launcher.recipe_file import RecipeFile, load
from launcher.record import Record, logged
from launcher.run_dir import RunDir, write_json, written
from launcher.sampler import ShardSampler
from launcher.tracking import ConsoleTracker, JsonlTracker, Trackers, accuracy_words
from launcher.training import Training


def prepare(
    recipe: Recipe,
    context: Context,
    stop: StopRequest,
    *,
    run: RunDir | None = None,
    source: str = "",
    most_steps: int | None = None,
) -> Training:
    """Build everything a recipe describes and check it; collective. Nothing is reported yet.

    `source` is the text of the recipe's file, which must be the same on all ranks.
    """
    data = context.local_first(
        lambda: (_seeded(recipe, recipe.train_data), _seeded(recipe, recipe.test_data))
    )
    train_data, test_data = sized(data[0], "train_data"), sized(data[1], "test_data")
    model = _expect(_seeded(recipe, recipe.model), torch.nn.Module, "model")
    loss_fn = _mean(_expect(recipe.loss(), torch.nn.Module, "loss"), recipe).to(context.device)
    _refuse_divergence(recipe, context, (len(train_data), len(test_data)), source)
    model = context.wrap(model)
    optimizer = _expect(recipe.optimizer(unwrapped(model)), torch.optim.Optimizer, "optimizer")
    scheduler = recipe.scheduler(optimizer)
    if scheduler is not None:
        scheduler = _expect(scheduler, LRScheduler, "scheduler")
        if isinstance(scheduler, ReduceLROnPlateau):
            raise RecipeError(
                "`scheduler` returned ReduceLROnPlateau, which cannot be stepped once a step",
                hint="use one whose learning rate follows from the step, like OneCycleLR",
            )
    return Training(
        recipe=recipe,
        context=context,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        scheduler=scheduler,
        train_loader=_loader(train_data, recipe, context),
        test_loader=_loader(test_data, recipe, context, test=True),
        stop=stop,
        sums=Sums(min(recipe.log_every, len(train_data)), context.device),
        marker=Marker(run.mark(context.rank) if run else None),
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


def _seeded(recipe: Recipe, make: Callable[[], Any]) -> Any:
    """Call a method of the recipe with all generators seeded, the same on every rank."""
    seed_init(recipe.seed)
    return make()


def _mean(loss_fn: Any, recipe: Recipe) -> Any:
    """Return the loss function; raises RecipeError where it is no mean over samples.

    The base `train_step` weights each shard by its samples. A mean weighted by class divides by
    something else, which differs from shard to shard.
    """
    if not recipe.counts_samples():
        return loss_fn
    reduction = getattr(loss_fn, "reduction", "mean")
    weighted = isinstance(loss_fn, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss)
    if reduction != "mean" or (weighted and loss_fn.weight is not None):
        what = "is weighted by class" if reduction == "mean" else f"has reduction `{reduction}`"
        raise RecipeError(
            f"`loss` {what}, so it is not a mean over samples",
            hint="write `train_step` and return StepSums(loss summed, what it is a mean over)",
        )
    return loss_fn


def _refuse_divergence(
    recipe: Recipe, context: Context, sizes: tuple[int, int], source: str
) -> None:
    """Raise TrainingFailed where ranks are about to train different things; collective."""
    mine = {
        "hyperparameters": repr(recipe.hyperparameters()),
        "recipe file": hashlib.sha256(source.encode()).hexdigest(),
        "dataset sizes": repr(sizes),
        "torch version": torch.__version__,
        "launcher version": launcher.__version__,
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


def resume(training: Training, run: RunDir) -> int:
    """Load the newest valid checkpoint, where there is one; collective.

    Returns how many rows of metrics.jsonl belong to it, 0 for a run that starts from scratch.
    """
    context = training.context
    found: Checkpoint | None = None
    if context.rank == 0:
        checkpoint_files.clean(run.checkpoints)
        found = checkpoint_files.newest_valid(run.checkpoints, warn)
    found = context.gather(found)[0]
    if found is None:
        return 0
    rows = restore(training, found)
    if context.rank == 0:
        print(f"continuing from step {found.step} (epoch {found.epoch})", flush=True)
    return rows


def warn(message: str) -> None:
    """Say loudly that something is wrong although the run goes on."""
    print(f"WARNING: {message}", flush=True)


def train(training: Training, saver: Saver | None) -> dict[str, Any]:
    """Train and test for what is left of the epochs; collective. Returns what result.json says."""
    recipe, progress = training.recipe, training.progress
    began, in_training_s, samples = time.perf_counter() - progress.seconds, 0.0, 0
    try:
        while progress.epoch < recipe.epochs:
            before, started = progress.samples_into_epoch, time.perf_counter()
            train_loop(training, saver)
            in_training_s += time.perf_counter() - started
            samples += progress.samples_into_epoch - before
            progress.end_epoch(test_loop(training, saver))
            progress.seconds = time.perf_counter() - began
            checkpoint(training, saver)
    except Stopped:
        progress.seconds = time.perf_counter() - began
        checkpoint(training, saver)
        raise
    finally:
        training.trackers.close()
        if saver:
            saver.wait()
    test = progress.test or {}
    return {
        "state": "completed",
        "epoch": progress.epoch,
        "step": progress.step,
        "world_size": training.context.world_size,
        "train_loss": progress.train_loss,
        "test_loss": test.get("loss"),
        "test_accuracy": test.get("accuracy"),
        "test_correct": test.get("correct"),
        "test_samples": test.get("samples"),
        "seconds": progress.seconds,
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


def work(recipe: Recipe, run: RunDir, context: Context, source: str) -> None:
    """Train in this process, from the newest checkpoint of the run on; collective.

    Rank 0 leaves result.json, the weights and the last line.
    """
    with StopRequest() as stop:
        training = prepare(recipe, context, stop, run=run, source=source)
        rows = resume(training, run)
        training.trackers = Trackers(rows=rows)
        if context.rank == 0:
            training.trackers.add(JsonlTracker(run.metrics, rows), ConsoleTracker())
        saver = Saver(run, recipe.keep_last, recipe.keep_best)
        result = train(training, saver)
    if context.rank == 0:
        with written(run.weights) as path:
            save_model(unwrapped(training.model), str(path))
        write_json(run.result, result)
        print(last_words(result, run), flush=True)


def test(recipe: Recipe, run: RunDir, context: Context, path: Path) -> None:
    """Test a checkpoint in this process; collective. Rank 0 leaves the numbers in result.json."""
    training = prepare(recipe, context, StopRequest(), run=run)
    load_model(training.model, path)
    totals = test_loop(training, None)
    if context.rank == 0:
        result = {
            "state": "completed",
            "world_size": context.world_size,
            "test_loss": totals.loss,
            "test_accuracy": totals.accuracy,
            "test_correct": totals.correct,
            "test_samples": totals.samples,
        }
        write_json(run.result, result)


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
    recipe = configure(recipe_type, str(file.path), told["hyperparameters"])
    context = Context(
        cpu=told["cpu"],
        mixed_precision=recipe.mixed_precision,
        find_unused_parameters=recipe.find_unused_parameters,
        expected_world=told["world_size"],
    )
    try:
        if told.get("test"):
            test(recipe, run, context, Path(told["test"]))
        else:
            work(recipe, run, context, source)
    finally:
        context.close()


if __name__ == "__main__":
    sys.exit(run_worker(RunDir(Path(sys.argv[1])), RunDir(Path(sys.argv[-1]))))
