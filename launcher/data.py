"""Datasets in memory, and loaders that hand each rank its shard of every global batch."""

import gzip
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from launcher.errors import DataError
from launcher.processes import die_with_parent
from launcher.randomness import SampleRandom, seed_sample
from launcher.recipe import Recipe
from launcher.run_dir import assets
from launcher.sampler import ShardIndices, ShardSampler

__all__ = ["ArrayDataset", "Loader", "SampleRandom", "Shard", "load_digits"]


class ArrayDataset(Dataset[tuple[Tensor, ...]]):
    """Arrays in memory, fetched and transformed a whole batch at a time.

    `arrays` have equal first dimensions: images as uint8 (n, …), labels (n,). `transform` gets a
    batch of the first array and must treat every sample alike; `augment` gets the transformed
    batch and a SampleRandom, whose numbers belong to the samples and not to the batch, so that
    the result is the same for every world size.
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
        keys = torch.randint(2**62, (len(indices),)).tolist() if self.augment else indices
        return self.batch(indices, SampleRandom(0, 0, keys))

    def batch(self, indices: list[int], random: SampleRandom) -> tuple[Tensor, ...]:
        """Return a batch, augmented with the random numbers of its samples."""
        rows = torch.tensor(indices)
        first, *others = (array[rows] for array in self.arrays)
        if self.transform:
            first = self.transform(first)
        if self.augment:
            first = self.augment(first, random)
        return (first, *others)

    @classmethod
    def from_torchvision(
        cls, source: Callable[..., Any], root: str | Path, *, train: bool, **options: Any
    ) -> "ArrayDataset":
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


class Shard(NamedTuple):
    """One rank's part of one global batch, in memory."""

    size: int  # samples in the global batch
    own: int  # samples in this shard that count; 0: a ghost, to be weighted 0
    micro_batches: list[Any]  # what the dataset gave, collated


class SizedData(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class _Fetcher(Dataset[Shard]):
    """Turns indices into a shard; runs in the data workers, where there are any.

    Every sample of an ordinary dataset is loaded with generators seeded from (seed, epoch,
    sample), so that random transforms are the same for every world size and number of workers.
    """

    def __init__(self, dataset: SizedData, recipe: Recipe) -> None:
        self.dataset = dataset
        self.recipe = recipe

    def __getitem__(self, indices: ShardIndices) -> Shard:
        batches = [self._batch(indices.epoch, micro) for micro in indices.micro_batches]
        return Shard(indices.size, indices.own, batches)

    def _batch(self, epoch: int, indices: list[int]) -> Any:
        seed = self.recipe.seed
        if isinstance(self.dataset, ArrayDataset) and _fetches_as_given(type(self.dataset)):
            return self.dataset.batch(indices, SampleRandom(seed, epoch, indices))
        samples = []
        for index in indices:
            seed_sample(seed, epoch, index)
            samples.append(self.dataset[index])
        return self.recipe.collate(samples)


def _fetches_as_given(kind: type[ArrayDataset]) -> bool:
    """Whether a subclass has left fetching as it is."""
    names = ("__getitem__", "__getitems__")
    return all(getattr(kind, name) is getattr(ArrayDataset, name) for name in names)


class Loader:
    """The shards of one rank, on its device, one for each global batch in order."""

    def __init__(
        self, dataset: SizedData, sampler: ShardSampler, recipe: Recipe, device: torch.device
    ) -> None:
        self.sampler = sampler
        self.device = device
        workers = recipe.num_workers
        fetcher = _Fetcher(dataset, recipe)
        self._source: Callable[[], Iterator[Shard]] = lambda: map(fetcher.__getitem__, sampler)
        if workers or device.type == "cuda":
            loader: DataLoader[Shard] = DataLoader(
                fetcher,
                batch_size=None,  # the sampler already speaks in batches
                sampler=sampler,
                collate_fn=_as_it_is,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                worker_init_fn=_start_data_worker if workers else None,
                multiprocessing_context="fork" if workers else None,
            )
            self._source = lambda: iter(loader)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Shard]:
        for shard in self._source():
            if self.device.type == "cpu":
                yield shard
            else:
                yield shard._replace(micro_batches=self._to_device(shard.micro_batches))

    def _to_device(self, batches: list[Any]) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda tensor: tensor.to(self.device, non_blocking=True), batches
        )


def _as_it_is(shard: Any) -> Any:
    """Collate nothing: the fetcher has done it."""
    return shard


def _start_data_worker(_worker: int) -> None:
    """Leave stop requests to the training process, which ends its data workers by SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent and parent.pid:
        die_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def sized(dataset: Any, what: str) -> SizedData:
    """Return a dataset as it is; raises DataError where it is empty or no map-style dataset."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"`{what}` returned {type(dataset).__name__}, which is not a map-style dataset",
            hint="return an object with __len__ and __getitem__, or an ArrayDataset",
        )
    if len(dataset) == 0:
        raise DataError(f"`{what}` returned an empty dataset")
    return cast("SizedData", dataset)
