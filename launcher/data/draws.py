"""The global generators of Python, numpy and torch, seeded for the samples that draw from them.

To seed all three takes half as long as to load a small sample, and most datasets draw from one or
from none. So only those are seeded that somebody was seen to draw from; whether somebody did is
looked at after each batch, and a batch that drew what was not seeded is loaded again.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils import _pytree as pytree

from launcher.data.randomness import LOADING, Numbers, epoch_key, indices_of, sample_keys

T = TypeVar("T")

_TRIED = 8  # samples that are loaded twice, to see whether they depend on a generator


class _Generator(NamedTuple):
    seed: Callable[[int], object]
    draw: Callable[[], object]


# Functions, which a data worker of its own interpreter finds by name; the methods of a generator
# would take along a copy of it, and seed that.
def _seed_python(key: int) -> None:
    random.seed(key)


def _draw_python() -> object:
    return random.getrandbits(64)


def _seed_numpy(key: int) -> None:
    np.random.seed(key & 0xFFFFFFFF)  # what datasets use is the global generator


def _draw_numpy() -> object:
    return np.random.random_sample()


def _seed_torch(key: int) -> None:
    torch.default_generator.manual_seed(key)


def _draw_torch() -> object:
    return torch.empty((), dtype=torch.int64, device="cpu").random_().item()


_ALL = (
    _Generator(_seed_python, _draw_python),
    _Generator(_seed_numpy, _draw_numpy),
    _Generator(_seed_torch, _draw_torch),
)


class SampleDraws:
    """Loads samples of an ordinary dataset, whose draws follow from (seed, epoch, sample)."""

    def __init__(self, seed: int, *, once: bool = False) -> None:
        """With `once` no sample is loaded twice: all generators are seeded for each."""
        self._seed = seed
        self._seeded: list[_Generator] = []  # for each sample
        self._quiet: list[_Generator] = list(_ALL)  # nobody was seen to draw from them
        self._next: tuple[int, list[object]] = (0, [])  # a key, and what they then draw first
        self._tried = once
        if once:
            self._seeded, self._quiet = list(_ALL), []

    def load(self, epoch: int, names: Numbers, get: Callable[[int], T]) -> list[T]:
        """Return what `get` gives for the index of each name, in order.

        Raises what `get` raises; `LOADING.name` is then its sample's.
        """
        LOADING.seed, LOADING.epoch = self._seed, epoch
        if not self._tried:
            for name in names[:_TRIED]:
                self._try(epoch, name.reshape(1), get)
            self._tried = True
        while True:
            # One key for all: no state of theirs tells a sample which batch it is in.
            self._start(epoch_key(self._seed, epoch))
            try:
                samples = self._loaded(epoch, names, get)
            except Exception:
                if not self._noticed():
                    raise
            else:
                if not self._noticed():
                    return samples

    def _loaded(self, epoch: int, names: Numbers, get: Callable[[int], T]) -> list[T]:
        keys = sample_keys(self._seed, epoch, names) if self._seeded else [0] * len(names)
        indices = indices_of(names)
        samples = []
        for name, index, key in zip(names.tolist(), indices.tolist(), keys, strict=True):
            LOADING.name = name
            for generator in self._seeded:
                generator.seed(key)
            samples.append(get(index))
        LOADING.name = None
        return samples

    def _try(self, epoch: int, names: Numbers, get: Callable[[int], Any]) -> None:
        """Find out what a sample depends on: on all, where its value changes and no state does.

        A dataset may put a state back when it has drawn, or read what a generator was seeded with.
        """
        [key] = sample_keys(self._seed, epoch, names)
        load = partial(self._loaded, epoch, names, get)
        self._start(key)
        first = load()
        if not self._noticed() and self._quiet:
            self._start(key ^ 1)
            if not _same(first, load):
                self._seeded, self._quiet = list(_ALL), []

    def _start(self, key: int) -> None:
        """Seed the generators that nobody draws from."""
        if self._next[0] != key or len(self._next[1]) != len(self._quiet):
            for generator in self._quiet:
                generator.seed(key)
            self._next = key, [generator.draw() for generator in self._quiet]
        for generator in self._quiet:
            generator.seed(key)

    def _noticed(self) -> bool:
        """Whether somebody has drawn from a generator since `_start`: it is seeded from now on."""
        drawn = [g for g, draw in zip(self._quiet, self._next[1], strict=True) if g.draw() != draw]
        self._seeded += drawn
        self._quiet = [generator for generator in self._quiet if generator not in drawn]
        return bool(drawn)


def _same(value: Any, make: Callable[[], Any]) -> bool:
    """Whether `make` makes the same value, as far as can be told."""
    try:
        (ours, form), (theirs, other) = map(pytree.tree_flatten, (value, make()))
        return form == other and all(map(_equal, ours, theirs))
    except Exception:  # noqa: BLE001  # with other draws, or of what cannot be compared
        return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
