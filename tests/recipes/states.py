"""A linear layer and, beside it, something that a state_dict may hold."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe

BUFFERS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "expanded": lambda: torch.full((1, 3), 2.0).expand(5, 3),
    "scalar, expanded": lambda: torch.tensor(2.0).expand(6),
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).T,
    "strided": lambda: torch.arange(16.0)[::2],
    "overlapping": lambda: torch.arange(8.0).unfold(0, 3, 1),
    "0-dim": lambda: torch.tensor(3),
    "empty": lambda: torch.zeros(0, 4),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "int16": lambda: torch.arange(3, dtype=torch.int16),
    "uint32": lambda: torch.ones(3, dtype=torch.uint32),
    "bf16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "complex64": lambda: torch.full((3,), 1 + 2j),
    "complex128": lambda: torch.full((3,), 1 + 2j, dtype=torch.complex128),
    "conjugated": lambda: torch.full((3,), 1 + 2j).conj(),
    "infinite": lambda: torch.full((3, 3), -torch.inf).triu(1),
}
EXTRAS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"count": 3, "names": ["a", None], "mean": torch.ones(2)},
    "array": lambda: {"state": np.random.RandomState(0).get_state()},
    "tensor": lambda: torch.ones(3)[::2],
    "deque": lambda: deque([1, 2]),
    "not taken back": lambda: 1,
}


class Holder(nn.Module):
    """Has a buffer or an extra state of one kind, and says whether it is what it was."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.kind = kind
        make = BUFFERS.get(kind, lambda: None)
        held = make()
        self.register_buffer("held", held)
        self.register_buffer("again", held)
        self.register_buffer("unsaved", make(), persistent=False)
        if kind == "tied":
            self.other, self.third = nn.Linear(4, 3), nn.Linear(4, 3)
            self.other.weight = self.third.weight = self.linear.weight
        if kind == "sliced":
            self.bias = nn.Parameter(torch.zeros(100)[10:13])

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (batch, 3)."""
        scores: Tensor = self.linear(x)
        if self.kind == "tied":
            scores = scores + self.other(x) + self.third(x)
        return scores + self.bias if self.kind == "sliced" else scores


class Telling(Holder):
    """Has an extra state, too."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.extra = EXTRAS[kind]()

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        if self.kind == "not taken back":
            raise NotImplementedError("later")
        self.extra = state


def made(kind: str) -> Holder:
    """A model with a state of some kind."""
    return Telling(kind) if kind in EXTRAS else Holder(kind)


@dataclass(frozen=True)
class States(Recipe):
    """A linear layer with something beside it."""

    epochs: int = 1
    batch_size: int = 10
    kind: str = "none"

    def model(self) -> nn.Module:
        return made(self.kind)

    def train_data(self) -> ArrayDataset:
        images = torch.rand(23, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.kind == "optimizer":
            return Odd(model.parameters(), lr=0.1)
        return torch.optim.AdamW(model.parameters())


class Odd(torch.optim.SGD):
    """Remembers what no checkpoint can keep, from its first step on."""

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["window"] = deque([1.0])
        return done
