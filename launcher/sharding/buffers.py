"""Buffers that forward passes change: those of rank 0 hold, as with DDP."""

from torch import nn

from launcher.ranks.context import Context


class MovingBuffers:
    """Gives all ranks the buffers of rank 0 before a step, where the first step changed any."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        self._model, self._context = model, context
        self._before = self._now()
        self._move = False

    def _now(self) -> list[tuple[int, int]]:
        return [(id(buffer), buffer._version) for buffer in self._model.buffers()]

    def share(self) -> None:
        """Before a step; collective."""
        if self._move:
            self._context.share_buffers(self._model)
        else:
            self._before = self._now()

    def look(self) -> None:
        """After the first step of a session; collective."""
        self._move = self._context.agree(self._now() != self._before)
