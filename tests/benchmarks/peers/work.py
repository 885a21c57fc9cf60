"""What every peer does, and how it is timed: the quickstart's work on images made here.

`SPEED_WORK` chooses: `mlp` is the quickstart's network on 60,000 images, `conv` a small residual
network on the first 12,800, `small` a tenth of the quickstart's, `resnet` a ResNet-18 on 50,000
images of CIFAR's shape, for a GPU. A peer calls `timed()` before it trains and `report()` at the
end.
"""

import atexit
import json
import os
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import profile, schedule

DATA = os.environ.get("SPEED_DATA", "data")
WORK = os.environ.get("SPEED_WORK", "mlp")
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RATE = 1e-3


class Size(NamedTuple):
    train: int
    test: int
    batch: int = 64
    shape: tuple[int, int, int] = (1, 28, 28)  # of an image


SIZES = {
    "mlp": Size(60_000, 10_000),
    "conv": Size(12_800, 2_560),
    "small": Size(6_400, 1_000),
    "resnet": Size(50_000, 10_000, 512, (3, 32, 32)),
}
TRAIN, TEST, BATCH, SHAPE = SIZES[WORK]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        second = convolution(outputs, outputs)[:-1]
        self.body = nn.Sequential(*convolution(inputs, outputs, stride), *second)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            shrink = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shrink, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.shortcut(images) + self.body(images))


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    kernel = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [kernel, nn.BatchNorm2d(outputs), nn.ReLU()]


def residual_network(body: list[nn.Module], width: int) -> nn.Module:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def resnet18() -> nn.Module:
    """ResNet-18 for images of 32 x 32: no pooling, and a stem that keeps their size."""
    body = [*convolution(3, 64), Residual(64, 64), Residual(64, 64)]
    for width in (128, 256, 512):
        body += [Residual(width // 2, width, stride=2), Residual(width, width)]
    return residual_network(body, 512)


def model(work: str = WORK) -> nn.Module:
    if work == "resnet":
        return resnet18()
    if work == "conv":
        body = [*convolution(1, 32), Residual(32, 32)]
        return residual_network([*body, *convolution(32, 64, stride=2), Residual(64, 64)], 64)
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
    """Return images, uint8 (n, *SHAPE), and labels, int64 (n,)."""
    if WORK == "resnet":
        return synthetic(TRAIN if name == "train" else 0, count)
    raw = Path(DATA) / "FashionMNIST" / "raw"
    images = np.fromfile(raw / f"{name}-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(raw / f"{name}-labels-idx1-ubyte", np.uint8, offset=8)
    tensor = torch.from_numpy(images).view(-1, 1, 28, 28)
    return tensor[:count], torch.from_numpy(labels).long()[:count]


def synthetic(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return images and labels from `first` on: ten coarse patterns under noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(100, (10, 3, 8, 8), generator=generator, dtype=torch.uint8)
    patterns = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)  # (10, 3, 32, 32)
    generator.manual_seed(1 + first)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(156, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return patterns[labels] + noise, labels


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
    """Note the time and the CPU time of every optimizer step; written when the process ends.

    On a GPU the host runs ahead of the device: there, times are those of an event behind each
    step. `SPEED_TRACE` names a file for a trace of some steps.
    """
    walls: list[float] = []
    cpus: list[float] = []
    events: list[torch.cuda.Event] = []
    profiler = traced(Path(os.environ["SPEED_TRACE"])) if "SPEED_TRACE" in os.environ else None

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        walls.append(time.time())
        cpus.append(time.process_time())
        if optimizer.param_groups[0]["params"][0].is_cuda:
            events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]  # torch's own
            events[-1].record()
        if profiler:
            profiler.step()

    def write() -> None:
        folder = os.environ.get("SPEED_OUT")
        if events:
            torch.cuda.synchronize()
            walls[:] = [walls[0] + events[0].elapsed_time(event) / 1e3 for event in events]
        if folder and walls:
            rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")  # Lightning's
            row = {"rank": int(rank), "walls": walls, "cpus": cpus}
            (Path(folder) / f"steps-{os.getpid()}.json").write_text(json.dumps(row))

    register_optimizer_step_post_hook(note)
    atexit.register(write)


def traced(path: Path) -> profile:
    """Start a profiler that writes to a file what 20 steps do.

    They are late enough for all to have settled, and no contender reports in them. (`launcher run
    --profile` traces the first steps, in which its ranks ask each other more often than later.)
    """
    made = profile(
        schedule=schedule(skip_first=70, wait=0, warmup=2, active=20, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
    )
    made.start()
    return made


def report(accuracy: float) -> None:
    print(f"RESULT {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    make_images(Path(DATA))
