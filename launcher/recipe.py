"""The Recipe base: hyperparameters as typed fields, model and data as methods.

This module is on the floor: it never imports torch, although the methods of a recipe do.
"""

import dataclasses
import inspect
import io
import math
import re
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from launcher.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import Dataset

REQUIRED_METHODS = ("model", "train_data", "test_data", "loss", "optimizer")

# The least value of a hyperparameter, by name, so that a recipe may give its own default.
_AT_LEAST: Mapping[str, float] = {
    "epochs": 1,
    "batch_size": 1,
    "learning_rate": 0,
    "micro_batch_size": 1,
    "test_batch_size": 1,
    "num_workers": 0,
    "seed": 0,
    "log_every": 1,
}


@dataclass(frozen=True, slots=True)
class StepSums:
    """What one forward pass adds up to: sums and a count, never means.

    A mean is formed once, over all processes, as total loss / total count.
    """

    loss: "Tensor"  # (), summed over what `count` counts
    count: "int | Tensor"  # samples, tokens, pixels: what the loss is a mean over
    correct: "Tensor | None" = None  # (), how many of `count` were right; None: no accuracy


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters every recipe has; subclass it, add your own, and write five methods.

    `model`, `train_data`, `test_data`, `loss` and `optimizer` must be written, `scheduler`,
    `train_step`, `test_step` and `collate` may be. The comment behind a field is its meaning.
    """

    epochs: int = 1  # passes over the training data
    batch_size: int = 64  # samples of one optimizer step, over all processes together
    learning_rate: float = 1e-3  # step size of the optimizer
    micro_batch_size: int | None = None  # most samples in one forward pass of one process
    test_batch_size: int = 1000  # samples of one test batch, over all processes together
    num_workers: int = 0  # data loading processes for each training process
    mixed_precision: Literal["no", "bf16"] = "no"  # precision of the forward pass
    seed: int = 0  # where all randomness of the run comes from
    log_every: int = 100  # batches between two reports of the training loss

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise RecipeError(f"`{field.name}` must be a finite number, not {value}")
            least = _AT_LEAST.get(field.name)
            if least is not None and value is not None and value < least:
                raise RecipeError(f"`{field.name}` must be at least {least}, not {value}")

    def model(self) -> "nn.Module":
        """Build the model, on the CPU; weights are initialised from the seed."""
        raise NotImplementedError

    def train_data(self) -> "Dataset[Any]":
        """Return the training data: any map-style dataset."""
        raise NotImplementedError

    def test_data(self) -> "Dataset[Any]":
        """Return the test data: any map-style dataset."""
        raise NotImplementedError

    def loss(self) -> "nn.Module":
        """Return the loss function: a mean over the samples of a batch."""
        raise NotImplementedError

    def optimizer(self, model: "nn.Module") -> "Optimizer":
        """Return the optimizer of the model's parameters."""
        raise NotImplementedError

    def scheduler(self, optimizer: "Optimizer") -> "LRScheduler | None":  # noqa: ARG002  # for subclasses
        """Return a learning rate scheduler, stepped once every optimizer step, or None."""
        return None

    def train_step(self, model: "nn.Module", batch: Any, loss_fn: "nn.Module") -> StepSums:
        """Run the forward pass of one micro-batch and return its sums.

        Replace it when the loss is not `loss_fn(model(x), y)`. `count` may then be anything the
        loss is a mean over (tokens, pixels): it is summed over all processes before gradients
        are divided by it, at the cost of one more all-reduce a step.
        """
        inputs, labels = batch
        outputs = model(inputs)  # (micro-batch, classes)
        loss = loss_fn(outputs, labels) * len(labels)  # ()
        classes = outputs.dim() == 2 and not labels.is_floating_point()
        correct = (outputs.argmax(1) == labels).sum() if classes else None  # ()
        return StepSums(loss, len(labels), correct)

    def test_step(self, model: "nn.Module", batch: Any, loss_fn: "nn.Module") -> StepSums:
        """Run the forward pass of one test batch; the same as `train_step` unless replaced."""
        return self.train_step(model, batch, loss_fn)

    def collate(self, samples: list[Any]) -> Any:
        """Join samples of an ordinary dataset into a batch; torch's default unless replaced."""
        from torch.utils.data import default_collate  # noqa: PLC0415  # this is the floor: no torch

        return default_collate(samples)

    def counts_samples(self) -> bool:
        """Whether `StepSums.count` is the number of samples, so that no rank has to ask."""
        return type(self).train_step is Recipe.train_step

    def hyperparameters(self) -> dict[str, Any]:
        """Return every hyperparameter, ready for JSON."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }


class Hyperparameter(NamedTuple):
    """One field of a recipe, as `launcher recipes show` prints it."""

    name: str
    type: str
    default: Any
    meaning: str


def describe(recipe_type: type[Recipe]) -> list[Hyperparameter]:
    """Return every hyperparameter of a recipe with type, default and meaning."""
    hints = typing.get_type_hints(recipe_type)
    meanings: dict[str, str] = {}
    for ancestor in reversed(recipe_type.__mro__[:-1]):
        meanings |= _comments_behind_fields(ancestor)
    return [
        Hyperparameter(
            field.name, _type_name(hints[field.name]), _default(field), meanings.get(field.name, "")
        )
        for field in dataclasses.fields(recipe_type)
    ]


def configure(recipe_type: type[Recipe], name: str, values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from hyperparameters, given as text (`key=value`) or as JSON values.

    Raises RecipeError for an unknown key, a wrong type or a value out of range.
    """
    hints = typing.get_type_hints(recipe_type)
    known = [field.name for field in dataclasses.fields(recipe_type)]
    typed = {}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            guess = f"did you mean `{near[0]}`? " if near else ""
            raise RecipeError(
                f"recipe `{name}` has no hyperparameter `{key}`",
                hint=f"{guess}`launcher recipes show {name}` lists them",
            )
        typed[key] = _typed(key, hints[key], value)
    try:
        return recipe_type(**typed)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"recipe `{name}` refuses its hyperparameters: {error}") from error


def split_overrides(words: Iterable[str]) -> dict[str, str]:
    """Turn `key=value` words into a dictionary; raises RecipeError for any other word."""
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise RecipeError(
                f"`{word}` is not of the form key=value",
                hint="hyperparameters follow the recipe, like `epochs=10 learning_rate=3e-4`",
            )
        if key in overrides:
            raise RecipeError(f"hyperparameter `{key}` is given twice")
        overrides[key] = value
    return overrides


def missing_methods(recipe_type: type[Recipe]) -> list[str]:
    """Return the required methods that a recipe has not written."""
    return [m for m in REQUIRED_METHODS if getattr(recipe_type, m) is getattr(Recipe, m)]


def _typed(key: str, hint: Any, value: Any) -> Any:
    try:
        return _convert(hint, value)
    except ValueError as error:
        raise RecipeError(f"`{key}` must be {_type_name(hint)}, not `{value}`") from error


def _convert(hint: Any, value: Any) -> Any:
    """Convert text or a JSON value to the annotated type; raises ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value)
    if origin is Literal:
        return _convert_literal(arguments, value)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(_convert(arguments[0], part) for part in parts)
    if hint is bool:
        return _convert_bool(value)
    number = isinstance(value, str | int | float) and not isinstance(value, bool)
    if (hint in (int, float) and not number) or (hint is int and isinstance(value, float)):
        raise ValueError(value)
    return hint(value) if hint in (int, float, str, Path) else value


def _convert_union(arguments: tuple[Any, ...], value: Any) -> Any:
    if types.NoneType in arguments and (value is None or str(value).lower() == "none"):
        return None
    for argument in (a for a in arguments if a is not types.NoneType):
        try:
            return _convert(argument, value)
        except ValueError:
            continue
    raise ValueError(value)


def _convert_literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise ValueError(value)


def _convert_bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(f"{choice}" for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in typing.get_args(hint))
    if hint is types.NoneType:
        return "none"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _comments_behind_fields(cls: type) -> dict[str, str]:
    """Read `name: type = default  # meaning` lines from the source of a class."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    meanings, first_name, line = {}, "", 0
    for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline):
        if token.type == tokenize.NAME and token.start[0] != line:
            first_name, line = token.string, token.start[0]
        if token.type == tokenize.COMMENT and token.start[0] == line:
            meanings[first_name] = re.sub(r"^#+:?\s*", "", token.string)
    return meanings
