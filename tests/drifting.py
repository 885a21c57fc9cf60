"""Recipes whose ranks drift apart, and some that only look like it; run by test_drift, by torchrun.

Each rank writes what each of them ended with.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launcher import ArrayDataset, Recipe, StepSums, unwrapped
from launcher.errors import LauncherError
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.train.loops import train_loop
from launcher.train.prepare import prepare


class Network(nn.Module):
    """Two halves, one of them frozen, and statistics that are a rank's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, (batch, 3)."""
        out: Tensor = self.head(self.fixed(self.body(x)))
        return out


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean, ()."""
        return nn.functional.cross_entropy(outputs * self.scale, labels)


@dataclass(frozen=True)
class Example(Recipe):
    """A network whose step is given."""

    batch_size: int = 12
    log_every: int = 5
    step: str = "wrapped"  # a function of this file
    scaled: bool = False
    dtype: str = "float32"

    def model(self) -> nn.Module:
        return Network().to(getattr(torch, self.dtype))

    def train_data(self) -> ArrayDataset:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(120, 8, generator=generator).to(getattr(torch, self.dtype))
        return ArrayDataset(x, torch.arange(120) % 3)

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return Scaled() if self.scaled else nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
        parameters = [*model.parameters(), *loss.parameters()]
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        out = globals()[self.step](model, x)
        return StepSums(loss_fn(out, y) * len(y), len(y), (out.argmax(1) == y).sum())


KEPT: dict[str, Any] = {}  # from one step of a recipe to the next


def kept(name: str, make: Callable[[], Any]) -> Any:
    if name not in KEPT:
        KEPT[name] = make()
    return KEPT[name]


def network(model: nn.Module) -> Network:
    found = unwrapped(model)
    assert isinstance(found, Network)
    return found


def wrapped(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


def inner(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = network(model)(x)
    return out


def part(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = network(model).head(network(model).body(x))
    return out


def second(model: nn.Module, x: Tensor) -> Tensor:
    head = network(model).head
    optimizer = kept("second", lambda: torch.optim.Adam(head.parameters()))
    optimizer.zero_grad()
    head(x[:, :6]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return wrapped(model, x)


def outside(model: nn.Module, x: Tensor) -> Tensor:
    """A network that is no part of the model, and all alike at first."""
    other = kept("other", lambda: nn.Linear(8, 8, bias=False))
    if "outside" not in KEPT:
        nn.init.ones_(other.weight)
    optimizer = kept("outside", lambda: torch.optim.SGD(other.parameters(), lr=0.1))
    optimizer.zero_grad()
    other(x).square().mean().backward()
    optimizer.step()
    return wrapped(model, x + other(x).detach())


def by_hand(model: nn.Module, x: Tensor) -> Tensor:
    kept("steps", list).append(1)
    if len(KEPT["steps"]) == 7:
        with torch.no_grad():
            network(model).fixed.weight.data.add_(x[0, 0])
    return wrapped(model, x)


def unfreezes(model: nn.Module, x: Tensor) -> Tensor:
    network(model).fixed.requires_grad_(True)
    return wrapped(model, x)


def unsynchronised(model: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(model, DistributedDataParallel)
    with model.no_sync():
        return wrapped(model, x)


def rounds(model: nn.Module, x: Tensor) -> Tensor:
    """What another kind of processor may do: the last bits of a rank are others."""
    for parameter in network(model).parameters():
        sign = 1 if int(x.abs().sum()) % 2 else -1
        eps = torch.finfo(x.dtype).eps
        parameter.data.mul_(1 + sign * eps)
    return wrapped(model, x)


def thrown_dice(model: nn.Module, x: Tensor) -> Tensor:
    return wrapped(model, nn.functional.dropout(x))


DRIFTING: dict[str, Example] = {
    "inner": Example(step="inner"),
    "part": Example(step="part"),
    "second": Example(step="second"),
    "outside": Example(step="outside"),
    "by-hand": Example(step="by_hand"),
    "unfreezes": Example(step="unfreezes"),
    "unsynchronised": Example(step="unsynchronised"),
}
HEALTHY: dict[str, Example] = {
    "plain": Example(),
    "sockets": Example(shared_gradients=False),
    "dropout": Example(step="thrown_dice"),
    "unused": Example(find_unused_parameters=True),
    "bf16-weights": Example(dtype="bfloat16"),
    "double": Example(dtype="float64"),
    "loss": Example(scaled=True, micro_batch_size=2),
    "averaged": Example(ema_decay=0.9),
    "micro": Example(micro_batch_size=2, clip_norm=0.5),
    "rounds": Example(step="rounds", log_every=1),
    "rounds-bf16": Example(step="rounds", dtype="bfloat16"),
}


def ending(recipe: Example, context: Context) -> list[str] | None:
    """Train for an epoch; return kind and words of the error."""
    KEPT.clear()
    context.accelerator.ddp_handler.find_unused_parameters = recipe.find_unused_parameters
    training = prepare(recipe, context, StopRequest())
    try:
        train_loop(training, None)
    except LauncherError as error:
        return [type(error).__name__, error.message]
    return None


def main(out: Path) -> None:
    context = Context(cpu=True)
    ended = {name: ending(recipe, context) for name, recipe in {**DRIFTING, **HEALTHY}.items()}
    (out / f"rank-{context.rank}.json").write_text(json.dumps(ended))
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
