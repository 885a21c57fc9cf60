"""A GPT as a recipe, and the same training by hand: `python gpt.py` is the loop."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))
from launcher import ArrayDataset, Recipe, StepSums

SKIPPED = 12  # first steps, in which everything is compiled and settles


class Block(nn.Module):
    """Attention and a network, each behind a norm, added to what they get."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, bias=False) for _ in range(2)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width)."""
        batch, tokens, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, width / heads) each
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        widened: Tensor = self.narrow(functional.gelu(self.wide(self.norms[1](x))))
        return x + widened


class GPT(nn.Module):
    """Predicts each token from those before it; embedding and output share their weights."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss of tokens (batch, context + 1) after the first, a scalar."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        places = torch.arange(inputs.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(inputs) + self.places(places)))
        scores = functional.linear(x, self.tokens.weight)  # (batch, context, vocabulary)
        return functional.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())


@dataclass(frozen=True)
class Gpt(Recipe):
    """A GPT on random tokens: for its speed."""

    batch_size: int = 16
    test_batch_size: int = 16
    layers: int = 24
    width: int = 1024
    heads: int = 16
    vocabulary: int = 50304
    context: int = 1024
    samples: int = 16 * 40
    learning_rate: float = 3e-4

    def model(self) -> nn.Module:
        timed()
        return GPT(self.layers, self.width, self.heads, self.vocabulary, self.context)

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(made(self.samples, self.context, self.vocabulary))

    def test_data(self) -> ArrayDataset:
        return ArrayDataset(made(16, self.context, self.vocabulary))

    def loss(self) -> nn.Module:
        return nn.Identity()  # the model has it

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, fused=self.fused)

    @property
    def fused(self) -> bool | None:
        """As the loop by hand has it."""
        return torch.cuda.is_available() or None

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        (tokens,) = batch
        count = tokens.shape[0] * (tokens.shape[1] - 1)
        return StepSums(model(tokens), count, scale=count)


def made(samples: int, context: int, vocabulary: int) -> Tensor:
    """Return random tokens, (samples, context + 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (samples, context + 1), generator=generator)


def timed() -> None:
    """Print, at the end, the median time between optimizer steps, on the device."""
    import atexit
    import statistics

    from torch.optim.optimizer import register_optimizer_step_post_hook

    events: list[Any] = []

    def note(*_: Any) -> None:
        if not on_gpu:
            events.append(time.perf_counter())
            return
        events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        events[-1].record()

    def tell() -> None:
        if on_gpu:
            torch.cuda.synchronize()
        pairs = list(zip(events[SKIPPED:], events[SKIPPED + 1 :], strict=False))
        gaps = [a.elapsed_time(b) if on_gpu else 1e3 * (b - a) for a, b in pairs]
        memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0
        words = f"STEP_MS {statistics.median(gaps):.3f} MEMORY_GB {memory:.1f}"
        Path(os.environ["GPT_OUT"]).write_text(words)

    on_gpu = torch.cuda.is_available()
    register_optimizer_step_post_hook(note)
    atexit.register(tell)


def by_hand(options: dict[str, str]) -> None:
    """Train as PyTorch's documentation has it: bf16 autocast, compiled, fused AdamW."""
    from launcher.recipe.hyperparameters import configure

    recipe = cast("Gpt", configure(Gpt, "gpt", options))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = recipe.model().to(device)
    if recipe.compile:
        model.compile()
    optimizer = recipe.optimizer(model)
    tokens = made(recipe.samples, recipe.context, recipe.vocabulary).to(device)
    for batch in torch.split(tokens, recipe.batch_size):
        with torch.autocast(device, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
            loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    by_hand(dict(word.split("=", 1) for word in sys.argv[1:]))
