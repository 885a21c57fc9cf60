"""Samples on their way into a batch: told apart when they fail, joined and drawn for all alike."""

import dataclasses
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from launcher import Recipe, sample_seed
from launcher.data.arrays import ArrayDataset
from launcher.data.device import CPU
from launcher.data.loader import Loader
from launcher.data.sampler import ShardSampler
from launcher.errors import LauncherError, RecipeError, SampleFailed
from launcher.run.record import Record

in_a_fork = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Made(Dataset[Any]):
    """Makes each sample by a function of its index."""

    def __init__(self, make: Callable[[int], Any], size: int = 12) -> None:
        self.make, self.size = make, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def loader(
    dataset: Any, recipe: Recipe, rank: int = 0, world: int = 1, *, test: bool = False
) -> Loader:
    cut = recipe.most_at_once
    sampler = ShardSampler(
        len(dataset), recipe.batch_size, rank=rank, world_size=world, micro_batch_size=cut
    )
    sampler.seek(3)
    return Loader(dataset, sampler, recipe, CPU, test=test)


def broken(index: int) -> Tensor:
    if index == 7:
        raise ValueError("bad magic")
    return torch.zeros(2)


@in_a_fork
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("test", [False, True])
def test_a_sample_that_cannot_be_loaded_is_named(workers: int, test: bool) -> None:
    recipe = Recipe(batch_size=4, num_workers=workers)
    loaders = [loader(Made(broken), recipe, rank, 2, test=test) for rank in (0, 1)]
    with pytest.raises(SampleFailed) as caught:
        [list(one) for one in loaders]
    kind = "test" if test else "train"
    words = f"sample 7 of `{kind}_data` could not be loaded \\(epoch 3, rank [01]\\): "
    assert caught.match(words + "ValueError: bad magic")
    record = Record.started(0)
    record.end("failed", caught.value)
    assert record.exit_code == 1
    assert record.first_cause
    assert "test_fetching.py" in record.users_frames
    assert record.users_frames.endswith("ValueError: bad magic\n")
    assert "launcher/data/fetching.py" not in record.users_frames
    assert "launcher/data/fetching.py" in record.traceback


def test_what_makes_no_batch_is_named_by_its_samples() -> None:
    ragged = Made(lambda index: torch.zeros(2 + index % 2))
    with pytest.raises(SampleFailed, match=r"the batch of samples \d+, \d+, .*: RuntimeError"):
        list(loader(ragged, Recipe(batch_size=6, num_workers=0)))
    turned = ArrayDataset(torch.zeros(12, 2), transform=lambda batch: batch.view(7, 7))
    with pytest.raises(SampleFailed, match=r"samples \d+, .*, … of `train_data`.*shape '\[7, 7"):
        list(loader(turned, Recipe(batch_size=12)))


@in_a_fork
def test_an_error_in_words_keeps_its_words_on_its_way_from_a_data_worker() -> None:
    def refuse(_: int) -> None:
        raise RecipeError("the images are not there", hint="mount them")

    with pytest.raises(RecipeError, match="the images are not there") as caught:
        list(loader(Made(refuse), Recipe(num_workers=1)))
    assert caught.value.hint == "mount them"


def test_a_sample_that_failed_is_the_same_after_a_pipe() -> None:
    error = SampleFailed("sample 1", frames="mine", trace="all")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def draws(index: int) -> Tensor:
    generators = torch.Generator().manual_seed(sample_seed()), np.random.default_rng(sample_seed())
    mine = [torch.rand((), generator=generators[0]), torch.tensor(generators[1].random())]
    return torch.stack([torch.tensor(float(index)), *mine])


@in_a_fork
def test_a_generator_of_a_dataset_s_own_draws_alike_for_any_number_of_processes() -> None:
    def epoch(world: int, **values: Any) -> dict[float, list[float]]:
        recipe = Recipe(batch_size=5, **values)
        loaders = [loader(Made(draws), recipe, rank, world) for rank in range(world)]
        batches = [b for one in loaders for shard in one for b in shard.micro_batches]
        return {float(row[0]): row[1:].tolist() for batch in batches for row in batch}

    one = epoch(1, num_workers=0)
    assert one == epoch(2, num_workers=1) == epoch(3, num_workers=0, micro_batch_size=1)
    assert len({tuple(drawn) for drawn in one.values()}) == 12
    with pytest.raises(RecipeError, match="where no sample is being loaded"):
        sample_seed()


PAIRS = Made(lambda index: (torch.full((2,), float(index)), index % 3))
RAGGED = Made(lambda index: (torch.ones(1 + index % 3), index % 3))


@dataclass(frozen=True)
class Joining(Recipe):
    """Joins its samples by a method of its own."""

    batch_size: int = 6
    num_workers: int | None = 0


class Mixing(Joining):
    """MixUp: images and labels of pairs, blended by a share that is drawn."""

    def collate(self, samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        share = self.drawn()
        partners, hot = torch.arange(len(x)).flip(0), torch.nn.functional.one_hot(y, 3).float()
        return [share * part + (1 - share) * part[partners] for part in (x, hot)]

    def drawn(self) -> float:
        return float(torch.rand(()))


class NumpyMixing(Mixing):
    def drawn(self) -> float:
        return float(np.random.beta(1, 1))


class PythonMixing(Mixing):
    def drawn(self) -> float:
        return random.random()


class Padding(Joining):
    """Pads its samples to the longest."""

    def collate(self, samples: list[Any]) -> Any:
        pad = torch.nn.utils.rnn.pad_sequence
        return pad([x for x, _ in samples], batch_first=True), torch.tensor([y for _, y in samples])


class Naming(Joining):
    def collate(self, samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return {"x": x, "y": y}


class PaddingBoth(Padding):
    test_collate = Padding.collate


class MixingBoth(Mixing):
    test_collate = Mixing.collate


MIXING = [Mixing, NumpyMixing, PythonMixing]


@pytest.mark.parametrize("kind", MIXING)
def test_tests_are_not_mixed(kind: type[Recipe]) -> None:
    [first, *_] = loader(PAIRS, kind(), test=True)
    x, y = first.micro_batches[0]
    assert y.dtype == torch.int64
    assert set(x[:, 0].tolist()) <= set(range(12))
    [mixed, *_] = loader(PAIRS, kind())
    assert mixed.micro_batches[0][1].shape == (6, 3)
    again = next(iter(loader(PAIRS, kind())))
    assert torch.equal(again.micro_batches[0][0], mixed.micro_batches[0][0])


@in_a_fork
@pytest.mark.parametrize(("world", "cut", "workers"), [(2, None, 0), (3, None, 1), (1, 2, 0)])
@pytest.mark.parametrize("kind", MIXING)
def test_a_mix_that_is_drawn_by_part_of_a_batch_is_refused(
    kind: type[Recipe], world: int, cut: int | None, workers: int
) -> None:
    recipe = kind(micro_batch_size=cut, num_workers=workers)
    for rank in range(world):
        with pytest.raises(RecipeError, match="`collate` draws random numbers") as caught:
            next(iter(loader(PAIRS, recipe, rank, world)))
        assert caught.value.hint
    asked = dataclasses.replace(MixingBoth(), micro_batch_size=cut)
    with pytest.raises(RecipeError, match="`test_collate` draws random numbers"):
        next(iter(loader(PAIRS, asked, 0, world, test=True)))


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (Padding, RAGGED, "joins what cannot be joined by torch's default"),
        (Naming, PAIRS, "makes other batches than torch's default"),
    ],
)
def test_what_tests_cannot_join_is_known_with_the_first_batch(
    kind: type[Recipe], data: Any, words: str
) -> None:
    with pytest.raises(LauncherError, match=words) as caught:
        next(iter(loader(data, kind(), 1, 2)))
    assert "`test_collate = collate`" in str(caught.value.hint)


@pytest.mark.parametrize("test", [False, True])
def test_a_collate_that_tests_are_told_to_use_is_used(test: bool) -> None:
    shards = list(loader(RAGGED, PaddingBoth(), 1, 2, test=test))
    assert [tuple(shard.micro_batches[0][0].shape) for shard in shards] == [(3, 3)] * 2
