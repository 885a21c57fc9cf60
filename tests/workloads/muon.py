"""Matrices by an optimizer like Muon, all other weights by AdamW, stepped together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from launcher import ArrayDataset, Recipe, load_digits, main


class Orthogonal(Optimizer):
    """Steps of momentum whose singular values are all made about 1, by Newton and Schulz."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                mean = state.setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["momentum"]).add_(p.grad)
                p.add_(orthogonal(mean), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to (m, n), about."""
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    for _ in range(8):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


@dataclass(frozen=True)
class Muon(Recipe):
    """A perceptron for handwritten digits."""

    epochs: int = 2
    batch_size: int = 30
    test_batch_size: int = 50
    learning_rate: float = 0.02
    log_every: int = 3
    samples: int = 131
    test_samples: int = 83

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()

    def train_data(self) -> ArrayDataset:
        return digits(self.samples, train=True)

    def test_data(self) -> ArrayDataset:
        return digits(self.test_samples, train=False)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> list[Optimizer]:
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        return [Orthogonal(matrices, lr=self.learning_rate), AdamW(others, lr=self.learning_rate)]


def digits(count: int, *, train: bool) -> ArrayDataset:
    images, labels = load_digits(train=train).arrays
    return ArrayDataset(images[:count], labels[:count], transform=lambda x: x.double() / 16)


if __name__ == "__main__":
    main(Muon)
