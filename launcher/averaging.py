"""A moving average of the weights: smoother than the weights themselves, and often better."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """avg = decay · avg + (1 - decay) · weights after each step, the same on every rank.

    Buffers (statistics of batch norm) are not averaged: they are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model: list[Tensor] = list(model.parameters())
        self.weights = [p.detach().clone() for p in self._model]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that a step has made."""
        torch._foreach_lerp_(self.weights, self._model, 1 - self.decay)

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor] | None) -> None:
        """Go on from the average of a checkpoint; where it had none, from the model's weights."""
        torch._foreach_copy_(self.weights, list(weights or self._model))

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Have the averages in the place of the model's weights, for a test or to save them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self._model, self.weights, strict=True):
            parameter.data, average.data = average.data, parameter.data
