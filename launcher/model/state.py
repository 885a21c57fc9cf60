"""Everything a model's state_dict may hold, as files and back again.

What safetensors can keep is in a safetensors file, each tensor whole and by itself, whatever it
was a view of. The rest (sparse tensors, `get_extra_state`) is beside it, as torch saves it, in a
form that is read without running any code.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from launcher.errors import BadInput
from launcher.model.pieces import cut_as, in_pieces, own

# Arrays run no code either; torch alone does not trust numpy.
_NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    np.zeros(1).__reduce__()[0],
    np.float64(1).__reduce__()[0],
]
_NUMPY += {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}


class ModelState(NamedTuple):
    """A model's state, by the names of its state_dict."""

    tensors: dict[str, Tensor]  # for safetensors; of names that share one tensor only the first
    others: dict[str, Any]  # what safetensors has no form for
    unsaved: dict[str, Tensor]  # buffers that the state_dict leaves out (`persistent=False`)

    def write(self, path: Path) -> None:
        """Write the tensors, which must be on the host and contiguous."""
        # One entry: several would be written in any order, and the same weights as other bytes.
        save_file(self.tensors, path, metadata={"format": "pt"})


def captured(model: nn.Module) -> ModelState:
    """Return the state of a model, which is not in DDP: its own tensors, no copies."""
    state, twins = model.state_dict(), _twins(model)
    fit = {name for name, value in state.items() if isinstance(value, Tensor) and _fits(value)}
    own = [name for name in state if name not in twins]
    return ModelState(
        {name: state[name] for name in own if name in fit},
        {name: state[name] for name in own if name not in fit},
        {name: buffer for name, buffer in model.named_buffers() if name not in state},
    )


def load_into(model: nn.Module, state: ModelState) -> None:
    """Load a state into a model of its kind, which is not in DDP.

    Raises ValueError where it does not fit.
    """
    told = state.tensors | state.others
    told = {name: told[first] for name, first in _twins(model).items() if first in told} | told
    here = model.state_dict()
    told = {n: cut_as(v, here.get(n)) if isinstance(v, Tensor) else v for n, v in told.items()}
    with _written_once(model):
        try:
            model.load_state_dict(told)
        except RuntimeError as error:
            if "loading state_dict" in str(error):
                raise ValueError(str(error)) from error
            raise
    for name, buffer in model.named_buffers():
        if name not in told:
            saved = state.unsaved.get(name)
            if saved is None or saved.shape != buffer.shape:
                raise ValueError(f"the buffer `{name}` is another one")
            fill(buffer, saved)


def fit_into(model: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    """Load tensors that have name and shape of a model's, which is not in DDP.

    Returns the names of the state_dict that have another value now, those of one tensor all.
    """
    with _written_once(model):
        model.load_state_dict(tensors, strict=False)
    twins = _twins(model)
    first = {twins.get(name, name) for name in tensors}
    return {name for name in model.state_dict() if twins.get(name, name) in first}


def cut(tree: Any) -> Any:
    """Return a copy of whatever it is with one number of each dense tensor."""
    return pytree.tree_map_only(Tensor, _one_number, tree)


def _one_number(tensor: Tensor) -> Tensor:
    tensor = own(tensor).detach()
    dense = tensor.layout == torch.strided
    return tensor[(slice(0, 1),) * tensor.dim()].clone() if dense else tensor


def load_safely(path: Path) -> Any:
    """Load what torch.save wrote, running no code that may be in it; tensors are mapped from it.

    Raises BadInput for what wants to run code, and OSError and MemoryError as they come.
    """
    try:
        return _loaded(path, mmap=is_zipfile(path))
    except UnpicklingError as error:
        raise BadInput(
            f"`{path}` cannot be loaded safely: {_unsafe(error)}",
            hint="a checkpoint that wants to run code of its own is refused; delete its folder "
            "to go on from the one before it",
        ) from error


def why_not(value: Any) -> str | None:
    """Return why torch.save and a safe load do not give a value back, None where they do."""
    file = BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        _loaded(file)
    except UnpicklingError as error:
        return _unsafe(error)
    except Exception as error:  # noqa: BLE001  # pickle, and what is pickled, raise what they like
        return f"{type(error).__name__}: {error}"
    return None


def _loaded(file: Any, *, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals(_NUMPY), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
        try:
            # Explicit: an environment variable can switch the default off.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError:  # there are disks that cannot be mapped
            if not mmap:
                raise
            return torch.load(file, map_location="cpu", weights_only=True)


def _unsafe(error: UnpicklingError) -> str:
    what = re.search(r"(?:GLOBAL|Unsupported class|Unsupported operand) (\S+)", str(error))
    return f"it holds a `{what[1]}`" if what else str(error).splitlines()[0]


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, once where several places of it are one in memory (`expand`)."""
    if target.layout == torch.strided:
        for dimension, stride in enumerate(target.stride()):
            if stride == 0 and target.shape[dimension] > 1 and value.shape == target.shape:
                target, value = (t.narrow(dimension, 0, 1) for t in (target, value))
    with torch.no_grad():
        target.copy_(value)


def expanded(tensor: Tensor) -> bool:
    """Whether places of a tensor are one in memory, so that torch does not write to it."""
    dense = tensor.layout == torch.strided
    return dense and any(
        s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
    )


@contextmanager
def _written_once(model: nn.Module) -> Iterator[None]:
    """Have copies in the place of expanded buffers, which torch cannot write to, for a while."""
    found = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and expanded(buffer)
    ]
    for module, name, buffer in found:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in found:
            written, module._buffers[name] = module._buffers[name], buffer
            fill(buffer, written if written is not None else buffer)


def _twins(model: nn.Module) -> dict[str, str]:
    """Return the names of a state_dict whose tensor has an earlier name, and that name."""
    first: dict[Any, str] = {}
    twins = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
            shape: Any = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            if in_pieces(value):  # of which some rank has no byte
                shape = id(value)
            if (known := first.setdefault(shape, name)) != name:
                twins[name] = known
    return twins


def _fits(tensor: Tensor) -> bool:
    plain = type(own(tensor)) in (Tensor, nn.Parameter, nn.Buffer)
    return plain and tensor.layout == torch.strided and _has_form(tensor.dtype)


@cache
def _has_form(dtype: torch.dtype) -> bool:
    """Whether this version of safetensors knows a type of numbers."""
    try:
        save({"": torch.empty(1, dtype=dtype)})
    except Exception:  # noqa: BLE001  # it has no word for it
        return False
    return True


@contextmanager
def undisturbed_buffers(model: nn.Module) -> Iterator[None]:
    """Leave the buffers of a model as they are, whatever is done to them meanwhile."""
    dense = [b for b in model.buffers() if b.layout == torch.strided]
    before = [buffer.clone() for buffer in dense]
    try:
        yield
    finally:
        for buffer, value in zip(dense, before, strict=True):
            fill(buffer, value)
