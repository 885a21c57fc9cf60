"""A state in pieces as files: each rank's share of a checkpoint, and final weights in parts."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from launcher.data.device import on_host
from launcher.errors import PeerFailed
from launcher.files import written
from launcher.model.files import bytes_of, parted
from launcher.model.state import ModelState
from launcher.ranks.context import Context
from launcher.run.checkpoint_files import Note, share_name
from launcher.run.weights import forget, index_of, part_of
from launcher.sharding.moving import gathered

LARGE = 4 << 30  # bytes: more of a state in pieces is not brought together on rank 0 at once


class Share(NamedTuple):
    """What one rank writes of a checkpoint."""

    state: dict[str, Any] | None  # on rank 0: all that is whole
    pieces: dict[str, Tensor]  # in host memory

    @classmethod
    def of(cls, state: Mapping[str, Any], context: Context) -> "Share":
        """Copy what this rank holds of a state; nobody waits for another."""
        whole, pieces = parted(state)
        return cls(on_host(whole) if context.rank == 0 else None, on_host(pieces))


class Peers:
    """The threads of all ranks that write a checkpoint together, beside training's own talks."""

    def __init__(self, context: Context) -> None:
        """Make a way for them to talk; collective."""
        self.rank, self._ranks = context.rank, context.world_size
        self.name = share_name(context.rank, context.world_size)  # of this rank's file
        self._group: Any = None
        if context.world_size > 1:
            patience = timedelta(seconds=context.patience_s)
            self._group = dist.new_group(backend="gloo", timeout=patience)

    def told(self, note: Note | str) -> dict[str, Note]:
        """Tell of this rank's file, a str why there is none; returns all ranks', by name.

        Collective, among threads. Raises PeerFailed on all ranks where one has no file, and
        RuntimeError where one has died.
        """
        everyones: list[Any] = [note]
        if self._group is not None:
            everyones = [None] * self._ranks
            dist.all_gather_object(everyones, note, group=self._group)
        if failed := [rank for rank, told in enumerate(everyones) if isinstance(told, str)]:
            which = f"rank {failed[0]}" + f" and {len(failed) - 1} more" * (len(failed) > 1)
            raise PeerFailed(f"{which}: {everyones[failed[0]]}")
        return {share_name(rank, self._ranks): told for rank, told in enumerate(everyones)}


def save_large(tensors: dict[str, Tensor], weights: Path, context: Context) -> None:
    """Save weights as several files with an index, gathered on rank 0 a file at a time; collective.

    `weights` is the name that one file would have. The form is safetensors' own: that of
    `transformers` and others.
    """
    first, places = context.rank == 0, dict[str, str]()
    if first:
        forget(weights)
    parts = list(_parts(tensors))
    for number, names in enumerate(parts, 1):
        whole = gathered({name: tensors[name] for name in names}, context)
        path = part_of(weights, number, len(parts))
        places |= dict.fromkeys(names, path.name)
        if first:
            save_whole(whole, path)
    if first:
        told = {"metadata": {"total_size": bytes_of(tensors)}, "weight_map": places}
        with written(index_of(weights)) as path:
            path.write_text(json.dumps(told, indent=2), encoding="utf-8")


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Save weights as one file."""
    with written(path) as beside:
        ModelState(tensors, {}, {}).write(beside)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Give the names of tensors that are LARGE together at most, but for a single one."""
    names, size = list[str](), 0
    for name, tensor in tensors.items():
        more = bytes_of(tensor)
        if names and size + more > LARGE:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names
