"""What loaders hand out, and whether it is the same."""

from typing import Any

import torch

from launcher.data.arrays import load_digits
from launcher.data.loader import Loader
from launcher.data.sampler import ShardSampler
from launcher.recipe.base import Recipe


def batches(loader: Loader, epoch: int = 0, start: int = 0) -> list[list[torch.Tensor]]:
    """The micro-batches of an epoch's shards, their first arrays, on the CPU."""
    loader.sampler.seek(epoch, start)
    return [[micro[0].cpu() for micro in shard.micro_batches] for shard in loader]


def same(some: list[list[torch.Tensor]], others: list[list[torch.Tensor]]) -> bool:
    """Whether shards are bit for bit the same."""
    return all(
        all(map(torch.equal, mine, theirs)) for mine, theirs in zip(some, others, strict=True)
    )


def digits(device: torch.device, **hyperparameters: Any) -> Loader:
    """A loader whose batches are normalised, and augmented by sample."""
    recipe = Recipe(batch_size=100, micro_batch_size=30, **hyperparameters)
    data = load_digits(
        train=True,
        transform=lambda images: images.float() / 16,
        augment=lambda images, random: images + random.uniform().reshape(-1, 1, 1),
    )
    sampler = ShardSampler(len(data), 100, rank=1, world_size=2, micro_batch_size=30)
    return Loader(data, sampler, recipe, device)
