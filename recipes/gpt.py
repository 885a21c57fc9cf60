"""A small GPT that learns to add: data are made by code, no file and no download is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from launcher import ArrayDataset, Recipe, Schedule, StepSums, Totals, main, warmup_cosine

PLUS, EQUALS, VOCABULARY = 10, 11, 12  # 0 to 9 are the digits


class Block(nn.Module):
    """Attention to what came before, then a perceptron; each on normed inputs and added to them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return what follows from x, both (batch, time, dim)."""
        parts = self.qkv(self.attention_norm(x)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)  # (batch, heads, time, …)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class GPT(nn.Module):
    """A decoder whose last layer is its embedding, transposed."""

    def __init__(self, length: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of the next token, (batch, time, vocabulary), for tokens (batch, time)."""
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


@dataclass(frozen=True)
class Addition(Recipe):
    """A small GPT learns to add numbers, made by code: 99% entirely right in minutes."""

    steps: int | None = 1500
    test_every: int | None = 250
    batch_size: int = 256
    learning_rate: float = 3e-3
    clip_norm: float | None = 1.0
    best_by: str | None = "exact"
    digits: int = 3  # of each number
    test_additions: int = 2000  # that are kept out of training
    dim: int = 64  # width of the network
    heads: int = 4  # of attention
    layers: int = 2  # blocks
    weight_decay: float = 0.1  # of matrices; norms and biases have none

    def model(self) -> nn.Module:
        return GPT(3 * self.digits + 2, self.dim, self.heads, self.layers)

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(additions(self.pairs()[self.test_additions :], self.digits))

    def test_data(self) -> ArrayDataset:
        return ArrayDataset(additions(self.pairs()[: self.test_additions], self.digits))

    def pairs(self) -> Tensor:
        """Return all pairs of numbers, a · 10^digits + b, in an order that is always the same."""
        return torch.randperm(100**self.digits, generator=torch.Generator().manual_seed(0))

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(reduction="sum")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        rate, decay = self.learning_rate, self.weight_decay
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
        return warmup_cosine(optimizer, steps, warmup=0.05)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        tokens = batch[0].long()  # (additions, time)
        answers = tokens[:, -self.digits - 1 :]  # (additions, digits + 1): what is to be learned
        scores = model(tokens[:, :-1])[:, -self.digits - 1 :]
        loss = loss_fn(scores.flatten(0, 1), answers.flatten())
        right = scores.argmax(2) == answers
        # All right with the right digits before them: so it is, too, with its own before them.
        sums = {"exact": right.all(1).sum(), "additions": torch.tensor(len(tokens))}
        return StepSums(loss, answers.numel(), right.sum(), sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"exact": totals["exact"] / totals["additions"]}


def additions(pairs: Tensor, digits: int) -> Tensor:
    """Return a + b = c as tokens, uint8 (n, 3 · digits + 3); c from its last digit on, as sums are.

    Pairs are a · 10^digits + b, (n,).
    """
    a, b = pairs // 10**digits, pairs % 10**digits
    powers = 10 ** torch.arange(digits + 1)
    first, second = (number[:, None] // powers[:-1].flip(0) % 10 for number in (a, b))
    total = (a + b)[:, None] // powers % 10
    plus, equals = (torch.full((len(pairs), 1), sign) for sign in (PLUS, EQUALS))
    return torch.cat([first, plus, second, equals, total], dim=1).to(torch.uint8)


if __name__ == "__main__":
    main(Addition)
