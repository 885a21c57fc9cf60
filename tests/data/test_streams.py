"""Streams: an order that no number of processes or data workers changes, and going on in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import Recipe, Stream, sample_seed
from launcher.data.device import CPU
from launcher.data.loader import Loader, sized
from launcher.data.orders import sampler_for
from launcher.data.streams import LaneSampler
from launcher.errors import LauncherError

in_forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
READ: Counter[int] = Counter()


@dataclass(frozen=True)
class Base(Recipe):
    batch_size: int = 4
    test_batch_size: int = 3
    num_workers: int | None = 0


def numbers(lane: int, lanes: int) -> Iterator[Any]:
    """Samples of a lane: which one, and what is drawn for it."""
    for k in range(4 + lane % 3):
        READ[lane] += 1
        drawn = float(np.random.default_rng(sample_seed()).random()) + float(torch.rand(()))
        yield {"x": torch.tensor([lane, k, drawn], dtype=torch.float64), "name": f"{lane}/{k}"}


class Counting(Iterator[Any]):
    """The same, by an iterator that knows where it is."""

    def __init__(self, lane: int) -> None:
        self.lane, self.k = lane, 0

    def __next__(self) -> Any:
        if self.k == 4 + self.lane % 3:
            raise StopIteration
        READ[self.lane] += 1
        drawn = float(np.random.default_rng(sample_seed()).random()) + float(torch.rand(()))
        self.k += 1
        x = torch.tensor([self.lane, self.k - 1, drawn], dtype=torch.float64)
        return {"x": x, "name": f"{self.lane}/{self.k - 1}"}

    def state_dict(self) -> dict[str, int]:
        return {"k": self.k}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.k = state["k"]


def counting(lane: int, lanes: int) -> Iterator[Any]:
    return Counting(lane)


SIZES = [4 + lane % 3 for lane in range(7)]
STREAMS = {
    "sized": Stream(numbers, 7, SIZES),
    "endless": Stream(numbers, 7),
    "state": Stream(counting, 7, SIZES),
    "endless state": Stream(counting, 7),
}


def loader(stream: Stream, recipe: Recipe, rank: int, world: int) -> Loader:
    sampler = LaneSampler(
        stream,
        recipe.batch_size,
        rank=rank,
        world_size=world,
        length=stream.size or 50,
        micro_batch_size=recipe.micro_batch_size,
    )
    return Loader(stream, sampler, recipe, CPU)


def rows(shard: Any) -> list[tuple[Any, ...]]:
    return [
        (*x, name)
        for micro in (shard.micro_batches if shard.own else ())
        for x, name in zip(micro["x"].tolist(), micro["name"], strict=True)
    ]


def steps(loaders: list[Loader], epoch: int = 2, start: int = 0) -> list[list[Any]]:
    """Each step's samples, over all ranks, by lane."""
    for each in loaders:
        each.sampler.seek(epoch, start)
    together = zip(*loaders, strict=True)
    return [sorted(row for shard in shards for row in rows(shard)) for shards in together]


def world_of(stream: Stream, world: int, **values: Any) -> list[Loader]:
    return [loader(stream, Base(**values), rank, world) for rank in range(world)]


@settings(deadline=None)  # a busy machine
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_lanes_take_turns_and_those_that_have_ended_are_left_out(sizes: list[int]) -> None:
    stream = Stream(numbers, len(sizes), sizes)
    expected = [
        lane + len(sizes) * k for k in range(max(sizes)) for lane, n in enumerate(sizes) if k < n
    ]
    assert stream.names(np.arange(sum(sizes))).tolist() == expected
    assert stream.names(np.arange(2, sum(sizes), 3)).tolist() == expected[2::3]


@pytest.mark.slow
@in_forks
@pytest.mark.parametrize("kind", STREAMS)
def test_steps_are_the_same_for_any_number_of_processes_and_data_workers(kind: str) -> None:
    stream = STREAMS[kind]
    one = steps(world_of(stream, 1))
    assert one == steps(world_of(STREAMS[kind.replace("state", "").strip() or "sized"], 1))
    for world, workers, cut in ((1, 2, 3), (2, 1, None), (3, 0, 1), (7, 0, None), (2, 3, 1)):
        assert steps(world_of(stream, world, num_workers=workers, micro_batch_size=cut)) == one
    assert steps(world_of(stream, 2), epoch=3) != one
    if stream.size:
        assert sorted(row[3] for step in one for row in step) == sorted(
            f"{lane}/{k}" for lane, size in enumerate(SIZES) for k in range(size)
        )


@pytest.mark.slow
@in_forks
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_what_was_trained_on_is_where_another_number_of_processes_goes_on(
    kind: str, workers: int
) -> None:
    stream = STREAMS[kind]
    whole = steps(world_of(stream, 1))
    before, done = world_of(stream, 2, num_workers=workers), 7
    for each in before:
        each.sampler.seek(2)
        for _ in zip(range(done), each, strict=False):
            pass
    lanes = {lane: at for each in before for lane, at in (each.lanes or {}).items()}
    assert {lane: at[0] for lane, at in lanes.items()} == dict.fromkeys(range(7), 4)
    for world, own in ((1, 0), (2, workers), (3, 0)):
        after = world_of(stream, world, num_workers=own)
        for each in after:
            each.resume(2, done, lanes)
        READ.clear()
        assert steps(after, start=done) == whole[done:]
        if world == 1 and "state" in kind and stream.size:
            assert READ.total() == sum(SIZES) - 4 * done  # nothing is read again
    assert steps(world_of(stream, 3), start=done) == whole[done:]  # without positions, too


def test_a_process_without_a_sample_takes_part_with_one_of_its_own_lanes() -> None:
    [last] = [list(each)[-1] for each in world_of(STREAMS["sized"], 7)[6:]]
    assert (last.size, last.own) == (2, 0)
    assert last.micro_batches[0]["name"] == ["6/0"]


def broken(lane: int, lanes: int) -> Iterator[int]:
    yield from range(2)
    raise ValueError("torn file")


@in_forks
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_by_its_lane(workers: int) -> None:
    words = r"sample 2 of lane [0-3] of `train_data` could not be loaded .*ValueError: torn file"
    with pytest.raises(LauncherError, match=words):
        list(loader(Stream(broken, 4, [5] * 4), Base(num_workers=workers), 0, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stream(numbers, 0), "at least one lane"),
        (lambda: Stream(numbers, 3, [1, 2]), "3 lanes got 2 sizes"),
        (lambda: Stream(numbers, 2, [1, 0]), "the least 0"),
        (lambda: steps(world_of(Stream(numbers, 2), 3)), "3 processes cannot share 2 lanes"),
        (
            lambda: steps(world_of(Stream(numbers, 2, [9, 9]), 1)),
            "lane 0 of 2 ended after 4 samples, and `sizes` says 9",
        ),
        (
            lambda: steps(world_of(Stream(numbers, 2, [4, 4]), 2)),
            "lane 1 of 2 goes on after 4 samples, and `sizes` says 4",
        ),
        (
            lambda: steps(world_of(Stream(lambda *_: iter([]), 2), 1)),
            "lane 0 of 2 ended after 0 samples",
        ),
        (lambda: sampler_for(Stream(numbers), Base(), 0, 1, test=False), "give `steps`"),
        (lambda: sampler_for(Stream(numbers), Base(), 0, 1, test=True), "give `sizes`"),
        (
            lambda: sampler_for(Stream(numbers, 2, [1, 1]), Ordered(), 0, 1, test=False),
            "`order` needs samples that can be loaded by their index",
        ),
        (lambda: sized(Iterable(), "train_data"), "launcher.Stream"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(LauncherError) as caught:
        make()
    assert words in f"{caught.value} {caught.value.hint}"


class Iterable(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Ordered(Base):
    def order(self, epoch: int, generator: torch.Generator) -> list[int]:
        return [0]


def test_a_rank_knows_the_places_of_its_samples() -> None:
    stream = STREAMS["sized"]
    samplers = [each.sampler for each in world_of(stream, 3)]
    for step, shards in enumerate(zip(*samplers, strict=True)):
        places = [sampler.places(step) for sampler in samplers]
        assert sorted(np.concatenate(places).tolist()) == list(
            range(step * 4, min(step * 4 + 4, 34))
        )
        for shard, own in zip(shards, places, strict=True):
            names = np.concatenate(shard.micro_batches)
            assert stream.names(own).tolist() == (names.tolist() if shard.own else [])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("cut", [None, 2])
def test_what_batch_norm_asks_is_what_the_shards_are(world: int, cut: int | None) -> None:
    samplers = [x.sampler for x in world_of(STREAMS["sized"], world, micro_batch_size=cut)]
    parts, steps_ = set(), list(zip(*samplers, strict=True))
    for shards in steps_:
        parts |= {len(micro) for shard in shards for micro in shard.micro_batches}
    alike = all(
        len({(bool(s.own), len(s.micro_batches)) for s in shards}) == 1 for shards in steps_
    )
    assert samplers[0].smallest_part() == min(parts)
    assert not samplers[0].alike() or alike
