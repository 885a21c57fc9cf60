"""Which modules of a model are gathered one at a time, and what cannot be sharded at all."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from launcher.errors import RecipeError
from launcher.ranks.buckets import sparse_weights
from launcher.recipe.base import Recipe

FOUND_TO_WORK = "2.15"  # the version of torch


def members(recipe: Recipe, model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that are gathered one at a time by name, outer ones first; not the model.

    They are what the recipe's `shards` names, or else the members of the outermost ModuleLists.
    Those that share a weight with another part of the model are left out: one group with it.
    Raises RecipeError for what is no such module.
    """
    given = recipe.shards(model)
    found = list(_of_lists(model)) if given is None else _checked(given, model)
    apart = {id(module) for module in found if _is_apart(module, model)}
    return {name: m for name, m in model.named_modules() if id(m) in apart and m is not model}


def _of_lists(module: nn.Module) -> Iterator[nn.Module]:
    """Give the members of the outermost ModuleLists that have a forward of their own."""
    for child in module.children():
        yield from _callable(child) if isinstance(child, nn.ModuleList) else _of_lists(child)


def _callable(container: nn.Module) -> Iterator[nn.Module]:
    for member in container.children():
        if _has_forward(member):
            yield member
        else:
            yield from _callable(member)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _checked(given: Iterable[nn.Module], model: nn.Module) -> list[nn.Module]:
    known, found = {id(module) for module in model.modules()}, list(given)
    for one in found:
        if not isinstance(one, nn.Module) or id(one) not in known:
            raise RecipeError(
                f"`shards` returned {type(one).__name__}, which is no module of the model",
                hint="return modules of the model it gets, like `list(model.blocks)`",
            )
        if not _has_forward(one):
            raise RecipeError(
                f"`shards` returned {type(one).__name__}, which is never called itself",
                hint="return its members: a module is gathered when it is called",
            )
    return found


def _is_apart(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module has weights, and none that another part of the model has, too."""
    inside = {id(part) for part in module.modules()}
    holders = defaultdict(set)
    for part in model.modules():
        for parameter in part.parameters(recurse=False):
            holders[id(parameter)].add(id(part))
    own = [holders[id(parameter)] for parameter in module.parameters()]
    return bool(own) and all(parts <= inside for parts in own)


def refuse_unshardable(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError for what `shard=true` cannot train."""
    for name in ("channels_last", "compile", "cuda_graphs", "find_unused_parameters"):
        if getattr(recipe, name):
            raise RecipeError(
                f"`{name}` and `shard` do not go together", hint="leave one of them out"
            )
    for name, module in model.named_modules():
        keeps = isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False)
        if isinstance(module, _NormBase) and module.training and keeps:
            raise RecipeError(
                f"`{name}` is {type(module).__name__}: its statistics follow what this very process"
                " computes, and with `shard` processes also compute samples that do not count",
                hint="use a norm of each sample (LayerNorm, GroupNorm, RMSNorm), freeze it "
                "(`.eval()` in `model`), or leave `shard` out",
            )
    if sparse_weights(model):
        raise RecipeError(
            "the model has embeddings with sparse=True, whose gradients cannot be sharded",
            hint="leave `sparse=True` out, or `shard`",
        )
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if odd := [name for name, p in trained if not p.is_floating_point()]:
        raise RecipeError(
            f"complex weights cannot be sharded: {', '.join(odd[:5])}",
            hint="keep real and imaginary parts in a last dimension (torch.view_as_complex), or "
            "leave `shard` out",
        )
    if len(kinds := {p.dtype for _, p in trained if p.dim()}) > 1:
        listed = ", ".join(sorted(map(str, kinds)))
        raise RecipeError(
            f"with `shard` all weights are of one type of numbers, and there are {listed}",
            hint="make them alike in `model`, or leave `shard` out",
        )


def refuse_old_torch() -> None:
    """Raise RecipeError where torch cannot shard as it has to be done here."""
    from torch.distributed import fsdp  # noqa: PLC0415  # nobody else needs it: a slow import

    module = getattr(fsdp, "FSDPModule", None)
    if not hasattr(module, "set_force_sum_reduction_for_comms"):
        raise RecipeError(
            f"torch {torch.__version__} is too old for `shard`",
            hint=f"it works with torch {FOUND_TO_WORK}: install that or a later one",
        )
