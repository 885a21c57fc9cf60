"""Weights as files of safetensors: one, several with an index, or the shares of several ranks.

Where each rank has written its share of a checkpoint, its file `rank-1-of-3.safetensors` has its
rows of every tensor in pieces. What is whole is in training.pt, and there each tensor in pieces
stands without values (on torch's meta device): it has shape, type, and a place, which is its name
in the files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import _pytree as pytree

from launcher.model.pieces import in_pieces, of_piece, own, span
from launcher.model.state import load_safely
from launcher.run.checkpoint_files import MODEL, TRAINING, shares_in
from launcher.run.weights import INDEX, files_of

MODEL_PART = "model"  # of what a checkpoint in shares has


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of weights by name, mapped from their files: ranks of a node share them.

    `path` is a file of safetensors, an index of several, or a rank's file of a checkpoint: then
    they are those of all ranks together. Raises OSError, SafetensorError, and ValueError for an
    index that is none.
    """
    if path.name.endswith(INDEX):
        _, *several = files_of(path.with_name(path.name.removesuffix(INDEX)))
        return {name: value for file in several for name, value in load_file(file).items()}
    if path in shares_in(path.parent):
        state = load_safely(path.with_name(TRAINING))
        found: dict[str, Tensor] = Shares(path.parent).filled(state)[MODEL_PART]
        return found
    return load_file(path)


def weights_in(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of a checkpoint's model by name, one after the other, whole."""
    if not shares_in(folder):
        with safe_open(folder / MODEL, "pt") as file:
            names = file.keys()
            yield from ((name, file.get_tensor(name)) for name in names)
        return
    kept, model = Shares(folder), load_safely(folder / TRAINING)[MODEL_PART]
    for name, value in model.items():
        yield name, kept.filled({MODEL_PART: {name: value}})[MODEL_PART][name]


def bytes_of(tree: Any) -> int:
    """Return the bytes of all tensors of a tree, whole, whoever has which piece of them."""
    return sum(t.numel() * t.itemsize for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))


def parted(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a tree with tensors without values for those in pieces, and this rank's pieces.

    Nothing is copied.
    """
    pieces: dict[str, Tensor] = {}

    def without(path: Any, leaf: Any) -> Any:
        if not in_pieces(leaf):
            return leaf
        pieces[pytree.keystr(path)] = own(leaf).detach()
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    return pytree.tree_map_with_path(without, tree), pieces


class Shares:
    """The rows of tensors that several ranks have written, for any number of ranks."""

    def __init__(self, folder: Path) -> None:
        """Open the files of a checkpoint, which may have none: then nothing is in pieces."""
        # Of safetensors that say nothing about their types.
        self._files: list[Any] = [safe_open(path, "pt") for path in shares_in(folder)]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of a tensor, (stop - start, …), from the files that have them."""
        parts, first = list[Tensor](), 0  # of this file, in the whole
        for file in self._files:
            piece = file.get_slice(name)
            has = piece.get_shape()[0]
            begin, end = max(start - first, 0), min(stop - first, has)
            if begin < end:
                parts.append(piece[begin:end])
            first += has
        if not parts:
            parts = [self._files[0].get_slice(name)[0:0]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def filled(self, tree: Any, like: Tensor | None = None) -> Any:
        """Return a tree with values for tensors without: whole, or this rank's piece, as `like`."""

        if not self._files:
            return tree

        def real(path: Any, leaf: Any) -> Any:
            if not (isinstance(leaf, Tensor) and leaf.is_meta):
                return leaf
            name = pytree.keystr(path)
            if like is None:
                return self.rows(name, 0, len(leaf))
            return of_piece(self.rows(name, *span(leaf, like)), like, leaf)

        return pytree.tree_map_with_path(real, tree)
