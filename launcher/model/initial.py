"""Weights that a run starts from, instead of those that the recipe's `model` makes."""

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from launcher.errors import RecipeError
from launcher.model.files import read
from launcher.model.state import fit_into
from launcher.processes import shown

_MOST_NAMES = 20  # in one list on the console


def start_from(model: nn.Module, path: Path, *, say: bool) -> None:
    """Load what a file has of a model's state, by name and shape; `say` what does not match.

    The model is not in DDP. Raises RecipeError where the file cannot be read, or none of the
    model's parameters is in it.
    """
    try:
        there = read(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RecipeError(
            f"the weights to start from, `{path}`, cannot be read: {error}"
        ) from error
    here = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    fits = {name: there[name] for name in here if _shape(there.get(name)) == _shape(here[name])}
    if not fits.keys() & {name for name, _ in model.named_parameters(remove_duplicate=False)}:
        raise RecipeError(
            f"no parameter of the model is in `{path}` by name and shape",
            hint=f"there: {_few(there)}; the model's: {_few(here)}",
        )
    taken = fit_into(model, fits)
    if say:
        shapes = [
            f"{name} {_shape(there[name])} there, {_shape(here[name])} here"
            for name in here.keys() & there.keys() - fits.keys()
        ]
        print(f"starting from {len(taken)} of {len(here)} tensors of the model in {shown(path)}")
        _list("of another shape", sorted(shapes))
        _list("not there, and as the recipe makes them", here.keys() - there.keys() - taken)
        _list("there, and not in the model", there.keys() - here.keys())


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _list(what: str, names: Iterable[str]) -> None:
    if names := list(names):
        print(f"  {what}: {_few(sorted(names))}", flush=True)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    left = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + left
