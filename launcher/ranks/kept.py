"""Rows that a test keeps of each sample: to rank 0's host memory, in the order of the dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from launcher.errors import RecipeError, TrainingFailed
from launcher.ranks.context import Context

Rows = dict[str, Tensor | list[Tensor]]
Form = tuple[bool, str, tuple[int, ...]]  # a list of tensors?, dtype, shape of each number's place

_LEAST, _MOST = 1 << 16, 1 << 26  # bytes that one rank, and all together, send at once


class Kept:
    """What the test steps of one rank have kept, on its host.

    Under each name stands a tensor (batch, …), or a list of one tensor (any, …) a sample.
    """

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}
        self._values: dict[str, list[Tensor]] = {}
        self._lengths: dict[str, list[int]] = {}  # of each sample's tensor, in a list
        self._rows: dict[str, int] = {}
        self._places: list[int] = []  # in the order of the dataset

    def add(self, kept: Mapping[str, Any]) -> None:
        """Keep rows of a micro-batch; raises TrainingFailed where they are others than before.

        What they can be at all is looked at first: RecipeError.
        """
        for name, value in kept.items():
            parts = list(value) if isinstance(value, list | tuple) else [value]
            form = _form(name, value, parts)
            if self._forms.setdefault(name, form) != form:
                raise TrainingFailed(
                    f"`kept` of a test step had {_shown(name, self._forms[name])} and has "
                    f"{_shown(name, form)}",
                    hint="where samples have rows of different lengths, give a list of tensors",
                )
            self._values.setdefault(name, []).extend(part.detach().cpu() for part in parts)
            if form[0]:
                self._lengths.setdefault(name, []).extend(map(len, parts))
            self._rows[name] = self._rows.get(name, 0) + len(parts if form[0] else value)

    def end_batch(self, places: Sequence[int]) -> None:
        """Say which samples they were of; raises TrainingFailed where there is no row for each."""
        self._places.extend(places)
        for name, rows in self._rows.items():
            if rows != len(self._places):
                raise TrainingFailed(
                    f"`kept` has {rows} rows of `{name}` after {len(self._places)} samples",
                    hint="each test step keeps one row of each sample, or a list of one tensor of "
                    "each, under the same names",
                )

    def gathered(self, context: Context) -> Rows:
        """Return on rank 0 the rows of all samples, in the dataset's order; collective.

        Other ranks get none. Raises TrainingFailed on all where they have kept different things.
        """
        own = self._packed()
        everyones = context.gather((self._forms if self._places else None, len(own)))
        forms = [form for form, _ in everyones if form is not None]
        if any(form != forms[0] for form in forms):
            raise TrainingFailed("`kept` is not the same on all ranks")
        sizes = [size for _, size in everyones]
        packed = [own] if context.world_size == 1 else _sent(context, own, sizes)
        if context.rank or not forms:
            return {}
        return _in_order([load(part) for part in packed], forms[0])

    def _packed(self) -> bytes:
        """Return everything as bytes of safetensors: values, lengths, and places."""
        tensors = {f"{name}.values": torch.cat(parts) for name, parts in self._values.items()}
        for name, lengths in self._lengths.items():
            tensors[f"{name}.lengths"] = torch.tensor(lengths)
        return save({**tensors, "": torch.tensor(self._places, dtype=torch.int64)})


def as_file(rows: Rows) -> dict[str, Tensor]:
    """Return rows as a safetensors file has them: of a list its values, and where each begins.

    `NAME.offsets` (samples + 1,): sample i has `NAME.values[offsets[i] : offsets[i + 1]]`.
    """
    tensors = {}
    for name, value in rows.items():
        if isinstance(value, Tensor):
            tensors[name] = value.contiguous()
        else:
            lengths = torch.tensor([0, *map(len, value)])
            tensors[f"{name}.values"] = torch.cat(value)
            tensors[f"{name}.offsets"] = lengths.cumsum(0)
    return tensors


def size_of(rows: Rows) -> int:
    """Return the bytes that rows take."""
    return sum(tensor.nbytes for tensor in as_file(rows).values())


def _form(name: Any, value: Any, parts: list[Any]) -> Form:
    """Return the form of what is kept; raises RecipeError for what cannot be."""
    if not (isinstance(name, str) and name) or not all(isinstance(part, Tensor) for part in parts):
        raise RecipeError(
            f"`kept` has a {type(value).__name__} under {name!r}",
            hint="keep a tensor (batch, …), or a list of one tensor a sample, under a word",
        )
    if any(part.is_complex() or part.layout != torch.strided for part in parts):
        raise RecipeError(
            f"`kept` has complex numbers, or a tensor that is not dense, under `{name}`",
            hint="keep `torch.view_as_real(value)`, or `value.to_dense()`",
        )
    several = isinstance(value, list | tuple)
    forms = {(several, str(part.dtype), tuple(part.shape[1:])) for part in parts}
    if len(forms) != 1 or any(part.dim() == 0 for part in parts):
        raise RecipeError(
            f"`kept` has tensors of {len(forms)} forms, or single numbers, under `{name}`",
            hint="the tensors of a list differ in their first dimension only; numbers of samples "
            "are one tensor (batch,)",
        )
    return forms.pop()


def _shown(name: str, form: Form) -> str:
    several, dtype, shape = form
    return f"`{name}` of {'lists of ' * several}{dtype} (…, {', '.join(map(str, shape))})"


def _sent(context: Context, own: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return on rank 0 the bytes of all ranks, sent piece by piece; collective."""
    piece = min(max(sizes), max(_LEAST, _MOST // context.world_size))
    parts = [bytearray() for _ in sizes]
    for start in range(0, max(sizes), piece):
        context.marker.tick()
        mine = torch.zeros(piece, dtype=torch.uint8)
        told = own[start : start + piece]
        if told:
            mine[: len(told)] = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        mine = mine.to(context.device)
        theirs = [torch.empty_like(mine) for _ in sizes] if context.rank == 0 else None
        dist.gather(mine, theirs)
        for part, got in zip(parts, theirs or [], strict=False):
            part.extend(got.cpu().numpy().tobytes())
    return [bytes(part[:size]) for part, size in zip(parts, sizes, strict=True)]


def _in_order(packed: Sequence[dict[str, Tensor]], forms: Mapping[str, Form]) -> Rows:
    those = [part for part in packed if len(part[""])]
    order = torch.cat([part[""] for part in those]).argsort()
    rows: Rows = {}
    for name, (several, _, _) in forms.items():
        values = torch.cat([part[f"{name}.values"] for part in those])
        if several:
            lengths = torch.cat([part[f"{name}.lengths"] for part in those]).tolist()
            samples = torch.split(values, lengths)
            rows[name] = [samples[at] for at in order.tolist()]
        else:
            rows[name] = values[order]
    return rows
