"""How long an ordinary dataset takes to be read, against torch's DataLoader.

    uv run python tests/benchmarks/reading.py [--workers 0,1,2] [--rounds 9]

28x28 images through PIL and ToTensor, alone and behind RandomCrop, in batches of 64. The two take
turns: without data workers batch by batch, by CPU time. At most 1.05 is the promise.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomCrop, ToTensor

from launcher.data.loader import Loader
from launcher.data.sampler import ShardSampler
from launcher.recipe.base import Recipe

SAMPLES, BATCH = 3200, 64


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Random images, each made into a PIL image and back."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 255, (SAMPLES, 28, 28), dtype=np.uint8)
        self.labels = torch.zeros(SAMPLES, dtype=torch.long)
        self.transform = transform

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def compared(dataset: Images, workers: int, rounds: int) -> tuple[float, float, float]:
    """Return ms a batch of ours and torch's, and the median of the ratios of their rounds."""
    recipe = Recipe(num_workers=workers)
    sampler = ShardSampler(SAMPLES, BATCH, shuffle=True)
    ours = Loader(dataset, sampler, recipe, torch.device("cpu"), test=False)
    theirs: Any = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    turn = by_batch if workers == 0 else by_epoch
    times: list[tuple[float, float]] = []
    for epoch in range(rounds + 1):
        sampler.seek(epoch)
        times += turn(ours, theirs) if epoch else by_epoch(ours, theirs)[:0]  # workers start
    ratio = statistics.median(one / other for one, other in times)
    return *(statistics.median(column) for column in zip(*times, strict=True)), ratio


def by_batch(ours: Iterable[Any], theirs: Iterable[Any]) -> list[tuple[float, float]]:
    """Return CPU ms of each batch, taken in turns: other load on the machine hardly shows."""
    pairs = iter(ours), iter(theirs)
    times: list[tuple[float, float]] = []
    while True:
        began = time.thread_time()
        one = next(pairs[0], None)
        between = time.thread_time()
        other = next(pairs[1], None)
        if one is None or other is None:
            return times
        times.append((1e3 * (between - began), 1e3 * (time.thread_time() - between)))


def by_epoch(ours: Iterable[Any], theirs: Iterable[Any]) -> list[tuple[float, float]]:
    """Return ms a batch of one epoch of each."""
    began = time.perf_counter()
    count = sum(1 for _ in ours)
    between = time.perf_counter()
    assert sum(1 for _ in theirs) == count
    ended = time.perf_counter()
    return [(1e3 * (between - began) / count, 1e3 * (ended - between) / count)]


def main() -> None:
    """Print a row for each dataset and number of data workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| dataset | data workers | launcher, ms a batch | torch, ms a batch | ratio |")
    print("| --- | --- | --- | --- | --- |")
    kinds = {"plain": ToTensor(), "cropped": Compose([RandomCrop(28, 4), ToTensor()])}
    for name, transform in kinds.items():
        for workers in map(int, asked.workers.split(",")):
            ours, theirs, ratio = compared(Images(transform), workers, asked.rounds)
            print(f"| {name} | {workers} | {ours:.2f} | {theirs:.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
