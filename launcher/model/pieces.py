"""Tensors of which each rank holds a piece: those of a model with `shard=true`.

Such a tensor is a DTensor of torch's, cut along its first dimension as `torch.chunk` cuts. To
import them takes a second, so nothing here does where no tensor is in pieces.
"""

from typing import Any

from torch import Tensor


def in_pieces(value: Any) -> bool:
    """Whether a value is a tensor of which this rank holds a piece."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def own(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, (own rows, …): a plain one, and no copy."""
    piece: Tensor = getattr(tensor, "_local_tensor", tensor)
    return piece


def rows_each(like: Any) -> int:
    """Return how many rows of a tensor in pieces the first ranks hold; the last ones hold fewer."""
    return -(-len(like) // int(like.device_mesh.size()))


def cut_as(whole: Tensor, like: Any) -> Tensor:
    """Return a whole tensor as `like` is: in pieces, this rank's a view of it, or whole."""
    if not in_pieces(like) or in_pieces(whole):
        return whole
    return of_piece(whole[slice(*span(whole, like))], like, whole)


def span(whole: Tensor, like: Any) -> tuple[int, int]:
    """Return which rows of a tensor this rank holds where it is in pieces over the ranks of `like`.

    Those from the first number on, up to the second one.
    """
    most = -(-len(whole) // int(like.device_mesh.size()))
    start = min(like.device_mesh.get_local_rank() * most, len(whole))
    return start, min(start + most, len(whole))


def of_piece(piece: Tensor, like: Any, whole: Tensor) -> Tensor:
    """Return a tensor in pieces as `like` is, of the shape of `whole`: this rank holds `piece`."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # see above

    shape, stride = whole.shape, whole.stride()
    made: Tensor = DTensor.from_local(
        piece, like.device_mesh, like.placements, shape=shape, stride=stride
    )
    return made
