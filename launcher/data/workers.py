"""Data workers: processes beside a training process that load its samples, and how they start."""

import atexit
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from launcher.data.sampler import ShardIndices
from launcher.errors import BadInput, DataError
from launcher.processes import allow_open_files, die_with_parent
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, file_of, load

T = TypeVar("T")
# Workers hand over tensors at a socket `TMPDIR/pymp-XXXXXXXX/listener-XXXXXXXX`; such a path has
# at most 107 bytes on Linux. Where it is longer they wait for ever.
_LONGEST_TMPDIR = 107 - len("/pymp-XXXXXXXX/listener-XXXXXXXX")
_FEW_FILES = 1024


class OfARank(Protocol):
    """A sampler of one rank's shards."""

    rank: int

    def __iter__(self) -> Iterator[ShardIndices]: ...
    def __len__(self) -> int: ...


def loaded_by_workers(
    fetcher: Dataset[T], sampler: OfARank, count: int, recipe: Recipe, *, pinned: bool
) -> Callable[[], Iterator[T]]:
    """Return what gives an epoch of `fetcher`, loaded by `count` processes that stay for all.

    Raises BadInput where they could not hand anything over.
    """
    _check_system(sampler.rank)
    leaving = multiprocessing.RawValue("b", 0)  # 1 when this process does
    atexit.register(setattr, leaving, "value", 1)  # before multiprocessing ends its own
    loader: DataLoader[T] = DataLoader(
        fetcher,
        batch_size=None,  # the sampler already speaks in batches
        sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=count,
        pin_memory=pinned,
        persistent_workers=True,
        worker_init_fn=partial(_begin, recipe.worker_start, leaving),
        multiprocessing_context=recipe.worker_start,
    )

    # Where it would go as garbage in a circle its queues would end first, and no worker would hear
    # of its end: torch waits 10 s for each.
    held = [loader]

    def epoch() -> Iterator[T]:
        try:
            return iter(held[0])
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            if recipe.worker_start == "fork":
                raise
            raise DataError(
                f"`worker_start={recipe.worker_start}` hands the data to each data worker, and "
                f"they cannot be pickled: {error}",
                hint="open files and connections in `__getitem__`, and name what is a lambda",
            ) from error

    weakref.finalize(epoch, held.clear).atexit = False
    return epoch


def _check_system(rank: int) -> None:
    """Raise BadInput where data workers can hand nothing over, and warn where they might not."""
    folder = tempfile.gettempdir()
    if (length := len(os.fsencode(folder))) > _LONGEST_TMPDIR:
        raise BadInput(
            f"TMPDIR has {length} letters, and data workers need one of at most {_LONGEST_TMPDIR}",
            hint="set TMPDIR to a folder with a shorter path, or load without them: num_workers=0",
        )
    if (files := allow_open_files()) < _FEW_FILES and rank == 0:
        print(
            f"WARNING: processes may open no more than {files} files here (`ulimit -Hn`), and each "
            "tensor that a data worker has ready is one: with too few, loading stops for ever",
            flush=True,
        )


def handed_over(made: Any, recipe: Recipe) -> tuple[Any, ...]:
    """Return what `__reduce__` has to, for an object that needs the recipe's file loaded first."""
    return _received, (type(made), file_of(type(recipe)), bytes(ForkingPickler.dumps(vars(made))))


def _received(kind: type[T], file: RecipeFile | None, state: bytes) -> T:
    if file:
        load(file)
    made = kind.__new__(kind)
    vars(made).update(pickle.loads(state))  # noqa: S301  # from the training process, by a pipe
    return made


def _as_it_is(shard: Any) -> Any:
    """Collate nothing: the fetcher has done it."""
    return shard


def _begin(worker_start: str, leaving: Any, _worker: int) -> None:
    """Leave stop requests to the training process, which ends its data workers by SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent and worker_start == "forkserver":  # whose child it is, and which waits for its end
        Thread(target=_end_with, args=[parent.sentinel], daemon=True).start()
    elif parent and parent.pid:
        die_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_end_if_training_does, leaving))
    torch.set_num_threads(1)


def _end_if_training_does(leaving: Any, _number: int, _frame: FrameType | None) -> None:
    """Tell the training process, which ends its data workers, from others who signal everybody.

    A scheduler does, and an agent that ends the ranks of a run of which another has failed: a rank
    whose data workers go first would be told as the cause.
    """
    if leaving.value:
        os._exit(0)


def _end_with(sentinel: int) -> None:
    """End this process at once when another has ended."""
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
