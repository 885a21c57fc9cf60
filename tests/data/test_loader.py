"""Loaders, and where random numbers come from."""

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import batches, digits, same
from torchvision.transforms import v2

from launcher.data.arrays import ArrayDataset
from launcher.data.device import CPU
from launcher.data.fetching import SizedData
from launcher.data.loader import Loader, sized, worker_count
from launcher.data.randomness import SampleRandom, mix
from launcher.data.sampler import ShardSampler
from launcher.errors import DataError, RecipeError
from launcher.processes import cores
from launcher.recipe.base import Recipe


class Stream(torch.utils.data.IterableDataset[int]):
    """Has no indices."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class StreamOfKnownLength(Stream):
    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "NoneType"),
        (iter([1]), "not a map-style"),
        ([], "empty"),
        (Stream(), "returned Stream, which is not a map-style dataset"),
        (StreamOfKnownLength(), "returned StreamOfKnownLength, which is not a map-style dataset"),
        (torch.utils.data.Dataset(), "not a map-style"),
        (type("Lengthless", (), {"__getitem__": lambda *_: 1})(), "not a map-style"),
    ],
)
def test_what_is_no_dataset_is_refused(made: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        sized(made, "train_data")


@settings(deadline=None)  # a busy machine
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=9), st.integers(0, 99))
def test_random_numbers_belong_to_samples_not_batches(indices: list[int], epoch: int) -> None:
    together = SampleRandom(5, epoch, indices).uniform(3)
    for row, index in enumerate(indices):
        assert torch.equal(together[row], SampleRandom(5, epoch, [index]).uniform(3)[0])


def test_draws_epochs_seeds_and_samples_differ_and_are_even() -> None:
    random = SampleRandom(0, 0, range(20_000))
    first, second = random.uniform(), random.uniform()
    assert not torch.equal(first, second)
    for other in (SampleRandom(0, 1, range(20_000)), SampleRandom(1, 0, range(20_000))):
        correlation = torch.corrcoef(torch.cat([first, other.uniform()], 1).T)[0, 1]
        assert abs(float(correlation)) < 0.03
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    tenths = torch.histc(first, 10, 0, 1)
    assert float(((tenths - 2000) ** 2 / 2000).sum()) < 30  # chi-square, 9 degrees of freedom
    assert set(random.integers(2, 5).flatten().tolist()) == {2, 3, 4}


@settings(deadline=None)  # a busy machine
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_mixed_keys_fit_torch_s_generators(words: list[int]) -> None:
    assert 0 <= mix(*words) < 2**63
    assert mix(*words) != mix(*words, 0)


def test_a_loader_starts_where_its_sampler_was_sent() -> None:
    class Numbers(Recipe):
        pass

    data = ArrayDataset(torch.arange(20))
    sampler = ShardSampler(20, 6, rank=1, world_size=2, micro_batch_size=2)
    loader = Loader(data, sampler, Numbers(), CPU)
    sampler.seek(2)
    whole = [[b[0].tolist() for b in shard.micro_batches] for shard in loader]
    sampler.seek(2, 2)
    assert [[b[0].tolist() for b in shard.micro_batches] for shard in loader] == whole[2:]
    assert len(whole) == 4


def test_augmentation_is_not_lost_behind_another_dataset() -> None:
    calls = []

    def noisy(images: torch.Tensor, random: SampleRandom) -> torch.Tensor:
        calls.append(len(random))
        return images + random.uniform(1)

    data = torch.utils.data.Subset(ArrayDataset(torch.zeros(9, 1), augment=noisy), [7, 2, 5, 3])

    def epoch(world: int, batch: int) -> dict[int, float]:
        """What each sample became, by index."""
        seen: dict[int, float] = {}
        for rank in range(world):
            sampler = ShardSampler(4, batch, rank=rank, world_size=world)
            loader = Loader(data, sampler, Recipe(num_workers=0), CPU)
            for shard, indices in zip(loader, sampler, strict=True):
                values = [float(v) for micro in shard.micro_batches for v in micro[0]]
                seen |= dict(zip(indices.micro_batches[0], values, strict=True))
        return seen

    assert epoch(1, 4) == epoch(2, 3) == epoch(3, 4)
    assert len(set(epoch(1, 4).values())) == 4
    assert calls


def test_a_subclass_that_fetches_by_itself_is_asked() -> None:
    class Doubled(ArrayDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            return (super().__getitem__(index)[0] * 2,)

    loader = Loader(Doubled(torch.arange(3)), ShardSampler(3, 3, shuffle=False), Recipe(), CPU)
    assert next(iter(loader)).micro_batches[0][0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("asked", "own_cores", "arrays", "count"),
    [
        (None, 0, False, 0),  # more processes than cores
        (None, 1, False, 0),
        (None, 2, False, 1),
        (None, 8, False, 7),
        (None, 64, False, 8),
        (None, 64, True, 0),
        (0, 64, False, 0),
        (3, 1, False, 3),
        (3, 64, True, 3),
    ],
)
def test_data_workers_are_what_is_asked_for_else_the_cores_but_one(
    asked: int | None, own_cores: int, arrays: bool, count: int
) -> None:
    assert worker_count(asked, own_cores, arrays=arrays) == count


class Pids(torch.utils.data.Dataset[int]):
    """Who fetched each sample."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def fetched_by(loader: Loader, epoch: int) -> set[int]:
    loader.sampler.seek(epoch)
    return {int(pid) for shard in loader for batch in shard.micro_batches for pid in batch}


# The child of this fork runs nothing but a data worker: the threads of the tests are not its own.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_workers_stay_over_epochs_and_end_with_their_loader() -> None:
    recipe = Recipe(num_workers=1)
    loader = Loader(Pids(), ShardSampler(8, 2), recipe, CPU)
    workers = fetched_by(loader, 0)
    assert len(workers) == 1
    assert os.getpid() not in workers
    assert fetched_by(loader, 1) == workers
    del loader
    assert not any(map(psutil.pid_exists, workers))


def test_the_number_of_data_workers_is_chosen_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores()))  # a core each: none is left
    loader = Loader(Pids(), ShardSampler(8, 2), Recipe(), CPU)
    assert fetched_by(loader, 0) == {os.getpid()}


def test_data_on_device_changes_nothing_on_a_cpu() -> None:
    assert same(batches(digits(CPU, data_on_device=True)), batches(digits(CPU)))


@pytest.mark.parametrize(
    ("dataset", "workers", "words"),
    [
        (Pids(), None, "needs data in arrays, and Pids is no such data"),
        (ArrayDataset(torch.arange(8)), 2, "leaves nothing to load for data workers"),
    ],
)
def test_data_on_device_that_cannot_be_is_refused(
    dataset: SizedData, workers: int | None, words: str
) -> None:
    recipe = Recipe(data_on_device=True, num_workers=workers)
    with pytest.raises(RecipeError, match=words) as caught:
        Loader(dataset, ShardSampler(8, 2), recipe, CPU)
    assert caught.value.hint
    assert "leave" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"transform": v2.Compose([v2.ToDtype(torch.float32), v2.RandomHorizontalFlip()])},
        {"transform": v2.RandomCrop(6)},
        {"augment": lambda images, _: images + torch.rand(())},
        {"augment": lambda images, _: images + np.random.rand()},
        {"transform": lambda images: images + random.random()},
    ],
    ids=["flip", "crop", "augment", "numpy", "python"],
)
def test_one_draw_for_a_whole_batch_is_refused(options: dict[str, Any]) -> None:
    data = ArrayDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), **options)
    loader = Loader(data, ShardSampler(4, 2), Recipe(), CPU)
    with pytest.raises(DataError, match="another one for every number of processes"):
        next(iter(loader))
