"""A classifier of torchvision's on any folder of images: one subfolder a class."""

import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import Dataset, default_collate
from torchvision import models
from torchvision.transforms import v2

from launcher import BatchRandom, Recipe, Schedule, StepSums, Totals, main, warmup_cosine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images
KINDS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


class Images(Dataset[tuple[Tensor, int]]):
    """Image files with the numbers of their classes."""

    def __init__(self, files: list[tuple[Path, int]], transform: v2.Compose) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.transform(opened(path)), label


@dataclass(frozen=True)
class ImageFolder(Recipe):
    """A torchvision classifier on a folder of images: CutMix or MixUp, EMA, top-1 and top-5."""

    epochs: int = 90
    batch_size: int = 256
    learning_rate: float = 0.1
    ema_decay: float | None = 0.999
    data: Path = Path("images")  # folder with train/ and val/, or with a subfolder for each class
    val_share: float = 0.1  # of the images of each class, to test on, where there is no val/
    skip_broken: bool = False  # read all images first, name the broken ones and leave them out
    arch: str = "resnet18"  # a classifier of torchvision.models
    pretrained: Path | None = None  # file of weights, .pth or .safetensors: those that match
    size: int = 224  # pixels of an image's side
    mix: Literal["none", "mixup", "cutmix"] = "cutmix"  # how an image is mixed with its partner
    mix_alpha: float = 1.0  # of the beta distribution that shares are drawn from
    label_smoothing: float = 0.1  # share of a label that goes to all classes
    momentum: float = 0.9  # share of the last step that SGD keeps
    weight_decay: float = 5e-5  # of all weights

    def model(self) -> nn.Module:
        model: nn.Module = models.get_model(self.arch, num_classes=len(self.classes))
        if self.pretrained:
            load_matching(model, self.pretrained)
        return model

    def train_data(self) -> Images:
        crop = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
        return Images(self.files("train"), v2.Compose([*crop, *to_numbers()]))

    def test_data(self) -> Images:
        cut = [v2.Resize(self.size * 8 // 7, antialias=True), v2.CenterCrop(self.size)]
        return Images(self.files("val"), v2.Compose([*cut, *to_numbers()]))

    @cached_property
    def classes(self) -> list[str]:
        """Return the names of the classes, which are those of the subfolders."""
        folder = self.data / "train" if (self.data / "train").is_dir() else self.data
        return sorted(path.name for path in folder.iterdir() if path.is_dir())

    def files(self, part: Literal["train", "val"]) -> list[tuple[Path, int]]:
        """Return the image files of a part and the numbers of their classes."""
        parted = (self.data / "train").is_dir()
        folder = self.data / part if parted else self.data
        found = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in KINDS
            and (parted or (share(path, folder) < self.val_share) == (part == "val"))
        ]
        return without_broken(found, part) if self.skip_broken else found

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
        return warmup_cosine(optimizer, steps, warmup=0.05)

    def partners(self, size: int, random: Any) -> Any:
        return None if self.mix == "none" else random.permutation(size)

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        if self.mix == "none":
            return default_collate(samples)
        (x, y), (other, theirs) = (
            default_collate(list(part)) for part in zip(*samples, strict=True)
        )
        kept = float(random.batch.beta(self.mix_alpha, self.mix_alpha))  # one for the global batch
        if self.mix == "mixup":
            x = kept * x + (1 - kept) * other
        else:
            rows, columns = box(1 - kept, self.size, random)
            x[:, :, rows, columns] = other[:, :, rows, columns]
            kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / self.size**2
        count = len(self.classes)
        return x, kept * one_hot(y, count) + (1 - kept) * one_hot(theirs, count)

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        images, labels = batch
        scores = model(images)  # (batch, classes)
        best = scores.topk(min(5, scores.shape[1])).indices  # (batch, 5)
        hits = best == labels[:, None]
        loss = loss_fn(scores, labels)
        sums = {"top5": hits.sum()}
        return StepSums(loss, len(labels), hits[:, 0].sum(), scale=len(labels), sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"top5": totals["top5"] / totals.count} if "top5" in totals else {}


def box(area: float, size: int, random: BatchRandom) -> tuple[slice, slice]:
    """Return rows and columns of a box with a share of an image's area, but for what is outside."""
    half = round(size * math.sqrt(area) / 2)
    centres = random.batch.integers(size, size=2)
    return tuple(slice(max(0, c - half), min(size, c + half)) for c in centres)  # type: ignore[return-value]  # two


def to_numbers() -> list[Any]:
    """Return what makes a normalised tensor of an image."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def opened(path: Path) -> Image.Image:
    """Return an image file in RGB; raises OSError that names it where it is broken."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow and its decoders raise what they like
        raise OSError(f"image `{path}` cannot be read: {error}") from error


def share(path: Path, folder: Path) -> float:
    """Return a number from 0 to 1 that a file has wherever its folder is, and on every machine."""
    return zlib.crc32(path.relative_to(folder).as_posix().encode()) / 2**32


def without_broken(files: list[tuple[Path, int]], part: str) -> list[tuple[Path, int]]:
    """Return the files that can be read, and print which cannot."""

    def wrong(file: tuple[Path, int]) -> str | None:
        try:
            opened(file[0])
        except OSError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(wrong, files))
    broken = [words for words in found if words]
    print(*broken, f"{part}: {len(broken)} of {len(files)} images left out", sep="\n", flush=True)
    return [file for file, words in zip(files, found, strict=True) if words is None]


def load_matching(model: nn.Module, path: Path) -> None:
    """Load what a file has of a model's weights by name and shape: all but the last layer, say."""
    whole = path.suffix == ".safetensors"
    saved = load_file(path) if whole else torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    fits = {n: t for n, t in saved.items() if n in own and own[n].shape == t.shape}
    if not fits:
        raise ValueError(f"`{path}` has none of the weights of this model")
    model.load_state_dict(fits, strict=False)
    left = ", ".join(sorted(own.keys() - fits.keys()))
    print(f"{path}: {len(fits)} of {len(own)} tensors; new: {left or 'none'}", flush=True)


if __name__ == "__main__":
    main(ImageFolder)
