"""A DDP loop made by hand from `launcher.shards`: python hand_made.py FOLDER, or by torchrun.

Rank 0 leaves the weights of each case, as text, and what all ranks were given.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import launcher

SIZE = 13


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples that draw: the same for every number of processes."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.arange(4.0) / 4 + index + torch.rand(4)
        return x / SIZE, torch.tensor([float(index % 3)])


def arrays() -> launcher.ArrayDataset:
    x = torch.arange(4.0 * SIZE).view(SIZE, 4) / 50
    y = torch.arange(SIZE).view(SIZE, 1) % 3
    return launcher.ArrayDataset(x, y.float(), augment=lambda x, random: x + random.uniform(4))


def contrastive(model: Any, x: torch.Tensor) -> torch.Tensor:
    """A loss that compares each row with all of the global batch, a row's mean here."""
    z = model(x)
    rows, mine = launcher.gather(z)
    loss: torch.Tensor = (rows[mine] - rows.mean(0)).pow(2).sum(1).mean()
    return loss


def train(data: Any, first: int, last: int, weights: Any, *, gathers: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    if weights:
        model.load_state_dict(weights)
    inner = model
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = []
    for step in range(first, last):
        share = data[step]
        x, y = share.batch
        loss = contrastive(model, x) if gathers else nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        (loss * share.weight).backward()
        optimizer.step()
        given.append((share.size, share.own, share.weight, share.epoch, share.step, x.tolist()))
    return given, inner.state_dict()


def main(folder: Path) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    told: dict[str, Any] = {}
    for name, dataset in (("arrays", arrays()), ("samples", Noisy())):
        for batch_size in (1, 5, 20):
            for gathers in (False, True):
                data = launcher.shards(dataset, batch_size, seed=3)
                steps = 2 * len(data) + 1  # into a third epoch
                given, weights = train(data, 0, steps, None, gathers=gathers)
                case = {"given": by_rank(given), "weights": listed(weights)}
                told[f"{name} {batch_size} {gathers}"] = case
    _, halfway = train(launcher.shards(Noisy(), 5, seed=3), 0, 4, None, gathers=False)
    _, weights = train(launcher.shards(Noisy(), 5, seed=3), 4, 7, halfway, gathers=False)
    told["resumed"] = listed(weights)
    if os.environ.get("RANK", "0") == "0":
        (folder / "told.json").write_text(json.dumps(told))
    if dist.is_initialized():
        dist.destroy_process_group()


def by_rank(given: Any) -> list[Any]:
    if not dist.is_initialized():
        return [given]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, given)
    return everyones


def listed(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: weight.tolist() for name, weight in weights.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
