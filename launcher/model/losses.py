"""What a loss is a mean over, and whether its shapes fit: what torch does not tell.

The base `train_step` takes the loss for a mean over samples. A mean that leaves labels out, or is
weighted by class, divides by something else, which differs from shard to shard.
"""

import ast
import inspect
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from launcher.errors import RecipeError, TrainingFailed
from launcher.recipe.base import IGNORED, Recipe

_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_CLASS = (functional.cross_entropy, functional.nll_loss)
_ELEMENTWISE = (
    *(functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss),
    *(functional.poisson_nll_loss, functional.soft_margin_loss, functional.kl_div),
)
_WRITE = "write `train_step` and return StepSums(loss summed, what it is a mean over)"


class NoLoss(nn.Module):
    """The loss of a recipe that has left it out: what calls it is told so."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Raise RecipeError."""
        raise RecipeError(
            "the recipe has no `loss`, and a step calls it",
            hint="write the method `loss`, or leave `loss_fn` alone",
        )


def leaves_out(loss_fn: nn.Module) -> bool:
    """Whether a loss says itself which labels it leaves out, so that they can be counted."""
    return isinstance(loss_fn, _LOSSES) and loss_fn.ignore_index != IGNORED


def refuse_other_means(loss_fn: nn.Module) -> None:
    """Raise RecipeError where a loss is no mean that the base `train_step` can count."""
    reduction = getattr(loss_fn, "reduction", "mean")
    by_class = isinstance(loss_fn, _LOSSES) and loss_fn.weight is not None
    if reduction != "mean" or by_class:
        what = "is weighted by class" if reduction == "mean" else f"has reduction `{reduction}`"
        raise RecipeError(f"`loss` {what}, so it is not a mean over samples", hint=_WRITE)


class LossWatch:
    """Looks into a loss, whoever wrote it, at its first call in each epoch and each test."""

    def __init__(self, recipe: Recipe, loss_fn: nn.Module) -> None:
        self._recipe, self._loss_fn, self._inner = recipe, loss_fn, loss_fn.forward
        self.by_default = False  # labels of -100 are left out, and nobody has said so

    def look(self, *, test: bool = False) -> None:
        """Look at the next call; raises RecipeError in it where its mean or shapes are wrong."""
        base = self._recipe.counts_samples(test=test)

        def forward(*given: Any, **named: Any) -> Any:
            del self._loss_fn.forward
            with _Calls(self, counted=leaves_out(self._loss_fn)) if base else _Shapes():
                return self._inner(*given, **named)

        self._loss_fn.forward = forward


class _Shapes(TorchFunctionMode):
    """Sees torch's functions as they are called; a broadcast among elements is an error."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (*_ELEMENTWISE, *_BY_CLASS):
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            self.look(func, given.arguments)
        return func(*args, **(kwargs or {}))

    def look(self, func: Any, given: dict[str, Any]) -> None:
        if func in _ELEMENTWISE:
            refuse_broadcast(tuple(given["input"].shape), tuple(given["target"].shape))


class _Calls(_Shapes):
    """Sees, too, which labels a mean leaves out."""

    def __init__(self, watch: LossWatch, *, counted: bool) -> None:
        super().__init__()
        self._watch, self._counted = watch, counted

    def look(self, func: Any, given: dict[str, Any]) -> None:
        super().look(func, given)
        if given["reduction"] != "mean":
            return
        if given.get("weight") is not None:
            raise RecipeError("`loss` is weighted inside: it is no mean over samples", hint=_WRITE)
        if given.get("ignore_index") == IGNORED:
            self._watch.by_default = True
        elif func in _BY_CLASS and not self._counted:
            what = f"`loss` leaves out labels of {given['ignore_index']} somewhere inside"
            raise RecipeError(f"{what}: it is no mean over samples", hint=_WRITE)


def refuse_broadcast(outputs: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Raise RecipeError where a loss compares each output with the labels of other samples."""
    try:
        together = np.prod(np.broadcast_shapes(outputs, labels))
    except ValueError:
        return  # torch says so itself
    if together != np.prod(outputs) or together != np.prod(labels):
        raise RecipeError(
            f"the loss gets outputs of shape {outputs} and labels of shape {labels}: each would be "
            "compared with those of other samples",
            hint="give both the same shape, like outputs.squeeze(1) or labels.unsqueeze(1)",
        )


def refuse_warned_broadcasts() -> None:
    """Have torch's own warning of such shapes end the run, wherever it comes from."""
    show = warnings.showwarning
    if show.__module__ == __name__:
        return
    text = r"Using a target size \(torch\.Size\((.*?)\)\).* input size \(torch\.Size\((.*?)\)\)"

    def shown(message: Warning | str, *where: Any, **more: Any) -> None:
        if found := re.match(text, str(message)):
            labels, outputs = (tuple(ast.literal_eval(shape)) for shape in found.groups())
            refuse_broadcast(outputs, labels)
        else:
            show(message, *where, **more)

    warnings.filterwarnings("always", "Using a target size")
    warnings.showwarning = shown


def labels_left_out(batch: Any) -> int:
    """Return how many labels of a batch are those that torch leaves out if nothing is said."""
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    labels = batch[1] if pair else None
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        return 0
    return int((labels == IGNORED).sum())


def refuse_left_out(number: int, step: int) -> None:
    """Raise an error, RecipeError at first, where such labels have been seen by a mean."""
    if number:
        kind = RecipeError if step <= 1 else TrainingFailed
        raise kind(
            f"{number} labels are {IGNORED}, seen after step {step}: the loss leaves them out of "
            "its mean, which is no mean over samples then",
            hint="mark them by another number and say which, like "
            f"CrossEntropyLoss(ignore_index=255): it is then counted what is left. Or {_WRITE}",
        )
