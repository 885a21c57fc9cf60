"""Data that cannot be indexed: lanes that are read one sample after the other, in a known order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any
from zlib import crc32

import numpy as np

from launcher.data.randomness import Numbers
from launcher.data.sampler import ShardIndices, ShardSampler
from launcher.errors import DataError, RecipeError

_LOOKED_AT = 1000  # steps whose shards are counted ahead
_NOTHING = object()


class Stream:
    """Data in `lanes` that are read in turn, sample by sample: lane 0, 1, …, the last, 0, 1, ….

    `open(lane, lanes)` returns an iterator of a lane's samples, the same ones in the same order
    each time. A lane is read by one process, and by one of its data workers; the order depends on
    neither. With `sizes`, the number of samples in each lane, every sample comes once an epoch, and
    lanes that have ended are left out; without, a lane is opened again when it ends, and the
    recipe's `steps` says how long the run is.

    Where an iterator has `state_dict()` and `load_state_dict(state)`, a run goes on from them;
    else it reads, and drops, what had been read. `__next__` may draw random numbers: generators
    are seeded for each sample.

    Raises DataError for sizes that are none.
    """

    def __init__(
        self,
        open: Callable[[int, int], Iterator[Any]],  # noqa: A002  # what it is
        lanes: int = 64,
        sizes: Sequence[int] | None = None,
    ) -> None:
        if lanes < 1:
            raise DataError(f"a Stream has at least one lane, not {lanes}")
        if sizes is not None and (len(sizes) != lanes or min(sizes) < 1):
            raise DataError(
                f"a Stream of {lanes} lanes got {len(sizes)} sizes, the least "
                f"{min(sizes, default=0)}",
                hint="give the number of samples of each lane, at least 1",
            )
        self.open, self.lanes = open, lanes
        self.sizes = None if sizes is None else np.asarray(sizes, np.int64)  # (lanes,)

    @property
    def size(self) -> int | None:
        """Samples in an epoch, None where nobody knows."""
        return None if self.sizes is None else int(self.sizes.sum())

    def names(self, places: Numbers) -> Numbers:
        """Return the names of the samples at places of an epoch's order, (n,).

        Sample k of a lane is `lane + lanes * k`.
        """
        if self.sizes is None:
            return places
        ends = np.unique(self.sizes)  # rounds after which some lanes have ended
        begins = np.concatenate([[0], ends[:-1]])
        active = np.array([(self.sizes > begin).sum() for begin in begins])
        first = np.concatenate([[0], np.cumsum(active * (ends - begins))])[:-1]  # place of each
        which = np.searchsorted(first, places, side="right") - 1
        rounds, turns = np.divmod(places - first[which], active[which])
        lanes = np.empty_like(places)
        for part in np.unique(which):
            here = which == part
            lanes[here] = np.flatnonzero(self.sizes > begins[part])[turns[here]]
        names: Numbers = lanes + self.lanes * (begins[which] + rounds)
        return names


# How far a lane has been read: samples in this epoch, those of them since it was opened, and the
# state of its iterator, None where it has none.
Position = tuple[int, int, Any]
Positions = Mapping[int, Position]  # by lane


class LaneSampler(ShardSampler):
    """The names of a rank's samples of each step: those of its lanes, every W-th one.

    Shards may differ by more than one sample. A rank without a sample in a step gets the first of
    its own as a ghost.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        length: int,
        **options: Any,
    ) -> None:
        """`length` is the number of samples in an epoch; raises RecipeError for too few lanes."""
        if world_size > stream.lanes:
            raise RecipeError(
                f"{world_size} processes cannot share {stream.lanes} lanes of a Stream",
                hint="give the Stream at least as many lanes, or start fewer processes",
            )
        super().__init__(length, batch_size, rank=rank, world_size=world_size, **options)
        self.stream = stream
        self._resumed: tuple[tuple[int, int], Positions] = ((0, 0), {})

    def resume(self, epoch: int, step: int, positions: Positions) -> None:
        """Have lanes go on, from that step of an epoch on, where they were."""
        self._resumed = ((epoch, step), positions)

    def order(self, epoch: int | None = None) -> dict[str, Any]:  # noqa: ARG002  # the same in all
        """Return what the order depends on."""
        sizes = self.stream.sizes
        return {
            "samples": 0 if sizes is None else self.size,
            "lanes": self.stream.lanes,
            "the checksum of sizes": None if sizes is None else crc32(sizes.tobytes()),
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def smallest_part(self, batch_size: int | None = None) -> int:
        """Return the fewest samples that a forward pass gets in one of the steps looked at."""
        batch = batch_size or self.batch_size
        most = batch if self.micro_batch_size == self.batch_size else self.micro_batch_size
        shards = self._shards(batch)
        return min(max(1, n if n <= most else n % most or most) for n in shards)

    def alike(self) -> bool:
        """Whether all ranks have samples in the steps looked at, and as many micro-batches."""
        shards = self._shards(self.batch_size)
        return min(shards) > 0 and max(shards) <= self.micro_batch_size

    def _shards(self, batch: int) -> list[int]:
        """Return how many samples ranks have in the first thousand steps, and in the last."""
        steps = self.size // batch + bool(self.rest(batch))
        counts: list[int] = []
        for step in {*range(min(steps, _LOOKED_AT)), steps - 1}:
            names = self.stream.names(np.arange(step * batch, min((step + 1) * batch, self.size)))
            counts += np.bincount(self.owners(names), minlength=self.num_replicas).tolist()
        return counts

    def owns(self, lane: int) -> bool:
        """Whether this rank reads a lane."""
        return lane % self.num_replicas == self.rank

    @property
    def own_lanes(self) -> int:
        """Lanes that this rank reads."""
        return len(range(self.rank, self.stream.lanes, self.num_replicas))

    def owners(self, names: Numbers) -> Numbers:
        """Return which rank reads each of these samples, (n,)."""
        return names % self.stream.lanes % self.num_replicas

    def places(self, step: int) -> Numbers:
        """Return where in the order this rank's samples of a step stand."""
        places = np.arange(*self._bounds(step))
        own: Numbers = places[self.owners(self.stream.names(places)) == self.rank]
        return own

    def __iter__(self) -> Iterator[ShardIndices]:
        at, positions = self._resumed
        left = dict(positions) if at == (self.epoch, self.first_step) else {}
        for step in range(self.first_step, self.steps):
            start, stop = self._bounds(step)
            names = self.stream.names(np.arange(start, stop))
            owners = self.owners(names)
            own = names[owners == self.rank]
            lanes = {name % self.stream.lanes for name in own.tolist()} if left else set()
            begin = {lane: left.pop(lane) for lane in lanes & left.keys()}
            micro = self._cut(own if len(own) else np.array([self.rank]))
            yield ShardIndices(
                *(self.epoch, stop - start, len(own), micro, step), owners=owners, begin=begin
            )


class Lanes:
    """The lanes that one process, or data worker, reads: a dataset whose indices are names.

    The next sample of a lane is at hand; for another one the lane is opened again.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._read: dict[int, _Lane] = {}
        self._ghosts: dict[int, Any] = {}
        self._epoch = -1

    def __len__(self) -> int:
        return self.stream.size or 1

    def begin(self, epoch: int, positions: Positions) -> None:
        """Go to an epoch's start, and to positions in it."""
        if epoch != self._epoch:
            self._read.clear()
            self._epoch = epoch
        for lane, position in positions.items():
            self._read[lane] = _Lane(self.stream, lane, position)

    def missing(self, names: Numbers) -> Numbers:
        """Return the names of what has to be read, and dropped, before the first of each lane."""
        found: list[int] = []
        lanes, first = np.unique(names % self.stream.lanes, return_index=True)
        for lane, name in zip(lanes.tolist(), names[first].tolist(), strict=True):
            wanted = name // self.stream.lanes
            if lane not in self._read or self._read[lane].done > wanted:
                self._read[lane] = _Lane(self.stream, lane)
            found += [lane + self.stream.lanes * k for k in range(self._read[lane].done, wanted)]
        return np.array(found, np.int64)

    def __getitem__(self, name: int) -> Any:
        return self._read[name % self.stream.lanes].next()

    def ghost(self, name: int) -> Any:
        """Return the first sample of a lane, which is not read on by that."""
        lane = name % self.stream.lanes
        if lane not in self._ghosts:
            self._ghosts[lane] = _Lane(self.stream, lane).next()
        return deepcopy(self._ghosts[lane])

    def positions(self, names: Numbers) -> Positions:
        """Return how far the lanes of these samples have been read."""
        lanes = np.unique(names % self.stream.lanes).tolist()
        return {lane: self._read[lane].position() for lane in lanes}


class _Lane:
    """One lane, opened with its first sample."""

    def __init__(self, stream: Stream, lane: int, begin: Position | None = None) -> None:
        self._stream, self._lane = stream, lane
        self._iterator: Iterator[Any] | None = None
        self.done = self._since = 0
        done, since, state = begin or (0, 0, None)
        if state is not None:
            self._iterator = self._opened()
            self._iterator.load_state_dict(state)  # type: ignore[attr-defined]
            self.done, self._since = done, since
        else:
            self.done = done - since  # from there on it is read again

    def next(self) -> Any:
        """Return the next sample; raises DataError where there is none, or more than there are."""
        sizes = self._stream.sizes
        while True:
            self._iterator = self._iterator or self._opened()
            try:
                sample = next(self._iterator)
            except StopIteration:
                if sizes is not None or not self._since:
                    raise self._other_size(f"ended after {self._since} samples") from None
                self._iterator, self._since = None, 0
            else:
                self.done += 1
                self._since += 1
                if sizes is not None and self.done == sizes[self._lane]:
                    self._end()
                return sample

    def _end(self) -> None:
        """Raise DataError where the lane goes on behind its last sample."""
        assert self._iterator
        after = next(self._iterator, _NOTHING)
        self._iterator = None
        if after is not _NOTHING:
            raise self._other_size(f"goes on after {self._since} samples")

    def _other_size(self, what: str) -> DataError:
        sizes = self._stream.sizes
        said = f", and `sizes` says {sizes[self._lane]}" if sizes is not None else ""
        return DataError(
            f"lane {self._lane} of {self._stream.lanes} {what}{said}",
            hint="count the samples of each lane, or give no sizes",
        )

    def position(self) -> Position:
        """Return how far it has been read."""
        state = getattr(self._iterator, "state_dict", None)
        return self.done, self._since, deepcopy(state()) if state else None

    def _opened(self) -> Iterator[Any]:
        return iter(self._stream.open(self._lane, self._stream.lanes))
