"""What a forward pass keeps for backward, and what both compute, of tensors that have no values."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from launcher.data.randomness import undisturbed
from launcher.model.returned import expect_sums
from launcher.recipe.base import Recipe
from launcher.sharding import building


class Counted(NamedTuple):
    """What a forward and backward pass of so many samples takes."""

    samples: int
    saved: int  # bytes kept for backward, but for weights and buffers
    flops: int


class Parts(NamedTuple):
    """A model, its loss and a batch; in a `mode` in which their tensors have no values, or none."""

    model: nn.Module
    loss_fn: nn.Module
    batch: Any
    mode: FakeTensorMode | None


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """Return a recipe with other hyperparameters."""
    other = copy(recipe)
    for name, value in values.items():
        object.__setattr__(other, name, value)
    return other


def without_values(
    model: Callable[[], nn.Module], loss_fn: Callable[[], nn.Module], batch: Any
) -> Parts:
    """Build what is trained on the meta device, to be used as on the CPU."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), building.without_values(model)
    if made is None:
        raise RuntimeError("the meta device cannot build the model")

    def on_cpu(tensor: Tensor) -> Tensor:
        other = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        weight = isinstance(tensor, nn.Parameter)
        return nn.Parameter(other, tensor.requires_grad) if weight else other

    with mode, undisturbed():
        for kind in ("_parameters", "_buffers"):
            building.replace(building.places_of(made, kind), on_cpu)
        loss = loss_fn()
    return Parts(made, loss, pytree.tree_map_only(Tensor, mode.from_tensor, batch), mode)


def with_values(
    model: Callable[[], nn.Module], loss_fn: Callable[[], nn.Module], batch: Any
) -> Parts:
    """Build what is trained, on the CPU."""
    with undisturbed():
        return Parts(model(), loss_fn(), batch, None)


def counted(recipe: Recipe, parts: Parts, samples: int) -> Counted:
    """Run a forward and a backward pass of a micro-batch, and count."""
    model, kept = parts.model, dict[int, tuple[int, Any]]()
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes(), storage  # held: no other gets its place
        return tensor

    counter = FlopCounterMode(display=False)
    half = recipe.mixed_precision == "bf16"
    with parts.mode or nullcontext(), counter, undisturbed():
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            _autocast() if half else nullcontext(),
        ):
            sums = expect_sums(recipe.train_step(model, parts.batch, parts.loss_fn), "train_step")
        saved = sum(size for size, _ in kept.values())
        sums.loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    return Counted(samples, saved, int(counter.get_total_flops()))


def _autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)
