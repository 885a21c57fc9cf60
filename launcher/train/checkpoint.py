"""What a checkpoint holds, saved while training goes on, and loaded into any number of ranks."""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open

from launcher.data.device import on_host, reserve
from launcher.errors import BadInput, RecipeError
from launcher.model.made import Made, refuse_other_schedule
from launcher.model.state import (
    ModelState,
    captured,
    cut,
    load_into,
    load_safely,
    read,
    why_not,
)
from launcher.ranks.context import unwrapped
from launcher.recipe.totals import Totals
from launcher.run import checkpoint_files as files
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.directory import RunDir
from launcher.run.mark import Marker
from launcher.run.rows import told_of_test
from launcher.sharding.moving import gathered
from launcher.train.training import Training

T = TypeVar("T")

MOST_FAILURES = 3  # failed saves in a row that stop a run


class Saver:
    """Saves checkpoints of a run, in a thread of rank 0, one at a time.

    Training waits for the copy to host memory and for an earlier save that is still being
    written. A failed save is a loud warning; MOST_FAILURES in a row are for the caller to act on.
    """

    def __init__(
        self, run: RunDir, keep_last: int, keep_best: int, best_by: str | None = None
    ) -> None:
        self.folder = run.checkpoints
        self.kept = keep_last, keep_best, best_by
        self.failures = 0  # in a row
        self.last_error = ""
        self._reserved = False
        self._proven = False  # a first save has been seen to load without running code
        self._told = False  # how long it takes to gather a sharded model
        self._thread: threading.Thread | None = None

    def save(self, training: Training, window: Totals) -> None:
        """Copy the state and start writing it; `window` is what was summed since the last report.

        Only rank 0 writes. All ranks have the same state; of a sharded model each has a piece of
        it, which goes to rank 0 first: that is collective.
        """
        first = training.context.rank == 0
        if not first and not training.sharded:
            return
        self.wait(training.marker)
        progress, before_test = training.progress, training.test_is_due
        name = files.name_of(progress.step, progress.epoch, before_test=before_test)
        there = first and (self.folder / name).exists()
        if training.context.agree(there) if training.sharded else there:
            return
        began = time.perf_counter()
        model = copied(training, captured(unwrapped(training.model)))
        state = state_of(training, window)
        if not first:
            return
        self._say_gathered(training, time.perf_counter() - began)
        state |= {"others": model.others, "buffers": model.unsaved}
        facts = _facts(training)
        self._thread = threading.Thread(
            target=self._write, args=(name, model, state, facts), name="checkpoint"
        )
        self._thread.start()

    def _say_gathered(self, training: Training, seconds: float) -> None:
        """Say what training waits for at each checkpoint of a sharded model."""
        if training.sharded and training.context.world_size > 1 and not self._told:
            self._told = True
            print(f"a checkpoint: gathered on rank 0 in {seconds:.1f} s", flush=True)

    def reserve(self, training: Training) -> None:
        """Have memory for the copies before the first of them is made; after a first step."""
        if training.context.rank == 0 and not self._reserved and not training.sharded:
            self._reserved = True
            average = training.average.weights if training.average else None
            reserve([unwrapped(training.model).state_dict(), training.optimizers.state(), average])

    def wait(self, marker: Marker) -> None:
        """Wait until the save in flight has ended."""
        if self._thread:
            with marker.beating():
                self._thread.join()
            self._thread = None

    def _write(
        self, name: str, model: ModelState, state: dict[str, Any], facts: Mapping[str, Any]
    ) -> None:
        def write_files(folder: Path) -> None:
            model.write(folder / files.MODEL)
            with (folder / files.TRAINING).open("wb") as file:
                torch.save(state, file)
            if not self._proven:
                load_safely(folder / files.TRAINING)
                self._proven = True

        _yield_to_training()
        try:
            files.write(self.folder, name, write_files, facts)
            files.prune(self.folder, *self.kept)
            self.failures = 0
        except Exception as error:  # noqa: BLE001  # torch and safetensors raise their own kinds
            self.failures += 1
            self.last_error = _reason(error)
            print(
                f"WARNING: checkpoint {name} could not be written ({self.last_error}); "
                f"training goes on, {self.failures} of {MOST_FAILURES} failures in a row",
                flush=True,
            )


def copied(training: Training, tree: T) -> T:
    """Return a copy of a tree in host memory, whole; of a sharded model's on rank 0: collective."""
    if training.sharded:
        return cast("T", gathered(tree, training.context))
    return cast("T", on_host(tree))


def state_of(training: Training, window: Totals) -> dict[str, Any]:
    """Return everything but the model that the rest of the run depends on, as `copied` does.

    Randomness needs no state: it is derived from seed, epoch, step and sample.
    """
    copy = partial(copied, training)
    return {
        "made": training.made,
        "optimizer": copy(training.optimizers.state()),
        "scheduler": copy(training.schedules.state()),
        "loss": copy(loss_state(training)),
        "average": copy(training.average.state()) if training.average else None,
        "progress": asdict(training.progress),
        "order": _order(training, asdict(training.progress)),
        "lanes": copy(training.lanes),
        "window": asdict(window),  # summed since the last report, over all ranks
        "rows": training.trackers.rows,  # of metrics.jsonl
    }


def look_inside(training: Training, checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with the weights in a whole checkpoint, None where they are numbers."""
    trained = {n for n, p in unwrapped(training.model).named_parameters() if p.requires_grad}
    with safe_open(checkpoint.path / files.MODEL, "pt") as file:
        for name in trained.difference(training.odd).intersection(file.keys()):
            if not file.get_tensor(name).isfinite().all():
                return f"the weights `{name}` are not finite"
    return None


def restore(training: Training, checkpoint: Checkpoint) -> int:
    """Load a checkpoint into this rank; returns how many rows of metrics.jsonl belong to it.

    Raises BadInput for a checkpoint that holds code or does not fit the recipe.
    """
    state = load_safely(checkpoint.path / files.TRAINING)
    made = state.get("made") or _made_of_old(training, state)
    refuse_other_schedule(made, training.made, training.schedules)
    _refuse_other_order(training, state)
    try:
        load_model(training, checkpoint.path, state)
        training.optimizers.load(_several(state["optimizer"]), made, training.made)
    except ValueError as error:
        raise BadInput(
            f"checkpoint {checkpoint.path} does not fit the recipe: {error}",
            hint="has the recipe's model or optimizer changed?",
        ) from error
    if training.average:
        training.average.load(state.get("average"), state["progress"]["step"])
    training.schedules.load(on_host(_several(state["scheduler"])))
    for field, value in state["progress"].items():
        setattr(training.progress, field, value)
    if not training.progress.steps_into_epoch:  # one of old does not tell, and was saved tested
        training.progress.tested = state["progress"].get("tested", training.progress.step)
    at = training.progress.epoch, training.progress.steps_into_epoch
    training.train_loader.resume(*at, state.get("lanes", {}))
    rank, world_size = training.context.rank, training.context.world_size
    training.sums.restore(Totals(**state["window"]), rank=rank, world_size=world_size)
    return int(state["rows"])


def _refuse_other_order(training: Training, state: dict[str, Any]) -> None:
    """Raise RecipeError where what is left of an epoch would be other samples than before."""
    progress = state["progress"]
    now = _order(training, progress)
    before = state.get("order", now)
    changes = [
        f"{name} was {before.get(name, 'none')} and is {now.get(name, 'none')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if progress["steps_into_epoch"] and changes:
        epochs = progress["epoch"] + 1
        raise RecipeError(
            f"the checkpoint is in the middle of an epoch, after {progress['samples_into_epoch']} "
            f"samples, and samples would be skipped or repeated: {', '.join(changes)}",
            hint=f"without the change, `epochs={epochs}` ends the epoch; then change it",
        )


def _order(training: Training, progress: dict[str, Any]) -> dict[str, Any]:
    """Return what the order of samples depends on at a point of the run."""
    begun = progress["epoch"] if progress["steps_into_epoch"] else None
    return training.train_loader.sampler.order(begun)


def _made_of_old(training: Training, state: dict[str, Any]) -> Made:
    """Return what a checkpoint of old was made with, as far as it tells: no schedule moved it."""
    if list(training.schedules):
        return training.made
    return training.made | {"groups": state["optimizer"]["param_groups"]}


def _several(saved: Any) -> list[dict[str, Any]]:
    """Return the states of several, of which checkpoints of old have one or none."""
    return saved if isinstance(saved, list) else [] if saved is None else [saved]


def load_model(training: Training, folder: Path, state: dict[str, Any]) -> None:
    """Load the weights and buffers of a checkpoint, and of its `state`, into model and loss.

    Raises ValueError where they do not fit.
    """
    told = ModelState(read(folder / files.MODEL), state.get("others", {}), state["buffers"])
    load_into(unwrapped(training.model), told)
    if training.loss_parameters and state.get("loss"):
        load_into(training.loss_fn, ModelState({}, *state["loss"]))


def loss_state(training: Training) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the state of a loss that is trained, None for any other: that is the recipe's."""
    if not training.loss_parameters:
        return None
    state = captured(training.loss_fn)
    return state.tensors | state.others, state.unsaved


def load_to_test(training: Training, folder: Path) -> None:
    """Load of a checkpoint what was tested when it was made."""
    state = load_safely(folder / files.TRAINING)
    load_model(training, folder, state)
    if training.average:
        training.average.load(state.get("average"), state["progress"]["step"])


def refuse_unsaveable(training: Training) -> None:
    """Raise RecipeError for what a checkpoint could not keep, without saving anything.

    Tensors are cut down to one number: their kind decides, not their size.
    """
    model = unwrapped(training.model)
    state = cut(captured(model))
    parts = {f"`{name}` of the model": value for name, value in state.others.items()}
    parts |= {f"the buffer `{name}`": buffer for name, buffer in state.unsaved.items()}
    parts |= {"the state of the optimizer": cut(training.optimizers.state())}
    parts |= {"the state of the schedule": cut(training.schedules.state())}
    parts |= {"the state of the loss": cut(loss_state(training))}
    parts |= {"the state of the Stream's iterators": cut(training.train_loader.lanes)}
    if odd := training.optimizers.odd_states():
        raise RecipeError(
            f"an optimizer keeps `{odd[0]}` in pieces that belong to no weight's shape: a "
            "checkpoint cannot hold it",
            hint="use another optimizer, or leave `shard` out",
        )
    for what, value in parts.items():
        if why := why_not(value):
            raise RecipeError(
                f"{what} cannot be kept in a checkpoint: {why}",
                hint="tensors, arrays, numbers and text can, and lists and dicts of them",
            )


def refuse_unloadable(training: Training) -> None:
    """Raise RecipeError where a model does not take back its own state."""
    model = unwrapped(training.model)
    try:
        load_into(model, captured(model))
    except Exception as error:
        raise RecipeError(
            f"the model's own state cannot be loaded into it: {error}",
            hint="a checkpoint could be saved, but no run could go on from it",
        ) from error


def _facts(training: Training) -> dict[str, Any]:
    progress = training.progress
    tested = progress.test if progress.tested == progress.step else None
    return {**told_of_test(tested), "world_size": training.context.world_size}


def _yield_to_training() -> None:
    """Let this thread compute only when training leaves a core free (Linux: a nice of its own)."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _reason(error: BaseException) -> str:
    """Return what went wrong: torch covers the file's own error with "unexpected pos"."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return f"{type(cause or error).__name__}: {cause or error}"
