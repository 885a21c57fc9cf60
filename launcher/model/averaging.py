"""A moving average of the weights: smoother than the weights themselves, and often better."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from launcher.model.pieces import cut_as, in_pieces, own

# What a checkpoint has of it; the weights alone in checkpoints of old.
Saved = dict[str, Any] | Sequence[Tensor] | None


class Average:
    """avg = d · avg + (1 - d) · weights after each step, the same on every rank.

    d = min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's ExponentialMovingAverage:
    a short run would otherwise end with little but the weights that it began with. The running
    statistics of batch norm are averaged alike, to fit the weights; other buffers are not.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = averaged(model)
        self.weights = [p.detach().clone() for p in self._model]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that a step has made."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(_own(self.weights), _own(self._model), 1 - decay)
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"weights": self.weights, "updates": self.updates}

    @torch.no_grad()
    def load(self, saved: Saved, steps: int) -> None:
        """Go on from the average of a checkpoint; where it had none, from the model's weights.

        `steps` is how many the run had made, and so the updates of a checkpoint of old.
        """
        of_old = {"weights": saved or [], "updates": steps}
        told: dict[str, Any] = saved if isinstance(saved, dict) else of_old
        weights = list(told["weights"])
        self.updates = told["updates"] if weights else 0
        new = [*map(cut_as, weights, self.weights), *self._model[len(weights) :]]
        torch._foreach_copy_(_own(self.weights), _own(new))

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Have the averages in the place of the model's weights, for a test or to save them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._model, self.weights, strict=True):
            if in_pieces(parameter):  # what is gathered is not looked for in `.data`
                plain = own(parameter).clone()
                own(parameter).copy_(own(average))
                own(average).copy_(plain)
            else:
                parameter.data, average.data = average.data, parameter.data


def averaged(model: nn.Module) -> list[Tensor]:
    """Return the tensors of a model of which there is an average."""
    return [*model.parameters(), *_statistics(model)]


def _own(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [own(tensor) for tensor in tensors]


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield module.running_mean
            assert module.running_var is not None
            yield module.running_var
