"""A model in pieces: built whole in rank 0's host memory, and handed out tensor by tensor."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.data.device import tensors_in
from launcher.errors import RecipeError, TrainingFailed
from launcher.model.pieces import in_pieces, of_piece
from launcher.ranks.context import Context
from launcher.recipe.base import Recipe
from launcher.sharding.groups import members, refuse_old_torch, refuse_unshardable
from launcher.sharding.moving import scattered
from launcher.sharding.together import Together

_META = torch.device("meta")


def built(context: Context, make: Callable[[], nn.Module]) -> nn.Module:
    """Return what `make` makes: on rank 0 in host memory, on others without values; collective.

    Those build on the meta device. Where that cannot be done, one process of a machine after the
    other builds on the CPU.
    """
    model = context.turn(make, mine=context.rank == 0)
    if context.rank:
        model = without_values(make)
    for number in range(1 + max(context.gather(context.local_rank if model is None else -1))):
        mine = model is None and context.local_rank == number
        model = context.turn(lambda: _emptied(make()), mine=mine) or model
    assert model is not None
    _refuse_difference(context, model)
    return model


def without_values(make: Callable[[], nn.Module]) -> nn.Module | None:
    """Return a model whose weights and buffers have no values, None where that cannot be made."""
    try:
        with _META:
            model = make()
    except Exception:  # noqa: BLE001  # whatever needs values; rank 0 has built it without an error
        return None
    held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    lost = any(t.is_meta and id(t) not in held for t in tensors_in(model))
    odd = any(buffer.layout != torch.strided for buffer in model.buffers())
    return None if lost or odd else _emptied(model)


def _emptied(model: nn.Module) -> nn.Module:
    """Return a model whose parameters and buffers have lost their values, and nothing else."""
    replace(places_of(model, "_parameters"), _without_value)
    replace(places_of(model, "_buffers"), _without_value)
    return model


def places_of(model: nn.Module, kind: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Give all places of a model's parameters, or buffers: what is tied has several."""
    for module in model.modules():
        held = getattr(module, kind)
        yield from ((held, name) for name, tensor in held.items() if tensor is not None)


def replace(places: Iterator[tuple[dict[str, Any], str]], make: Callable[[Tensor], Tensor]) -> None:
    """Have other tensors in the place of some, one for each."""
    known: dict[int, tuple[Tensor, Tensor]] = {}  # and what it was: its id is not used again
    for held, name in list(places):
        tensor = held[name]
        if tensor.layout == torch.strided:
            known.setdefault(id(tensor), (tensor, make(tensor)))
            held[name] = known[id(tensor)][1]


def _without_value(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_META)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _refuse_difference(context: Context, model: nn.Module) -> None:
    """Raise TrainingFailed where ranks have not built the same; collective."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    mine = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    everyones = context.gather(mine)
    if odd := [rank for rank, theirs in enumerate(everyones) if theirs != everyones[0]]:
        raise TrainingFailed(
            f"`model` returned another model on rank {odd[0]} than on rank 0",
            hint="it is built from hyperparameters and seed alone, the same on all ranks",
        )


def sharded(model: nn.Module, recipe: Recipe, context: Context) -> nn.Module:
    """Return a model that was `built`, on the device and in pieces; collective.

    Raises RecipeError for what cannot be sharded.
    """
    refuse_old_torch()
    refuse_unshardable(recipe, model)
    apart = members(recipe, model)
    named = dict(model.named_parameters())
    noted = {name: dict(vars(parameter)) for name, parameter in named.items()}  # by the recipe
    replace(places_of(model, "_parameters"), _without_value)
    _refuse_copies(model, named, context)
    _wrap(model, apart, recipe, context)
    with torch.no_grad():
        for name, parameter in list(model.named_parameters()):
            _hand_out(parameter, named.pop(name), context)
            vars(parameter).update(noted[name])
        _hand_out_buffers(model, context)
    context.together = Together(model, apart, context.patience_s)
    return model


def _refuse_copies(model: nn.Module, named: Mapping[str, nn.Parameter], context: Context) -> None:
    """Raise RecipeError where a module holds a weight that was replaced; collective."""
    names = {id(parameter): name for name, parameter in named.items()}
    found = [names[id(tensor)] for tensor in tensors_in(model) if id(tensor) in names]
    if held := context.gather(found)[0]:  # on other ranks all weights have been replaced before
        raise RecipeError(
            f"a module keeps `{held[0]}` in a list, a dict or the like, and with `shard` it is "
            "another tensor each time it is gathered",
            hint="use an nn.ParameterList or nn.ParameterDict, or the weight by its own name",
        )


def _wrap(
    model: nn.Module, apart: Mapping[str, nn.Module], recipe: Recipe, context: Context
) -> None:
    """Have torch shard a model without values, each of some modules by itself; collective."""
    from torch.distributed import fsdp  # noqa: PLC0415  # nobody else needs it: slow imports
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415

    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # exported dynamically
        dist.init_process_group(store=store, rank=0, world_size=1)
    half = torch.bfloat16 if recipe.mixed_precision == "bf16" else None
    exact = torch.float32 if half else None
    wrap = partial(
        fsdp.fully_shard,
        mesh=init_device_mesh(context.device.type, (context.world_size,)),
        reshard_after_forward=True,  # the model's own weights, too
        ignored_params={p for p in model.parameters() if p.dim() == 0},  # nothing to cut
    )
    for module in reversed([*apart.values()]):  # inner ones first
        wrap(module, mp_policy=fsdp.MixedPrecisionPolicy(half, exact))
    wrap(model, mp_policy=fsdp.MixedPrecisionPolicy(half, exact, exact))
    for module in (*apart.values(), model):
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo has no mean
        if zeros := getattr(module, "set_reduce_scatter_unused_params", None):
            zeros(True)  # for weights that other ranks use: else sums over ranks do not fit


def _hand_out(parameter: nn.Parameter, whole: Tensor, context: Context) -> None:
    """Give a parameter without values those that rank 0 has; collective."""
    if in_pieces(parameter):
        value = of_piece(scattered(whole, parameter, context), parameter, whole)
    else:
        value = whole.to(context.device) if context.rank == 0 else _real(whole, context)
        dist.broadcast(value, src=0)
    filled = nn.Parameter(value, parameter.requires_grad)
    torch.utils.swap_tensors(parameter, filled)  # type: ignore[no-untyped-call]  # torch's own


def _real(tensor: Tensor, context: Context) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=context.device)


def _hand_out_buffers(model: nn.Module, context: Context) -> None:
    """Give all ranks the buffers of rank 0, on the device; collective."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for held, name in list(places_of(model, "_buffers")):
        buffer = held[name]
        there = _real(buffer, context) if buffer.is_meta else buffer.to(context.device)
        held[name] = known.setdefault(id(buffer), (buffer, there))[1]
    context.share_buffers(model)
