"""All randomness of a run, derived from (seed, epoch, step, rank, sample) and nothing else.

A counter-based generator: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators") mixes the words of a key into 64 well-distributed bits. What belongs to a
sample never depends on the world size, the batch it is in, or the data worker that loads it.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from launcher.data.device import CPU, moved
from launcher.errors import RecipeError

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

# What a key is for: keys of different purposes never collide.
_STEP, _SAMPLE, _INIT, _ORDER, _TEST, _PARTNERS, _BATCH = 1, 2, 3, 4, 5, 6, 7

_TIMES = 40  # bits of a sample's name that are its index; above: how often it came before


def named(indices: Numbers) -> Numbers:
    """Return a name for each of an epoch's indices, (n,): another one each time that it comes.

    What is drawn for a sample follows from its name, so that a sample that comes several times is
    no copy. The name of a first time is the index itself.
    """
    order = np.argsort(indices, kind="stable")
    first = np.flatnonzero(np.diff(indices[order], prepend=-1))  # where another index begins
    nth = np.arange(len(indices)) - np.repeat(first, np.diff(first, append=len(indices)))
    names = np.empty_like(indices)
    names[order] = with_times(indices[order], nth)
    return names


def with_times(indices: Numbers, times: Numbers) -> Numbers:
    """Return the names of samples that have come `times` times before, (n,)."""
    return indices + (times << _TIMES)


def indices_of(names: Numbers) -> Numbers:
    """Return the indices of samples with these names, (n,)."""
    return names & ((1 << _TIMES) - 1)


def mix(*words: int) -> int:
    """Return 63 bits that depend on all the words and their order."""
    return _mixed(words) >> 1


def _mixed(words: Iterable[int]) -> int:
    state = 0
    for word in words:
        state = (state + _GAMMA + word) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _mix_array(state: Words) -> Words:
    state = state + np.uint64(_GAMMA)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class SampleRandom:
    """Random numbers for the samples of one batch, each sample with a stream of its own.

    Sample `indices[i]` gets the same numbers in every epoch `epoch` of a run with `seed`, whatever
    else is in its batch. Each call draws fresh numbers, and gives them on `device`, where the batch
    is: they are made on the CPU, so that they are the same everywhere.
    """

    def __init__(
        self, seed: int, epoch: int, indices: Sequence[int] | Numbers, device: torch.device = CPU
    ) -> None:
        self.device = device
        self._seed, self._epoch, self._indices = seed, epoch, indices
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property  # most datasets draw nothing
    def _state(self) -> Words:
        base = np.uint64(mix(_SAMPLE, self._seed, self._epoch))
        return _mix_array(np.asarray(self._indices, dtype=np.uint64) ^ base)

    def uniform(self, count: int = 1) -> torch.Tensor:
        """Return float32 numbers in [0, 1), shape (samples, count)."""
        counters = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        words = _mix_array(self._state[:, None] ^ (counters * np.uint64(_GAMMA)))
        numbers = torch.from_numpy((words >> np.uint64(40)).astype(np.float32) / (1 << 24))
        return moved(numbers, self.device)

    def integers(self, low: int, high: int, count: int = 1) -> torch.Tensor:
        """Return int64 numbers in [low, high), shape (samples, count)."""
        return (self.uniform(count) * (high - low)).long() + low


class BatchRandom:
    """Random numbers for `collate`: those of the whole global batch, and those of each sample.

    `batch` is a numpy Generator that begins alike for every process and micro-batch of a step: how
    many numbers are drawn from it must not depend on how many samples there are. `samples` are the
    numbers of each sample, (samples, count).
    """

    def __init__(
        self, seed: int, epoch: int, step: int, names: Numbers, device: torch.device = CPU
    ) -> None:
        self.batch = np.random.default_rng(mix(_BATCH, seed, epoch, step))
        self.samples = SampleRandom(mix(_BATCH, seed), epoch, names, device)


def partners_random(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Return what the partners of a global batch are drawn from, alike on every rank."""
    return np.random.default_rng(mix(_PARTNERS, seed, epoch, step))


class Permutation:
    """A random order of range(size) that is computed where it is asked for, and never stored.

    An alternating Feistel network, SplitMix64 its round function, over the smallest power of two
    that holds the range; what falls outside walks on along its cycle until it is inside (Black,
    Rogaway 2002, "Ciphers with arbitrary finite domains"): at most one further turn on average.
    """

    _ROUNDS = 8

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._shift = np.uint64(bits // 2)  # width of the lower half
        self._lower = np.uint64((1 << bits // 2) - 1)
        self._upper = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [np.uint64(mix(_ORDER, seed, epoch, turn)) for turn in range(self._ROUNDS)]

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: Numbers) -> Numbers:
        """Return which of range(size) stand at these positions, (n,)."""
        found = self._turned(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(found >= self.size)):
            found[outside] = self._turned(found[outside])
        return found.astype(np.int64)

    __getitem__ = __call__

    def _turned(self, numbers: Words) -> Words:
        upper, lower = numbers >> self._shift, numbers & self._lower
        for turn, key in enumerate(self._keys):
            if turn % 2:
                upper ^= _mix_array(lower ^ key) & self._upper
            else:
                lower ^= _mix_array(upper ^ key) & self._lower
        return (upper << self._shift) | lower


def epoch_key(seed: int, epoch: int) -> int:
    """Return 63 bits for an epoch of samples, and none of them."""
    return mix(_SAMPLE, seed, epoch)


def sample_keys(seed: int, epoch: int, indices: Numbers) -> list[int]:
    """Return `mix(_SAMPLE, seed, epoch, index)` for each index: what its sample draws from."""
    state = np.uint64(_mixed((_SAMPLE, seed, epoch)))
    keys = _mix_array(indices.astype(np.uint64) + state) >> np.uint64(1)
    listed: list[int] = keys.tolist()
    return listed


class Loading:
    """Which sample is being loaded in this process: `name` is None where there is none."""

    seed = epoch = 0
    name: int | None = None

    @property
    def index(self) -> int | None:
        """The sample's index in its dataset."""
        return None if self.name is None else self.name & ((1 << _TIMES) - 1)


LOADING = Loading()


def seed_batch(seed: int, epoch: int, index: int) -> None:
    """Seed Python's, numpy's and torch's CPU generators for a batch that begins with a sample."""
    key = mix(_SAMPLE, seed, epoch, ~index)  # no sample's
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)


def sample_seed() -> int:
    """Return a seed for the sample that is being loaded, the same for every number of processes.

    For generators of a dataset's own, in `__getitem__`, like
    `numpy.random.default_rng(launcher.sample_seed())`: 63 bits that depend on the run's seed, the
    epoch and the sample, and on how often that came before where an `order` repeats it. Raises
    RecipeError anywhere else.
    """
    if LOADING.name is None:
        raise RecipeError(
            "`launcher.sample_seed()` was called where no sample is being loaded",
            hint="it is for the `__getitem__` of a dataset that the launcher trains on",
        )
    return mix(_SAMPLE, LOADING.seed, LOADING.epoch, LOADING.name)


def seed_order(seed: int, epoch: int) -> torch.Generator:
    """Seed all generators for an epoch's order; returns one more, of its own."""
    key = mix(_ORDER, seed, epoch)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)
    return torch.Generator().manual_seed(key)


def seed_step(seed: int, step: int, rank: int, turn: int = 0) -> None:
    """Seed what the model draws in one step (dropout): it differs by rank, step and turn."""
    _seed_torch(mix(_STEP, seed, step, rank, *([turn] if turn else [])))


def seed_test(seed: int, batch: int, rank: int) -> None:
    """Seed what is drawn for one test batch: the same in every test, another one on each rank."""
    key = mix(_TEST, seed, batch, rank)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    _seed_torch(key)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave Python's and numpy's generators as they were; torch's are seeded for every step."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def seed_init(seed: int) -> None:
    """Seed everything before the model is built: the same weights on every rank."""
    random.seed(mix(_INIT, seed))
    np.random.seed(mix(_INIT, seed) & 0xFFFFFFFF)  # a model may use it
    _seed_torch(seed)


def _seed_torch(key: int) -> None:
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own
        torch.cuda.manual_seed(key)
