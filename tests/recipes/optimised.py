"""A small network whose optimizers and schedules are chosen by hyperparameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from launcher import ArrayDataset, Recipe, Schedule, Steps, warmup_cosine


class Turned(Optimizer):
    """Muon's idea: steps along what is nearer to an orthogonal matrix than the momentum is."""

    def __init__(self, params: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's own
        """Step; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("m", torch.zeros_like(parameter))
                momentum.mul_(0.9).add_(parameter.grad)
                near = momentum / (momentum.norm() + 1e-8)
                for _ in range(3):  # Newton and Schulz
                    near = 1.5 * near - 0.5 * near @ near.T @ near
                parameter.sub_(group["lr"] * near)


class Sharpened(nn.Module):
    """Cross entropy of scores that are scaled by what is learned."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.randn(3, dtype=dtype))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean, ()."""
        return nn.functional.cross_entropy(scores * self.sharpness.exp(), labels)


@dataclass(frozen=True)
class Optimised(Recipe):
    """An MLP with two hidden layers on made numbers."""

    epochs: int = 4
    batch_size: int = 30  # 7 steps an epoch, the last one of 17
    log_every: int = 3
    samples: int = 197
    dtype: Literal["float32", "float64"] = "float64"
    optimizers: Literal["one", "groups", "two", "loss"] = "one"
    schedule: Literal["none", "epoch", "cosine", "torch", "plateau", "both"] = "none"

    def model(self) -> nn.Module:
        layers = [nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
        return nn.Sequential(*layers).to(self.torch_dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of weights and samples."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def train_data(self) -> ArrayDataset:
        return self.made(self.samples, 1)

    def test_data(self) -> ArrayDataset:
        return self.made(61, 2)

    def made(self, samples: int, key: int) -> ArrayDataset:
        """Numbers, (samples, 8), and in which third of the plane two of them are."""
        x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(key))
        labels = (
            ((torch.atan2(x[:, 0], x[:, 1]) + torch.pi) / (2 * torch.pi) * 3).long().clamp(0, 2)
        )
        return ArrayDataset(x.to(self.torch_dtype), labels)

    def loss(self) -> nn.Module:
        learned = self.optimizers == "loss"
        return Sharpened(self.torch_dtype) if learned else nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module, loss: nn.Module) -> Optimizer | list[Optimizer]:
        if self.optimizers == "two":
            matrices = [p for p in model.parameters() if p.dim() == 2]
            vectors = [p for p in model.parameters() if p.dim() < 2]
            return [Turned(matrices, lr=0.02), AdamW(vectors, lr=0.01)]
        if self.optimizers == "groups":
            first, *others = model.children()
            rest = [p for layer in others for p in layer.parameters()]
            groups: list[dict[str, Any]] = [{"params": list(first.parameters()), "lr": 0.01}]
            return SGD([*groups, {"params": rest}], lr=0.1)
        parameters = [*model.parameters(), *loss.parameters()]
        return SGD(parameters, lr=0.1, momentum=0.9)

    def scheduler(self, optimizer: Any, steps: Steps) -> Schedule | list[Schedule] | None:
        if self.schedule == "both":
            first, second = optimizer
            plateau = ReduceLROnPlateau(second, mode="max", patience=0, factor=0.5)
            return [warmup_cosine(first, steps, warmup=0.2), Schedule(plateau, every="test")]
        if self.schedule == "epoch":
            return Schedule(StepLR(optimizer, 1, gamma=0.7), every="epoch")
        if self.schedule == "cosine":
            return warmup_cosine(optimizer, steps, warmup=0.2)
        if self.schedule == "torch":
            return Schedule(CosineAnnealingLR(optimizer, steps), every="step")
        if self.schedule == "plateau":
            plateau = ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
            return Schedule(plateau, every="test")
        return None
