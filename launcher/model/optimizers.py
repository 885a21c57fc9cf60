"""The optimizers of a run: one, several that are stepped together, or some by name, in turns."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.errors import RecipeError
from launcher.model.made import Made, with_changes
from launcher.model.pieces import cut_as, in_pieces


class Optimizers:
    """What a recipe's `optimizer` returned, each with a name of its own."""

    def __init__(self, given: Any) -> None:
        """Name them; raises RecipeError for anything but an optimizer, a list or a dict of some."""
        self.given = given  # as the recipe's `scheduler` gets it
        self.in_turns = isinstance(given, Mapping)
        several = given if isinstance(given, Mapping) else _named(given)
        if not several or not all(isinstance(made, Optimizer) for made in several.values()):
            raise RecipeError(
                f"`optimizer` returned {_kind(given)}, not a torch.optim.Optimizer",
                hint="does the method `optimizer` of the recipe end in `return`? It returns one, "
                "several in a list, or, for a train_step in turns, a dict of them",
            )
        self.named: dict[str, Optimizer] = dict(several)

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self.named.values())

    def parameters_of(self, name: str, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return those of the parameters that one of them has, in their order."""
        own = {id(p) for group in self.named[name].param_groups for p in group["params"]}
        return [p for p in parameters if id(p) in own]

    def step(self) -> None:
        """Step all of them."""
        for optimizer in self:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self:
            optimizer.zero_grad()

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of all of them."""
        return [group for optimizer in self for group in optimizer.param_groups]

    def rates(self) -> dict[str, float | Tensor]:
        """Return the learning rate of each group, by the optimizer's name and a number."""
        found: dict[str, float | Tensor] = {}
        for name, optimizer in self.named.items():
            several = len(optimizer.param_groups) > 1
            for number, group in enumerate(optimizer.param_groups):
                found[f"{name} {number}" if several else name] = group["lr"]
        return found

    def fuse(self) -> None:
        """Have those that can update all weights in one operation; raises RecipeError for none."""
        able = [optimizer for optimizer in self if "fused" in optimizer.defaults]
        if not able:
            raise RecipeError(
                f"{' and '.join(self.named)} has no fused form",
                hint="leave fused_optimizer out, or use one of torch's SGD, Adam, AdamW or Adagrad",
            )
        for optimizer in able:
            for group in (optimizer.defaults, *optimizer.param_groups):
                group.update(fused=True, foreach=False)

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint keeps."""
        return [optimizer.state_dict() for optimizer in self]

    def load(self, saved: list[dict[str, Any]], made: Made, now: Made) -> None:
        """Go on from a checkpoint; options that were changed are as they are made now.

        Raises ValueError where it does not fit, RecipeError where something cannot be changed.
        """
        told = [group for state in saved for group in state["param_groups"]]
        groups = iter(with_changes(told, made, now))
        for optimizer, state in zip(self, saved, strict=True):
            own = list(islice(groups, len(state["param_groups"])))
            optimizer.load_state_dict(_cut(state, optimizer) | {"param_groups": own})
            for values in optimizer.state.values():  # what is on no other device is in the file yet
                values |= {
                    k: v.clone() for k, v in values.items() if isinstance(v, Tensor) and v.is_cpu
                }

    def odd_states(self) -> list[str]:
        """Return the names of states in pieces that are not of their weight's shape: no whole."""
        return [
            name
            for optimizer in self
            for weight, values in optimizer.state.items()
            for name, value in values.items()
            if in_pieces(value) and value.shape != weight.shape
        ]

    def refuse_gaps(self, model: nn.Module, loss_fn: nn.Module) -> None:
        """Raise RecipeError where a trained parameter is in no optimizer, or in two."""
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        of_loss = {id(p): name for name, p in loss_fn.named_parameters() if p.requires_grad}
        held = Counter(id(p) for group in self.groups() for p in group["params"])
        known = {key: f"{name} of the loss" for key, name in of_loss.items()} | names
        if twice := [name for key, name in known.items() if held[key] > 1]:
            raise RecipeError(f"these parameters are in two optimizers: {_listed(twice)}")
        if left := [name for key, name in names.items() if not held[key]]:
            raise RecipeError(
                f"these parameters are in no optimizer: {_listed(left)}",
                hint="give them to one, or set requires_grad to False",
            )
        if left := [name for key, name in of_loss.items() if not held[key]]:
            raise RecipeError(
                f"`loss` has parameters that are in no optimizer: {_listed(left)}",
                hint="write `optimizer(self, model, loss)` and give them to one, or set "
                "requires_grad to False",
            )


def asked_for(method: Callable[..., Any], model: nn.Module, loss_fn: nn.Module) -> Optimizers:
    """Return what a recipe's `optimizer` makes, which may ask for the loss, too.

    Raises RecipeError where it is anything else, or does not fit the parameters.
    """
    try:
        given = inspect.signature(method).bind(model, loss_fn)
    except TypeError:
        given = inspect.signature(method).bind(model)
    made = Optimizers(method(*given.args))
    made.refuse_gaps(model, loss_fn)
    return made


def _cut(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the saved state of an optimizer with pieces for the weights that are in pieces."""
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not any(map(in_pieces, weights)):
        return saved
    like = dict(zip(keys, weights, strict=False))  # torch says what does not fit

    def cut(key: int, value: Any) -> Any:
        there = like.get(key)
        fits = isinstance(value, Tensor) and there is not None and value.shape == there.shape
        return cut_as(value, there) if fits else value

    state = {k: {n: cut(k, v) for n, v in values.items()} for k, values in saved["state"].items()}
    return saved | {"state": state}


def _named(given: Any) -> dict[str, Any]:
    """Name optimizers by their kind, and those of one kind by numbers, too."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    counts = Counter(type(one).__name__ for one in several)
    names: dict[str, Any] = {}
    for one in several:
        kind = type(one).__name__
        number = sum(type(other).__name__ == kind for other in names.values())
        names[f"{kind} {number}" if counts[kind] > 1 else kind] = one
    return names


def _kind(given: Any) -> str:
    if not isinstance(given, Mapping | list | tuple):
        return type(given).__name__
    parts = given.values() if isinstance(given, Mapping) else given
    return f"{type(given).__name__} of {', '.join(type(p).__name__ for p in parts) or 'nothing'}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
