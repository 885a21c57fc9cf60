"""Datasets in memory: arrays that are fetched and transformed a whole batch at a time."""

import gzip
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.data.device import moved
from launcher.data.randomness import Numbers, SampleRandom
from launcher.errors import DataError
from launcher.files import assets


class ArrayDataset(Dataset[tuple[Tensor, ...]]):
    """Arrays in memory, fetched and transformed a whole batch at a time.

    `arrays` have equal first dimensions: images as uint8 (n, …), labels (n,). `transform` gets a
    batch of the first array and must treat every sample alike; `augment` gets the transformed
    batch and a SampleRandom, whose numbers belong to the samples and not to the batch, so that
    the result is the same for every world size. Both run where the batch is: on the GPU, if there
    is one and no data workers are asked for. Only the rows are copied to it, as they are; tensors
    that a transform brings along must be on the device of the batch.

    Transforms of torchvision.transforms.v2 that draw nothing take a batch of images
    (n, channels, height, width) as they take one image:

        v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    A random one would draw one set of numbers for the whole batch, and DataError refuses it: use
    `augment`, or an ordinary dataset, where each sample is seeded.
    """

    def __init__(
        self,
        *arrays: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
        augment: Callable[[Tensor, SampleRandom], Tensor] | None = None,
    ) -> None:
        if len({len(array) for array in arrays}) != 1:
            raise DataError(f"arrays differ in length: {[len(array) for array in arrays]}")
        self.arrays = arrays
        self.transform = transform
        self.augment = augment

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(array[0] for array in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Return a batch: each array's rows, shape (batch, …), augmented from torch's generator.

        This is how another dataset around this one asks (Subset, ConcatDataset); the generator is
        then seeded for each sample.
        """
        indices = [range(len(self))[index] for index in indices]  # -1 is the last, as in a list
        keys = torch.randint(2**62, (len(indices),)).tolist() if self.augment else indices
        return self.batch(np.asarray(indices, np.int64), SampleRandom(0, 0, keys))

    def batch(self, indices: Numbers, random: SampleRandom) -> tuple[Tensor, ...]:
        """Return a batch on the device of `random`, the random numbers of its samples."""
        rows = moved(torch.from_numpy(indices), self.arrays[0].device)
        # index_select copies rows whole; array[rows] takes ten times as long on a CPU.
        found = [array.index_select(0, rows) for array in self.arrays]
        first, *others = (moved(part, random.device) for part in found)
        if self.transform:
            first = self.transform(first)
        if self.augment:
            first = self.augment(first, random)
        return (first, *others)

    def on(self, device: torch.device) -> Self:
        """Return the same dataset with its arrays on a device."""
        there = copy(self)
        there.arrays = tuple(array.to(device) for array in self.arrays)
        return there

    @classmethod
    def from_torchvision(
        cls, source: Callable[..., Any], root: str | Path, *, train: bool, **options: Any
    ) -> Self:
        """Take a whole torchvision set like FashionMNIST into memory, downloaded where it must be.

        Raises DataError that names the folder and the files where it cannot be downloaded.
        """
        try:
            found = source(root=root, train=train, download=True)
        except (RuntimeError, OSError, URLError) as error:
            raise DataError(
                f"{getattr(source, '__name__', source)} is not in `{root}` "
                f"and cannot be downloaded: {str(error).strip()}",
                hint=_files_to_put(source, Path(root)),
            ) from error
        return cls(torch.as_tensor(found.data), torch.as_tensor(found.targets), **options)


def _files_to_put(source: Any, root: Path) -> str:
    folder = root / getattr(source, "__name__", "") / "raw"
    names = [Path(name).name for name, _ in getattr(source, "resources", [])]
    return f"put {', '.join(names) or 'its files'} into {folder.absolute()}"


def load_digits(*, train: bool, **options: Any) -> ArrayDataset:
    """Return the 8x8 handwritten digits that ship with the package: every fifth is a test image.

    Images are uint8 of 0 to 16, shape (n, 8, 8), labels int64: 1,437 to train, 360 to test.
    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, licence CC BY 4.0.
    """
    with gzip.open(assets("recipes") / "digits.csv.gz") as file:
        rows = torch.from_numpy(np.loadtxt(file, dtype=np.uint8, delimiter=","))  # (1797, 65)
    is_test = torch.arange(len(rows)) % 5 == 0
    rows = rows[~is_test if train else is_test]
    return ArrayDataset(rows[:, :64].reshape(-1, 8, 8), rows[:, 64].long(), **options)
