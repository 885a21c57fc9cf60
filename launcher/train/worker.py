"""What each training process runs: the parts of a run put together, and how it ends."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from torch import OutOfMemoryError

from launcher.data.device import claim_gpu
from launcher.errors import NonFiniteLoss, RunDirError, Stopped
from launcher.files import write_json
from launcher.leave import leave
from launcher.masks import clean
from launcher.processes import shown
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.ranks.kept import size_of
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, load
from launcher.recipe.hyperparameters import configure
from launcher.recipe.only_data import watched
from launcher.run import checkpoint_files
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.config import note_beginning
from launcher.run.directory import RunDir
from launcher.run.mark import Marker
from launcher.run.record import Record, in_step, logged
from launcher.run.rows import told_of_test
from launcher.sharding.fitting import refuse_size, take_what_fits
from launcher.train.checkpoint import (
    Saver,
    load_to_test,
    look_inside,
    refuse_unloadable,
    refuse_unsaveable,
    restore,
)
from launcher.train.exchange import checkpoint
from launcher.train.loops import train_loop
from launcher.train.outputs import profiling, save_rows, save_weights
from launcher.train.prepare import note_how_made, prepare
from launcher.train.testing import sanity_test, test_event, test_loop
from launcher.train.trackers import ConsoleTracker, JsonlTracker, Trackers, accuracy_words
from launcher.train.training import Training

_MUCH_WAITING = 0.25  # share of training that is worth a hint


def resume(training: Training, run: RunDir) -> int:
    """Load the newest valid checkpoint, where there is one; collective.

    Returns how many rows of metrics.jsonl belong to it, 0 for a run that starts from scratch.
    """
    context = training.context
    note_how_made(training)

    def find() -> Checkpoint | None:
        with training.marker.beating():
            checkpoint_files.clean(run.checkpoints)
            look = partial(look_inside, training)
            return checkpoint_files.newest_valid(run.checkpoints, warn, look)

    found = context.gather(context.turn(find, mine=context.rank == 0))[0]
    rows = 0
    if found:
        with training.marker.beating():
            rows = restore(training, found)
    training.schedules.refuse_too_short(training.length, training.per_epoch)
    if found and context.rank == 0:
        print(f"continuing from step {found.step} (epoch {found.epoch})", flush=True)
    return rows


def _doubt(run: RunDir, step: int) -> None:
    """Set the checkpoint aside that led to NaN at once, where there is one before it to go on from.

    Its weights are numbers, but what is wrong may have begun before it was saved.
    """
    saved = checkpoint_files.all_of(run.checkpoints)
    if len(saved) > 1 and saved[-1].step == step:
        name = saved[-1].path.name
        warn(f"checkpoint {name} led to this at once: set aside, for the one before it")
        checkpoint_files.set_aside(saved[-1])


def warn(message: str) -> None:
    """Say loudly that something is wrong although the run goes on."""
    print(f"WARNING: {clean(message)}", flush=True)


def train(training: Training, saver: Saver | None) -> dict[str, Any]:
    """Train and test for what is left of the epochs; collective. Returns what result.json says."""
    progress, times, started = training.progress, training.times, time.perf_counter()
    training.began = started - progress.seconds
    training.train_loader.sampler.seek(progress.epoch, progress.steps_into_epoch)
    if training.recipe.sanity_test and progress.step == 0 and training.most_steps is None:
        with times.spending("test"), training.marker.spending("testing"):
            sanity_test(training)
    try:
        if training.test_is_due:  # it was cut
            test_event(training, saver)
        training.end_whole_epoch()
        while not training.done:
            train_loop(training, saver)
    except Stopped:
        checkpoint(training, saver)
        raise
    except Exception as error:
        in_step(error, progress.step)
        raise
    finally:
        training.trackers.close()
        with training.marker.spending("saving"):
            if saver:
                saver.wait(training.marker)
        training.marker.ends()
    progress.seconds = time.perf_counter() - training.began
    in_training_s = time.perf_counter() - started - times.spent["test"] - times.spent["checkpoint"]
    return {
        "state": "completed",
        "epoch": progress.epoch,
        "step": progress.step,
        "world_size": training.context.world_size,
        "train_loss": progress.mean_loss if progress.train_loss is None else progress.train_loss,
        **told_of_test(progress.test),
        "seconds": progress.seconds,
        "samples_per_second": times.trained / max(in_training_s, 1e-9),
        "time_shares": times.shares(),  # of this session, on this rank
        "out_of_patience": training.recipe.patience if training.out_of_patience else None,
        "why": training.why_it_ended,
    }


def last_words(result: dict[str, Any], run: RunDir | None) -> str:
    """Return the line that ends a completed run."""
    accuracy = accuracy_words(result["test_accuracy"]).replace("Accuracy:", "test accuracy")
    where = f", {shown(run.path)}" if run else ""
    why = f"Ended: {result['why']}\n" if result["why"] else ""
    return (
        f"{why}Done: {accuracy}{result['seconds']:.1f} s, "
        f"{result['samples_per_second']:,.0f} samples/s{where}"
    )


def time_words(shares: dict[str, float]) -> str:
    """Return the line that says what the time of a run went into."""
    words = "Time: " + ", ".join(f"{100 * share:.0f}% {what}" for what, share in shares.items())
    if shares.get("data", 0) > _MUCH_WAITING * (shares.get("data", 0) + shares["compute"]):
        words += "\nhint: training waited for data; more num_workers, or an ArrayDataset, may help"
    return words


def work(
    recipe: Recipe,
    run: RunDir,
    context: Context,
    source: str,
    *,
    profiled: bool = False,
    init_from: Path | None = None,
) -> None:
    """Train in this process, from the newest checkpoint of the run on; collective.

    Rank 0 leaves result.json, the weights and the last lines, and the others wait for it, as they
    do for its last checkpoint: whoever starts processes may end those that are left. `profiled`
    leaves a trace of each rank; a run without a checkpoint starts from the weights of `init_from`.
    """
    context.marker = Marker(run.mark(context.rank))
    if context.rank == 0:
        print(context.where, flush=True)
    with StopRequest() as stop:  # to the end: whoever asks now gets a whole run
        goes_on = init_from is not None and context.agree(_has_checkpoints(run, context))
        start = None if goes_on else init_from
        training = prepare(recipe, context, stop, source=source, init_from=start)
        rows = resume(training, run)
        training.marker.goes_on_from(training.progress.step)
        if context.rank == 0:
            note_beginning(run, training.progress.step)
        if goes_on and not training.progress.step:
            raise RunDirError(f"no checkpoint is valid; `launcher resume` begins at {init_from}")
        refuse_unsaveable(training)
        refuse_unloadable(training)
        training.folder, training.trackers = run.path, Trackers(rows=rows)
        if context.rank == 0:
            training.trackers.add(JsonlTracker(run.metrics, rows), ConsoleTracker())
        saver = Saver(run, recipe.keep_last, recipe.keep_best, recipe.best_by)
        begun = training.progress.step
        try:
            with profiling(training, run) if profiled else nullcontext():
                result = train(training, saver)
        except Stopped:
            context.agree(True)
            raise
        except OutOfMemoryError as error:
            samples = training.train_loader.sampler.size
            refuse_size(recipe, samples, context, training.progress.step - begun, error)
            raise
        except NonFiniteLoss as error:
            if context.rank == 0 and begun and error.step <= begun + 1:
                _doubt(run, begun)
            raise
        writes = context.rank == 0 or training.sharded
        context.turn(lambda: _leave_results(training, run, result), mine=writes)


def _has_checkpoints(run: RunDir, context: Context) -> bool:
    return context.rank == 0 and bool(checkpoint_files.all_of(run.checkpoints))


def _leave_results(training: Training, run: RunDir, result: dict[str, Any]) -> None:
    with training.marker.beating(), training.marker.spending("saving"):
        save_weights(training, run)
    if training.context.rank:
        return
    write_json(run.result, result)
    print(time_words(result["time_shares"]), last_words(result, run), sep="\n", flush=True)


def test(recipe: Recipe, run: RunDir, context: Context, told: Mapping[str, Any]) -> None:
    """Test a checkpoint in this process; collective. Rank 0 leaves the numbers in result.json."""
    path, keep = Path(told["test"]), told.get("keep")
    recipe = watched(recipe, told.get("only_data", ()))
    context.marker = Marker(run.mark(context.rank))
    training = prepare(recipe, context, StopRequest())
    training.keep = bool(keep)
    load_to_test(training, path)
    with training.tested_weights():
        tested = test_loop(training, None)
    if keep:
        context.from_first(lambda: save_rows(tested.rows, Path(keep)), "--keep")
    if context.rank == 0:
        result = {"state": "completed", "world_size": context.world_size}
        if keep:
            result["kept_bytes"] = size_of(tested.rows)
        write_json(run.result, result | told_of_test(tested.numbers()))


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


def run_worker(run: RunDir, spec: RunDir) -> NoReturn:
    """Train as one of the processes that the launcher started, and leave; never returns.

    `spec` holds recipe and configuration: the run directory itself, but on other machines.
    """
    record = Record.started(int(os.environ.get("RANK", "0")))
    with logged(run, record.rank, supervised=True) as log:
        ended(record, run, log, lambda: _work_as_told(run, spec))
        # torchrun takes a code that is not 0 for a failure, and would end the others.
        failed = record.state == "failed"
        # Where a rank has failed, leaving the group might wait for it (NCCL) until it is killed.
        leave(record.exit_code if failed else 0, None if failed else Context.close)


def _work_as_told(run: RunDir, spec: RunDir) -> None:
    told = spec.read_config()
    if not told["cpu"]:
        claim_gpu()  # the recipe's own lines may touch it when they are loaded
    # The text as it was when the run was made, under the name where the user can find it.
    source = spec.recipe.read_text(encoding="utf-8")
    file = RecipeFile(told["recipe"], Path(told["recipe_path"]), source)
    recipe_type = load(file)
    recipe = configure(recipe_type, str(file.path), told["hyperparameters"])
    take_what_fits(recipe, told)
    run.mark(int(os.environ.get("RANK", "0"))).touch()  # so far a job's node was sound
    context = Context(
        cpu=told["cpu"],
        mixed_precision=recipe.mixed_precision,
        find_unused_parameters=recipe.find_unused_parameters,
        expected_world=told["world_size"],
    )
    if told.get("test"):
        test(recipe, run, context, told)
    else:
        begins = {"init_from": Path(told["init_from"])} if told.get("init_from") else {}
        work(recipe, run, context, source, profiled=bool(told.get("profile")), **begins)


def main(arguments: list[str]) -> NoReturn:
    """Run a training process: RUN_DIR and the folder of its recipe; never returns."""
    run, spec = arguments
    run_worker(RunDir(Path(run)), RunDir(Path(spec)))
