"""Loaders, and where random numbers come from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.arrays import ArrayDataset
from launcher.data import Loader, sized
from launcher.errors import DataError
from launcher.randomness import SampleRandom, mix
from launcher.recipe import Recipe
from launcher.sampler import ShardSampler


@pytest.mark.parametrize(
    ("made", "words"), [(None, "NoneType"), (iter([1]), "not a map-style"), ([], "empty")]
)
def test_what_is_no_dataset_is_refused(made: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        sized(made, "train_data")


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


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_mixed_keys_fit_torch_s_generators(words: list[int]) -> None:
    assert 0 <= mix(*words) < 2**63
    assert mix(*words) != mix(*words, 0)


def test_a_loader_starts_where_its_sampler_was_sent() -> None:
    class Numbers(Recipe):
        pass

    data = ArrayDataset(torch.arange(20))
    sampler = ShardSampler(20, 6, rank=1, world_size=2, micro_batch_size=2)
    loader = Loader(data, sampler, Numbers(), torch.device("cpu"))
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
            loader = Loader(data, sampler, Recipe(), torch.device("cpu"))
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

    loader = Loader(
        Doubled(torch.arange(3)), ShardSampler(3, 3, shuffle=False), Recipe(), torch.device("cpu")
    )
    assert next(iter(loader)).micro_batches[0][0].tolist() == [0, 2, 4]
