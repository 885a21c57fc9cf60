"""Orders that are computed where they are asked for: by blocks of neighbours, and of a mixture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from launcher.data.randomness import Numbers, Permutation, mix, with_times
from launcher.errors import DataError

_WINDOW = 16  # blocks whose samples are shuffled among each other, where that is enough
_LEAST = 4096  # samples that are


class Blocks:
    """A random order for slow file systems: neighbours are read at about the same time.

    Blocks of `block` neighbours are permuted, and then the samples within each window of 16 of
    them, or of at least 4,096 samples. Nothing is stored.
    """

    def __init__(
        self, size: int, block: int, seed: int, epoch: int, *, least: int = _LEAST
    ) -> None:
        self._size, self._block, self._key = size, block, mix(seed, epoch)
        self._window = max(_WINDOW, -(-least // block))  # blocks
        self._count = -(-size // block)
        self._order = Permutation(self._count, seed, epoch)
        places = np.arange(self._count)
        # The last block is short, and so is the window that has it.
        self._missing = self._count * block - size
        self._short = int(np.flatnonzero(self._order(places) == self._count - 1)[0])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: Numbers) -> Numbers:
        """Return the indices that stand at these places, (n,)."""
        whole = self._window * self._block
        windows = places // whole
        windows += places >= self._start(windows + 1)
        found = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            start, stop = self._start(np.array([window, window + 1])).tolist()
            shuffled = Permutation(stop - start, self._key, window)
            found[here] = self._indices(window, shuffled(places[here] - start))
        return found

    def _start(self, windows: Numbers) -> Numbers:
        """Return the place where windows begin, (n,)."""
        begun = windows * self._window
        starts = begun * self._block - self._missing * (self._short < begun)
        return np.minimum(starts, self._size)

    def _indices(self, window: int, offsets: Numbers) -> Numbers:
        """Return the indices at offsets into the blocks of a window, (n,)."""
        last = (self._short - window * self._window + 1) * self._block - self._missing
        if 0 <= self._short - window * self._window < self._window:
            offsets = offsets + self._missing * (offsets >= last)
        blocks, within = np.divmod(offsets, self._block)
        return self._order(window * self._window + blocks) * self._block + within


class Mixture(ConcatDataset[Any]):
    """Several map-style datasets of which training takes shares.

    An epoch has `samples` samples (all together, unless given), of dataset k its `weights[k]` part,
    to the sample, in random order. What is left of a dataset comes in the next epochs, and no
    sample comes again before all of its dataset have come; one that comes twice in an epoch draws
    other random numbers. As test data it is every sample once, without weights.

    Raises DataError for weights that are none.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset[Any]],
        weights: Sequence[float],
        samples: int | None = None,
    ) -> None:
        super().__init__(datasets)
        shares = np.asarray(weights, np.float64)
        if (
            shares.shape != (len(datasets),)
            or not (shares > 0).all()
            or not np.isfinite(shares).all()
        ):
            raise DataError(
                f"a Mixture of {len(datasets)} datasets got the weights {list(weights)}",
                hint="give a positive number for each dataset",
            )
        self.lengths = np.diff(self.cumulative_sizes, prepend=0)
        if not self.lengths.all():
            raise DataError("a Mixture got an empty dataset")
        exact = shares / shares.sum() * (samples or len(self))
        self.parts = np.floor(exact).astype(np.int64)  # samples of each in an epoch
        most = np.argsort(self.parts - exact, kind="stable")  # who is owed most by rounding down
        self.parts[most[: round(exact.sum()) - int(self.parts.sum())]] += 1


class Mixed:
    """The order of an epoch of a Mixture, by names."""

    def __init__(self, mixture: Mixture, seed: int, epoch: int) -> None:
        self._mixture, self._seed, self._epoch = mixture, seed, epoch
        self._size = int(mixture.parts.sum())
        self._order = Permutation(self._size, mix(seed), epoch)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: Numbers) -> Numbers:
        """Return the names that stand at these places, (n,)."""
        parts, lengths = self._mixture.parts, self._mixture.lengths
        ends = np.cumsum(parts)
        found = self._order(places)
        which = np.searchsorted(ends, found, side="right")
        # Each dataset is a sequence of permutations of itself, of which an epoch takes a part.
        begun = self._epoch * parts[which]
        turns, within = np.divmod(begun + found - (ends - parts)[which], lengths[which])
        names = np.empty_like(places)
        for key in np.unique(np.stack([which, turns], 1), axis=0).tolist():
            here = (which == key[0]) & (turns == key[1])
            order = Permutation(int(lengths[key[0]]), mix(self._seed, key[0]), key[1])
            names[here] = order(within[here])
        names += (np.cumsum(lengths) - lengths)[which]
        return with_times(names, turns - begun // lengths[which])
