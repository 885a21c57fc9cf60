"""The Recipe base: hyperparameters as typed fields, model and data as methods.

This module is on the floor: it never imports torch, although the methods of a recipe do.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from launcher.errors import RecipeError
from launcher.recipe import untrained
from launcher.recipe.groups import (
    AT_LEAST,
    Checkpoints,
    Data,
    Length,
    Optimisation,
    Precision,
    Tests,
    Watch,
)
from launcher.recipe.totals import Totals
from launcher.recipe.values import is_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Generator, Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import Dataset

    from launcher.data.streams import Stream
    from launcher.model.schedules import Schedule, Steps

    Indices = Sequence[int] | np.typing.NDArray[Any] | Tensor

IGNORED = -100  # labels that torch leaves out of a mean where nothing else is said
REQUIRED_METHODS = ("model", "train_data", "test_data", "loss", "optimizer")  # by most recipes


@dataclass(frozen=True, slots=True)
class StepSums:
    """What one forward pass adds up to: sums and a count, never means.

    A mean is formed once, over all processes, as total loss / total count.
    """

    loss: "Tensor"  # (), summed over what `count` counts, when multiplied by `scale`
    count: "int | Tensor"  # samples, tokens, pixels: what the loss is a mean over
    correct: "Tensor | None" = None  # (), how many of `count` were right; None: no accuracy
    scale: "float | Tensor" = 1.0  # the number of samples where `loss` is their mean
    # More sums, of any shape, by name: `metrics` gets what they add up to over all processes.
    sums: "Mapping[str, Tensor]" = dataclasses.field(default_factory=dict)
    # Of tests alone, rows of each sample by name: a tensor (batch, …), or a list of one tensor
    # (any, …) a sample. `test_metrics` gets all of them, in the order of the dataset.
    kept: "Mapping[str, Tensor | Sequence[Tensor]]" = dataclasses.field(default_factory=dict)
    # Tensors are kept until the next report, so none of them may be written to later.


@dataclass(frozen=True)
class Recipe(Watch, Checkpoints, Tests, Optimisation, Precision, Data, Length):
    """Hyperparameters every recipe has; subclass it, add your own, and write five methods.

    `model`, `train_data`, `test_data`, `loss` and `optimizer`; `test_data` may be left out where
    nothing is to be tested, and `loss` where `train_step` is written and needs none. `scheduler`,
    `train_step`, `test_step`, `metrics`, `test_metrics`, `after_test`, `order`, `partners`,
    `shards`, `collate` and `test_collate` may be written, too. The
    hyperparameters of all recipes stand in `launcher.recipe.groups` (a dataclass has the fields of
    its last base first); the comment behind a field is its meaning.
    """

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        untrained.defined(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple | list) else [value]:
                if isinstance(part, float) and not math.isfinite(part):
                    raise RecipeError(f"`{field.name}` must be a finite number, not {part}")
            least = AT_LEAST.get(field.name)
            if isinstance(value, int | float) and least is not None and value < least:
                raise RecipeError(f"`{field.name}` must be at least {least}, not {value}")
        if isinstance(self.log_every, str) and not is_seconds(self.log_every):
            hint = "a number of batches, or of seconds: log_every=10s"
            raise RecipeError(f"`log_every` is `{self.log_every}`", hint=hint)
        if self.best_by in ("", "-", "loss", "-accuracy"):
            raise RecipeError(
                f"`best_by` is `{self.best_by}`",
                hint="name a metric: of which more is better, or with a minus, like -loss, less",
            )

    _fits: ClassVar[int | None] = None  # what was found, of an instance whose size is "auto"

    @property
    def most_at_once(self) -> int | None:
        """Most samples in one forward pass of one process, None where all come at once."""
        return self._fits if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def log_every_s(self) -> float | None:
        """Seconds between two reports of training, None where batches are counted."""
        return float(self.log_every[:-1]) if isinstance(self.log_every, str) else None

    def model(self) -> "nn.Module":
        """Build the model, on the CPU; weights are initialised from the seed."""
        raise NotImplementedError

    def train_data(self) -> "Dataset[Any] | Stream":
        """Return the training data: any map-style dataset, or a Stream."""
        raise NotImplementedError

    def test_data(self) -> "Dataset[Any] | Stream":
        """Return the test data: any map-style dataset, or a Stream with sizes.

        Left out, nothing is tested.
        """
        raise NotImplementedError

    def loss(self) -> "nn.Module":
        """Return the loss function: a plain mean over the samples of a batch.

        CrossEntropyLoss and NLLLoss may leave out labels by an `ignore_index` that is given, and
        is not torch's default: the mean is then over the labels that are left, of all processes.
        """
        raise NotImplementedError

    # Typed so that a recipe may take one or two arguments.
    def optimizer(
        self, *given: Any, **named: Any
    ) -> "Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer]":
        """Return the optimizer of the model's parameters: `optimizer(self, model)`.

        It is `optimizer(self, model, loss)` where the loss has parameters, too. Several optimizers
        in a list are stepped together; those in a dict, by name, have turns in `train_step`.
        """
        raise NotImplementedError

    def scheduler(
        self,
        optimizer: Any,  # noqa: ARG002  # for subclasses, as `optimizer` has returned it
        steps: "Steps",  # noqa: ARG002
    ) -> "Schedule | Sequence[Schedule] | Mapping[str, Schedule] | None":
        """Return a schedule of the learning rate, several, or None.

        `steps` is how many optimizer steps the run has, and `steps.per_epoch` how many an epoch.
        """
        return None

    def shards(self, model: "nn.Module") -> "Sequence[nn.Module] | None":  # noqa: ARG002  # for subclasses
        """Return the modules whose weights are gathered one at a time with `shard=true`.

        Each is used by calling it. None: the members of the outermost ModuleLists; all that is in
        no such module is gathered while the model itself is called.
        """
        return None

    def train_step(self, model: "nn.Module", batch: Any, loss_fn: "nn.Module") -> StepSums:
        """Run the forward pass of one micro-batch and return its sums.

        `model` is in DDP where there are several processes: call it, and reach into it only
        through `launcher.unwrapped(model)`.

        This one's `loss` is a mean, and `scale` the number it is a mean over.

        Replace it when the loss is not `loss_fn(model(x), y)`. `count` may then be anything the
        loss is a mean over (tokens, pixels): it is summed over all processes before gradients
        are divided by it, at the cost of one more all-reduce a step.

        Where `optimizer` returns a dict it yields (name, StepSums) for each turn instead, and gets
        the model that is inside DDP; annotate it with `Any`, and write `test_step`.
        """
        inputs, labels = _pair(batch)
        outputs = model(inputs)  # (micro-batch, classes)
        loss = loss_fn(outputs, labels)  # (), a mean
        classes = outputs.dim() == 2 and not labels.is_floating_point()
        right = outputs.argmax(1) == labels if classes else None  # (micro-batch,)
        ignored = getattr(loss_fn, "ignore_index", IGNORED)
        if ignored == IGNORED or labels.is_floating_point():
            correct = right.sum() if right is not None else None
            return StepSums(loss, len(labels), correct, scale=len(labels))
        counted = labels != ignored
        count = counted.sum()
        loss = loss.where(count > 0, 0)  # the mean of nothing is no number
        correct = (right & counted).sum() if right is not None else None
        return StepSums(loss, count, correct, scale=count.double())

    def test_step(self, model: "nn.Module", batch: Any, loss_fn: "nn.Module") -> StepSums:
        """Run the forward pass of one test batch; the same as `train_step` unless replaced."""
        return self.train_step(model, batch, loss_fn)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:  # noqa: ARG002  # for subclasses
        """Return numbers by name, made of sums over all processes; none unless replaced.

        Called on every process alike, at reports (`totals` are those of training since the last
        one) and tests. `totals.loss`, `totals.accuracy` and `totals.count` are there, and
        `totals["name"]` is what the `sums` of that name add up to.
        """
        return {}

    def test_metrics(
        self,
        totals: Totals,  # noqa: ARG002  # for subclasses
        kept: "Mapping[str, Any]",  # noqa: ARG002
    ) -> Mapping[str, Any]:
        """Return more numbers by name after a test: what is no function of sums.

        Called on rank 0 alone, while the others wait, so it may not communicate. `kept` has what
        `test_step` returned as `kept`, each test sample once, in the order of the dataset, on the
        host: a tensor (samples, …), or a list of one tensor a sample.
        """
        return {}

    def after_test(self, model: "nn.Module", report: Any, folder: Path) -> None:
        """Leave files of a test in a folder, like images: the run keeps it; nothing by default.

        Called on rank 0 alone, while the others wait, so it may not communicate. `model` is the
        one that was tested, without DDP, in eval mode, and no gradients are recorded. `report`
        has `step`, `epoch`, `loss`, `accuracy` and `metrics`.

        With `shard=true` it is called on all ranks, which call the model alike; the folder of rank
        0 is the one that is kept.
        """

    def order(self, epoch: int, generator: "Generator") -> "Indices | None":  # noqa: ARG002  # for subclasses
        """Return an epoch's order: any indices into `train_data`, repeated or left out; or None.

        Called on every rank, and alike: draw from `generator` (on the CPU), which follows from the
        seed and the epoch. It has the same length in every epoch unless `steps` is given. A sample
        that comes again draws other random numbers. None is torch's order, each sample once.
        """
        return None

    def partners(self, size: int, random: "np.random.Generator") -> "Indices | None":  # noqa: ARG002  # for subclasses
        """Return for each of a global batch's `size` places another one: a permutation.

        `collate` then gets (sample, partner) pairs, for MixUp and CutMix: the same ones for any
        number of processes. Tests have none. None, always: samples come alone.
        """
        return None

    # Any further arguments: for the type checker, a method that takes `random` is no other one.
    def collate(self, samples: list[Any], *_: Any, **__: Any) -> Any:
        """Join samples of an ordinary dataset into a batch to train on; torch's default.

        One that draws random numbers takes them from `random`, a `BatchRandom`:
        `collate(self, samples, *, random)`. What it draws otherwise needs one process and no
        micro-batches: it sees no more. With `partners` its samples are pairs.
        """
        from torch.utils.data import default_collate  # noqa: PLC0415  # this is the floor: no torch

        return default_collate(samples)

    def test_collate(self, samples: list[Any], *_: Any, **__: Any) -> Any:
        """Join samples into a test batch; torch's default, whatever `collate` does.

        `test_collate = collate` has tests join them as training does.
        """
        return Recipe.collate(self, samples)

    def counts_samples(self, *, test: bool = False) -> bool:
        """Whether `StepSums` are those of the base: of samples, but where labels are left out."""
        methods = ["train_step", "test_step"] if test else ["train_step"]
        return all(is_base(self, method) for method in methods)

    def hyperparameters(self) -> dict[str, Any]:
        """Return every hyperparameter, ready for JSON."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.init
        }


def _pair(batch: Any) -> tuple[Any, Any]:
    """Return inputs and labels; raises RecipeError for a batch that is something else."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"a {type(batch).__name__}"
    if isinstance(batch, tuple | list):
        what += f" of {len(batch)}"
    elif keys := list(getattr(batch, "keys", list)()):
        what += f" of {', '.join(map(str, keys[:5]))}"
    raise RecipeError(
        f"a batch is {what}, and the base `train_step` takes (inputs, labels)",
        hint="write `train_step(self, model, batch, loss_fn)`: it takes any batch",
    )


def is_base(recipe: Recipe | type[Recipe], method: str) -> bool:
    """Whether a recipe has left a method as it is in the base."""
    kind = recipe if isinstance(recipe, type) else type(recipe)
    return getattr(kind, method) is getattr(Recipe, method)


def missing_methods(recipe_type: type[Recipe]) -> list[str]:
    """Return the methods that a recipe has not written, and without which it cannot be trained.

    The base `train_step` calls a loss; one of the recipe's own may need none.
    """
    optional = {"test_data"} | (set() if is_base(recipe_type, "train_step") else {"loss"})
    return [m for m in REQUIRED_METHODS if is_base(recipe_type, m) and m not in optional]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
