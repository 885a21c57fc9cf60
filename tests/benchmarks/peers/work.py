"""What every peer does, and how it is timed: the quickstart's work on images made here.

`SPEED_WORK` chooses: `mlp` is the quickstart's network on 60,000 images, `conv` a small residual
network on the first 12,800, `small` a tenth of the quickstart's. A peer calls `timed()` before it
trains and `report()` at the end.
"""

import atexit
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

DATA = os.environ.get("SPEED_DATA", "data")
WORK = os.environ.get("SPEED_WORK", "mlp")
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
BATCH, RATE = 64, 1e-3
TRAIN, TEST = {"mlp": (60_000, 10_000), "conv": (12_800, 2_560), "small": (6_400, 1_000)}[WORK]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(width, width), *convolution(width, width)[:-1])

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.body(images))


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    kernel = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [kernel, nn.BatchNorm2d(outputs), nn.ReLU()]


def model() -> nn.Module:
    if WORK == "conv":
        body = [*convolution(1, 32), Residual(32), *convolution(32, 64, stride=2), Residual(64)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def make_images(root: Path) -> None:
    """Write what torchvision takes for FashionMNIST: learnable, the same every time."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(10, 1, 7, 7, generator=generator)
    patterns = nn.functional.interpolate(coarse, size=28, mode="bilinear")[:, 0]  # (10, 28, 28)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.rand(count, 28, 28, generator=generator)
        images = (255 * (0.4 * patterns[labels] + 0.6 * noise)).byte()
        head = struct.pack(">4i", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = struct.pack(">2i", 0x801, count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.byte().numpy().tobytes())


def in_memory(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (n, 1, 28, 28), and labels, int64 (n,)."""
    raw = Path(DATA) / "FashionMNIST" / "raw"
    images = np.fromfile(raw / f"{name}-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(raw / f"{name}-labels-idx1-ubyte", np.uint8, offset=8)
    tensor = torch.from_numpy(images).view(-1, 1, 28, 28)
    return tensor[:count], torch.from_numpy(labels).long()[:count]


def torchvision_sets() -> tuple[Any, Any]:
    """Return the training and the test set as the quickstart makes them."""
    from torch.utils.data import Subset
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    made = [FashionMNIST(DATA, train=train, transform=ToTensor()) for train in (True, False)]
    if WORK != "mlp":
        return Subset(made[0], range(TRAIN)), Subset(made[1], range(TEST))
    return made[0], made[1]


def timed() -> None:
    """Note the time and the CPU time of every optimizer step; written when the process ends."""
    walls, cpus = [], []

    def note(*_: Any) -> None:
        walls.append(time.time())
        cpus.append(time.process_time())

    def write() -> None:
        folder = os.environ.get("SPEED_OUT")
        if folder and walls:
            rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")  # Lightning's
            row = {"rank": int(rank), "walls": walls, "cpus": cpus}
            (Path(folder) / f"steps-{os.getpid()}.json").write_text(json.dumps(row))

    register_optimizer_step_post_hook(note)
    atexit.register(write)


def report(accuracy: float) -> None:
    print(f"RESULT {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    make_images(Path(DATA))
