"""What a checkpoint holds, saved while training goes on, and loaded into any number of ranks."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from launcher.data.device import on_host, reserve
from launcher.errors import BadInput, RecipeError
from launcher.model.files import MODEL_PART, Shares, bytes_of, read, weights_in
from launcher.model.made import Made, refuse_other_schedule
from launcher.model.pieces import in_pieces
from launcher.model.state import ModelState, captured, cut, load_into, load_safely, why_not
from launcher.ranks.context import unwrapped
from launcher.recipe.totals import Totals
from launcher.run import checkpoint_files as files
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.rows import told_of_test
from launcher.sharding import shares
from launcher.sharding.moving import gathered
from launcher.sharding.shares import Peers, Share
from launcher.sharding.writing import Writer
from launcher.train.training import Training

T = TypeVar("T")


class Saver(Writer):
    """Saves checkpoints of a run: what they hold, and who has it, on the way to files.

    Training waits for the copy to host memory and for an earlier save that is still being written.
    """

    _reserved = _told = False  # `_told`: what training waits for with a sharded model
    _peers: Peers | None = None

    def save(self, training: Training, window: Totals) -> None:
        """Copy the state and start writing it; `window` is what was summed since the last report.

        All ranks have the same state, and rank 0 writes. Of a sharded model each has a piece of it,
        which goes to rank 0 first, or to a file of its own: that is collective.
        """
        first = training.context.rank == 0
        if not first and not training.sharded:
            return
        self.wait(training.marker)
        parts = parts_of(training)
        peers = self._their_peers(training, parts)
        began, progress = time.perf_counter(), training.progress
        name = files.name_of(progress.step, progress.epoch, before_test=training.test_is_due)
        idle = first and ((self.folder / name).exists() or not (peers is None or self.begin(name)))
        if training.context.agree(idle) if training.sharded else idle:
            return
        facts, counted = _facts(training), _counted(training, window)
        if peers:
            self.write_share(name, Share.of(parts | counted, training.context), facts, peers)
        else:
            whole = copied(training, parts)
            if first:
                model = ModelState(whole.pop(MODEL_PART), {}, {})
                self.write_whole(name, model, whole | counted, facts)
        how = "each process's share copied" if peers else "gathered on rank 0"
        self._say(training, f"a checkpoint: {how} in {time.perf_counter() - began:.1f} s")

    def _their_peers(self, training: Training, parts: Any) -> Peers | None:
        """Return who writes a checkpoint together, None where rank 0 does alone; collective."""
        asked = training.recipe.shard_checkpoints if training.sharded else False
        if not (bytes_of(parts) > shares.LARGE if asked is None else asked):
            return None
        self._peers = self._peers or Peers(training.context)
        return self._peers

    def _say(self, training: Training, what: str) -> None:
        """Say what training waits for at each checkpoint of a sharded model."""
        several = training.sharded and training.context.world_size > 1
        if several and training.context.rank == 0 and not self._told:
            self._told = True
            print(what, flush=True)

    def reserve(self, training: Training) -> None:
        """Have memory for the copies before the first of them is made; after a first step."""
        if training.context.rank == 0 and not self._reserved and not training.sharded:
            self._reserved = True
            average = training.average.weights if training.average else None
            reserve([unwrapped(training.model).state_dict(), training.optimizers.state(), average])


def copied(training: Training, tree: T) -> T:
    """Return a copy of a tree in host memory, whole; of a sharded model's on rank 0: collective."""
    if training.sharded:
        return cast("T", gathered(tree, training.context))
    return cast("T", on_host(tree))


def parts_of(training: Training) -> dict[str, Any]:
    """Return all tensors that the rest of the run depends on, by what they belong to: no copies."""
    model = captured(unwrapped(training.model))
    return {
        MODEL_PART: model.tensors,
        "others": model.others,
        "buffers": model.unsaved,
        "optimizer": training.optimizers.state(),
        "scheduler": training.schedules.state(),
        "loss": loss_state(training),
        "average": training.average.state() if training.average else None,
        "lanes": training.lanes,
    }


def _counted(training: Training, window: Totals) -> dict[str, Any]:
    """Return what else the rest of the run depends on.

    Randomness needs no state: it is derived from seed, epoch, step and sample.
    """
    progress = asdict(training.progress)
    return {
        "made": training.made,
        "progress": progress,
        "order": _order(training, progress),
        "window": asdict(window),  # summed since the last report, over all ranks
        "rows": training.trackers.rows,  # of metrics.jsonl
    }


def state_in(training: Training, folder: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: whole, or this rank's pieces where a model is in pieces.

    Tensors are mapped from its files as far as can be.
    """
    like = next((p for p in training.parameters if in_pieces(p)), None)
    state: dict[str, Any] = Shares(folder).filled(load_safely(folder / files.TRAINING), like)
    return state if MODEL_PART in state else state | {MODEL_PART: read(folder / files.MODEL)}


def look_inside(training: Training, checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with the weights in a whole checkpoint, None where they are numbers."""
    trained = {n for n, p in unwrapped(training.model).named_parameters() if p.requires_grad}
    for name, value in weights_in(checkpoint.path):
        if name in trained.difference(training.odd) and not value.isfinite().all():
            return f"the weights `{name}` are not finite"
    return None


def restore(training: Training, checkpoint: Checkpoint) -> int:
    """Load a checkpoint into this rank; returns how many rows of metrics.jsonl belong to it.

    Raises BadInput for a checkpoint that holds code or does not fit the recipe.
    """
    state = state_in(training, checkpoint.path)
    made = state.get("made") or _made_of_old(training, state)
    refuse_other_schedule(made, training.made, training.schedules)
    _refuse_other_order(training, state)
    try:
        load_model(training, state)
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


def load_model(training: Training, state: dict[str, Any]) -> None:
    """Load the weights and buffers of a checkpoint's `state` into model and loss.

    Raises ValueError where they do not fit.
    """
    told = ModelState(state[MODEL_PART], state.get("others", {}), state["buffers"])
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
    state = state_in(training, folder)
    load_model(training, state)
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
