"""Forward and backward passes that a GPU repeats by itself, without a host that tells it each step.

A small model's kernels end sooner than the host can start the next ones. A CUDA graph starts all
of a step's kernels at once, the very same ones: the numbers are those of a run without it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from launcher.errors import RecipeError
from launcher.recipe.base import StepSums

Passes = Callable[[Any], StepSums]  # of a micro-batch, forward and backward
_WARM_UP = 3  # real steps before a recording: what is compiled or chosen at first use then is


class Graphs:
    """Runs the passes of a step; from the fourth batch of one shape on by replaying them.

    Batches of another shape (the last of an epoch) are run as they are. What `train_step` does on
    the host is done while recording and then no more.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        record: Callable[[Passes, Any], tuple[Callable[[], None], StepSums]] | None = None,
    ) -> None:
        """`record` makes a graph of passes; by default a CUDA graph."""
        self._parameters = parameters
        self._record = record or _recorded
        self._kind: Any = None  # of batch, and what else the passes depend on
        self._seen = 0
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._sums: StepSums
        self._gradients: list[Tensor | None] = []

    def run(self, passes: Passes, batch: Any, *constants: float) -> StepSums:
        """Run passes that depend on nothing but the batch, its kind and these constants.

        Raises RecipeError where they cannot be recorded.
        """
        leaves, tree = pytree.tree_flatten(batch)
        kind = (tree, [_kind(leaf) for leaf in leaves], constants)
        if self._replay is None:
            self._seen = self._seen + 1 if kind == self._kind else 1
            self._kind = kind
            if self._seen <= _WARM_UP:
                return passes(batch)
            self._make(passes, leaves, tree)
        elif kind != self._kind:
            return passes(batch)
        return self._replayed([leaf for leaf in leaves if isinstance(leaf, Tensor)])

    def _make(self, passes: Passes, leaves: list[Any], tree: pytree.TreeSpec) -> None:
        kept = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._inputs = [leaf for leaf in kept if isinstance(leaf, Tensor)]
        for parameter in self._parameters:
            parameter.grad = None  # so that the graph writes gradients, and adds to none
        try:
            self._replay, sums = self._record(passes, pytree.tree_unflatten(kept, tree))
        except RuntimeError as error:
            raise RecipeError(
                f"`train_step` cannot be recorded for cuda_graphs: {str(error).splitlines()[0]}",
                hint="it must not wait for the GPU (.item(), .cpu(), nonzero, printing a tensor); "
                "or leave cuda_graphs out",
            ) from error
        _refuse_host_sums(sums)
        self._gradients = [parameter.grad for parameter in self._parameters]
        # Without its history, which belongs to the stream of the recording: other passes would
        # meet the same gradients there.
        self._sums = _each(Tensor.detach, sums)

    def _replayed(self, tensors: list[Tensor]) -> StepSums:
        assert self._replay
        for mine, new in zip(self._inputs, tensors, strict=True):
            mine.copy_(new, non_blocking=True)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        # The next replay writes where these are, and reports read them long after.
        return _each(Tensor.clone, self._sums)


def _refuse_host_sums(sums: StepSums) -> None:
    """Raise RecipeError for sums that a replay would not make anew: those on the host."""
    device = sums.loss.device
    if odd := [name for name, value in sums.sums.items() if value.device != device]:
        raise RecipeError(
            f"`cuda_graphs` repeats what the GPU does, and the sum `{odd[0]}` is made on the host",
            hint="make it from the batch, on its device; or leave cuda_graphs out",
        )


def _each(do: Callable[[Tensor], Tensor], sums: StepSums) -> StepSums:
    made = {field.name: getattr(sums, field.name) for field in dataclasses.fields(sums)}
    return StepSums(**pytree.tree_map_only(Tensor, do, made))


def _recorded(passes: Passes, batch: Any) -> tuple[Callable[[], None], StepSums]:
    """Record passes as a CUDA graph; returns what replays it, and where its sums are then."""
    graph = torch.cuda.CUDAGraph()
    # Other threads (data, checkpoints) may go on using the device while this one records.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sums = passes(batch)
    return graph.replay, sums


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.stride()
    return leaf
