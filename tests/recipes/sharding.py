"""Small models to shard, an MLP and a GPT, of sizes that nothing divides."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from launcher import ArrayDataset, Recipe, StepSums, main
from launcher.sharding import shares


class Some(nn.Linear):
    """Changes only samples whose first number is large: in some steps none, or none of a rank's."""

    def __init__(self, width: int, least: float) -> None:
        super().__init__(width, width)
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0] > self.least
        return torch.where(rows[:, None], super().forward(x), x) if rows.any() else x


class Layer(nn.Module):
    """Adds to x what follows from it."""

    def __init__(self, width: int, uneven: bool) -> None:
        super().__init__()
        self.some = Some(width, 0.5) if uneven else nn.Identity()
        self.norm, self.into, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 7),
            nn.Linear(7, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.some(x)
        out: Tensor = x + self.out(torch.tanh(self.into(self.norm(x))))
        return out


class MLP(nn.Module):
    """Layers in lists of lists, a scalar, and buffers: one that moves, one that is not saved."""

    def __init__(self, width: int, uneven: bool) -> None:
        super().__init__()
        self.some = Some(5, 1.0) if uneven else nn.Identity()
        self.first = nn.Linear(5, width)
        inner = nn.ModuleList([Layer(width, uneven), Layer(width, uneven)])
        self.layers = nn.ModuleList([Layer(width, uneven), inner])
        self.last = nn.Linear(width, 3)
        self.heat = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("shift", torch.randn(width), persistent=False)

    seen: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        first: Any = self.layers[0]
        later: Any = self.layers[1]
        x = later[1](later[0](first(self.first(self.some(x)) + self.shift)))
        out: Tensor = self.last(x) * self.heat
        return out


class Block(nn.Module):
    """Attention to what came before, then a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 11), nn.GELU(), nn.Linear(11, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=2)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True))
        out: Tensor = x + self.mlp(self.norms[1](x))
        return out


class GPT(nn.Module):
    """A decoder whose last layer is its embedding, transposed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(7, width), nn.Embedding(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


@dataclass(frozen=True)
class Sharded(Recipe):
    """Trains either, in either precision."""

    kind: Literal["mlp", "gpt"] = "mlp"
    uneven: bool = False  # some weights are used for some samples only
    exact: bool = True  # float64
    adam: bool = False
    both: bool = False  # two optimizers
    large: int = 4 << 30  # bytes that rank 0 does not hold at once
    width: int = 13
    samples: int = 50
    batch_size: int = 13
    learning_rate: float = 0.02

    def model(self) -> nn.Module:
        shares.LARGE = self.large
        mlp = self.kind == "mlp"
        model: nn.Module = MLP(self.width, self.uneven) if mlp else GPT(self.width)
        return model.double() if self.exact else model

    def train_data(self) -> ArrayDataset:
        return self.data(self.samples)

    def test_data(self) -> ArrayDataset:
        return self.data(self.samples - 3)

    def data(self, samples: int) -> ArrayDataset:
        generator = torch.Generator().manual_seed(samples)
        if self.kind == "gpt":
            tokens = torch.randint(7, (samples, 6), generator=generator)
            return ArrayDataset(tokens, torch.rand(samples, 6, generator=generator) < 0.6)
        x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
        return ArrayDataset(x if self.exact else x.float(), (x.sum(1) > 0).long())

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(reduction="sum" if self.kind == "gpt" else "mean")

    def optimizer(self, model: nn.Module) -> Any:
        weights = list(model.parameters())
        kind: Any = torch.optim.AdamW if self.adam else torch.optim.SGD
        if not self.both:
            return kind(weights, lr=self.learning_rate)
        first = torch.optim.SGD(weights[:3], lr=self.learning_rate, momentum=0.9)
        return [first, kind(weights[3:], lr=self.learning_rate / 2)]

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        if self.kind == "mlp":
            return super().train_step(model, batch, loss_fn)
        tokens, counts = batch
        scores = model(tokens[:, :-1])
        wanted, counted = tokens[:, 1:], counts[:, 1:]
        loss = loss_fn(scores[counted], wanted[counted])
        right = (scores.argmax(2) == wanted) & counted
        return StepSums(loss, counted.sum(), right.sum())


if __name__ == "__main__":
    main(Sharded)
