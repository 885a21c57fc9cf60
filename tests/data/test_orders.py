"""An order of the recipe's own, and partners: the same for any number of processes."""

import random as pythons
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset, default_collate

from launcher import ArrayDataset, BatchRandom, Recipe, SampleRandom, sample_seed
from launcher.data.device import CPU
from launcher.data.loader import Loader
from launcher.data.orders import order_of, partners_of
from launcher.data.randomness import indices_of, named
from launcher.data.sampler import ShardSampler
from launcher.errors import RecipeError

SIZE = 13


@dataclass(frozen=True)
class Base(Recipe):
    batch_size: int = 5
    num_workers: int | None = 0
    noise: float = 1.0


class Weighted(Base):
    """Draws samples with repetition."""

    def order(self, epoch: int, generator: torch.Generator) -> Tensor:
        return torch.randint(SIZE, (17,), generator=generator)


class WeightedOtherwise(Base):
    """Draws from generators that nobody gave it."""

    def order(self, epoch: int, generator: torch.Generator) -> list[int]:
        drawn = torch.randperm(SIZE)[:5].tolist() + list(np.random.permutation(SIZE)[:6])
        return [*map(int, drawn), *pythons.choices(range(SIZE), k=6)]


class MixUp(Weighted):
    """Images and labels of pairs, blended by a share of the batch's and a tenth of the sample's."""

    def partners(self, size: int, random: np.random.Generator) -> Any:
        return random.permutation(size)

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        (x, y), (other, theirs) = (
            default_collate(list(part)) for part in zip(*samples, strict=True)
        )
        share = random.batch.beta(0.8, 0.8) * 0.9 + 0.1 * random.samples.uniform()
        hot = one_hot(y, SIZE), one_hot(theirs, SIZE)
        return share * x + (1 - share) * other, share * hot[0] + (1 - share) * hot[1]


class WritesIntoSamples(MixUp):
    """Blends in the memory of the samples."""

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        for (x, _), (other, _) in samples:
            x.mul_(0.7).add_(other.mul_(0.3))
        return default_collate([sample for sample, _ in samples])


class Masking(Base):
    """Draws for each sample by itself, without partners."""

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        x, y = default_collate(samples)
        return x + random.samples.uniform(3), y


class Images(Dataset[Any]):
    """A sample says its index, and two numbers that are drawn for it."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        drawn = np.random.default_rng(sample_seed()).random()
        return torch.tensor([float(index), float(drawn), float(torch.rand(()))]), index


def arrays() -> ArrayDataset:
    def augment(images: Tensor, random: SampleRandom) -> Tensor:
        return images + random.uniform(3) * torch.tensor([0.0, 1.0, 1.0])

    images = torch.zeros(SIZE, 3)
    images[:, 0] = torch.arange(SIZE)
    return ArrayDataset(images, torch.arange(SIZE), augment=augment)


class MixesNothing(MixUp):
    """A mix that a hyperparameter has switched off."""

    def partners(self, size: int, random: np.random.Generator) -> Any:
        return None


DATA = {"ordinary": Images(), "arrays": arrays()}
KINDS = [Weighted, WeightedOtherwise, MixUp, WritesIntoSamples, Masking]


def loaded(recipe: Recipe, dataset: Any, world: int, epoch: int = 2, start: int = 0) -> list[Any]:
    """Each step's samples, over all ranks, in an order of their own values."""
    steps: list[list[list[float]]] = []
    for rank in range(world):
        sampler = ShardSampler(
            len(dataset),
            recipe.batch_size,
            rank=rank,
            world_size=world,
            micro_batch_size=recipe.most_at_once,
            order=order_of(recipe, dataset),
            partners=partners_of(recipe),
        )
        sampler.seek(epoch, start)
        shards = list(Loader(dataset, sampler, recipe, CPU))
        steps = steps or [[] for _ in shards]
        for step, shard in zip(steps, shards, strict=True):
            for x, y in shard.micro_batches if shard.own else ():
                labels = y.reshape(len(x), -1).float()
                step.extend(torch.cat([x, labels], 1).tolist())
    return [sorted(step) for step in steps]


@settings(deadline=None)  # a busy machine
@given(st.lists(st.integers(0, 9), max_size=30))
def test_a_sample_has_another_name_each_time_that_it_comes(indices: list[int]) -> None:
    names = named(np.array(indices, np.int64))
    assert indices_of(names).tolist() == indices
    assert len(set(names.tolist())) == len(names)
    firsts = [indices.index(i) == at for at, i in enumerate(indices)]
    assert [name == i for name, i in zip(names.tolist(), indices, strict=True)] == firsts


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", DATA)
def test_steps_are_the_same_for_any_number_of_processes_and_micro_batches(
    data: str, kind: type[Recipe]
) -> None:
    one = loaded(kind(), DATA[data], 1)
    for world, cut in ((1, 2), (2, None), (3, 1), (7, None)):
        assert loaded(kind(micro_batch_size=cut), DATA[data], world) == one
    assert loaded(kind(), DATA[data], 2, start=2) == one[2:]
    assert loaded(kind(), DATA[data], 1, epoch=3) != one


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_workers_change_nothing_of_a_mix() -> None:
    assert loaded(MixUp(num_workers=1), DATA["ordinary"], 2) == loaded(MixUp(), DATA["ordinary"], 1)


@pytest.mark.parametrize("data", DATA)
def test_a_sample_that_comes_twice_is_no_copy(data: str) -> None:
    rows = [tuple(row) for step in loaded(Weighted(), DATA[data], 2) for row in step]
    assert len(rows) == len(set(rows)) == 17
    assert len({row[0] for row in rows}) < 13
    order = order_of(Weighted(), Images())
    assert order
    assert sorted(row[0] for row in rows) == sorted(indices_of(order(2)[np.arange(17)]).tolist())


def test_samples_are_mixed_with_others_and_of_one_share() -> None:
    mixed = loaded(MixUp(), DATA["ordinary"], 1)
    assert any(sum(value > 0 for value in row[3:]) == 2 for step in mixed for row in step)
    assert all(sum(row[3:]) == pytest.approx(1) for step in mixed for row in step)


def given_order(made: Any) -> Recipe:
    class Given(Base):
        def order(self, epoch: int, generator: torch.Generator) -> Any:
            return made(epoch) if callable(made) else made

    return Given(epochs=3)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], "`order` returned no index for epoch 0: `train_data` has 13 samples"),
        ([0, 13], "indices from 0 to 13"),
        (np.array([-1, 2]), "indices from -1 to 2"),
        (torch.zeros(3, 3, dtype=torch.long), "int64 of shape \\(3, 3\\), not indices"),
        ([0.0, 1.0], "float64 of shape"),
        (torch.ones(13, dtype=torch.bool), "bool of shape"),
        ([[1], [2, 3]], "returned, for epoch 0, list, not indices"),
        (7, "returned, for epoch 0, int, not indices"),
        (lambda epoch: range(5 + epoch), "6 samples for epoch 1 and 5 for epoch 0"),
        (lambda epoch: None if epoch else range(5), "13 samples for epoch 1 and 5 for epoch 0"),
    ],
)
def test_what_is_no_order_is_refused(made: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        loaded(given_order(made), DATA["ordinary"], 1, epoch=0)  # before the first step
    assert caught.value.hint


def test_an_order_of_none_is_torch_s() -> None:
    assert loaded(given_order(None), DATA["arrays"], 2) == loaded(Base(), DATA["arrays"], 1)


@pytest.mark.parametrize("of_none", [0, 1, 2])
def test_an_epoch_s_order_may_be_torch_s_and_another_s_the_recipe_s(of_none: int) -> None:
    """As a curriculum has it, that begins or ends with some epoch."""
    recipe = given_order(lambda epoch: None if epoch == of_none else range(13))
    for epoch in range(3):
        expected = Base() if epoch == of_none else given_order(range(13))
        found = loaded(recipe, DATA["ordinary"], 2, epoch=epoch)
        assert found == loaded(expected, DATA["ordinary"], 1, epoch=epoch)


def test_a_checkpoint_within_an_epoch_knows_its_order() -> None:
    def told(recipe: Recipe, epoch: int | None) -> dict[str, Any]:
        return ShardSampler(SIZE, 5, order=order_of(recipe, Images())).order(epoch)

    assert told(Weighted(), 2) == told(Weighted(), 2)
    assert told(Weighted(), 2) != told(Weighted(seed=1), 2)
    assert told(Weighted(), None) == told(WeightedOtherwise(), None)
    assert told(Weighted(), 2) != told(WeightedOtherwise(), 2)


class NoPermutation(MixUp):
    def partners(self, size: int, random: np.random.Generator) -> Any:
        return [0] * size


class ByHowMany(MixUp):
    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        x, y = default_collate([sample for sample, _ in samples])
        return x * torch.from_numpy(random.batch.random((len(x), 1))), y


class Elsewhere(MixUp):
    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        x, y = default_collate([sample for sample, _ in samples])
        return x * torch.rand(()), y


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NoPermutation, "`partners` returned no permutation of the 5 places"),
        (ByHowMany, "draws from `random.batch` by how many samples it gets"),
        (Elsewhere, "`collate` draws random numbers"),
    ],
)
@pytest.mark.parametrize("data", DATA)
def test_a_mix_that_would_differ_is_refused(data: str, kind: type[Recipe], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        loaded(kind(), DATA[data], 2)
    assert caught.value.hint


def test_a_recipe_may_decide_by_a_hyperparameter_that_samples_come_alone() -> None:
    assert partners_of(MixUp()) is not None
    assert partners_of(MixesNothing()) is None
