"""Gradients summed in memory that the processes of one machine share.

gloo sends them through sockets, and more than once. Here each rank lays its gradients down where
all can read them, sums a part of them over all ranks, and takes the other parts from the others: a
reduce-scatter and an all-gather without a network.
"""

import mmap
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # exported dynamically
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import PeerFailed
from launcher.processes import nameless
from launcher.ranks.buckets import sparse_weights
from launcher.ranks.context import Context
from launcher.ranks.timing import StepTimes

_LINE = 64  # bytes of a cache line: what different ranks write lies in different ones
_SPINS = 1000  # looks at a rank that is late, before sleeping in between: about 1 ms
_NAP_S = 1e-4
_LOOK_S = 0.2  # between two looks whether a rank that is late still lives


def share_gradients(model: nn.Module, context: Context, times: StepTimes) -> None:
    """Have DDP average gradients in shared memory, where that is possible; collective."""
    if isinstance(model, DistributedDataParallel) and is_possible(context):
        if sparse_weights(model.module):
            return  # only rows of them are sent
        trained = [p for p in model.parameters() if p.requires_grad]
        most_bytes = sum(p.nbytes + _LINE for p in trained)
        if shared := SharedGradients.among(context, most_bytes, times):
            model.register_comm_hook(shared, SharedGradients.average)


def is_possible(context: Context) -> bool:
    """Whether all ranks are on one machine whose memory orders stores as this module needs.

    Data are written before the counter that announces them. x86 shows them to others in this
    order by itself; elsewhere Python has no way to ask for it.
    """
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(context.world_size) != "1"
    on_cpu = context.device.type == "cpu" and sys.platform == "linux"
    return one_machine and on_cpu and platform.machine() == "x86_64"


@dataclass
class _Bucket:
    """Where one of DDP's buckets of gradients lies in the shared memory, flat tensors all."""

    own: Tensor  # (n,), this rank's gradients
    parts: list[Tensor]  # (n / world,) each: what this rank sums up, of every rank
    total: Tensor  # (n / world,), their sum
    result: Tensor  # (n,), the sums of all parts
    gradients: Tensor  # (n,), DDP's own
    future: Future[Tensor] = field(default_factory=Future)


class SharedGradients:
    """A communication hook of DDP: the mean of the gradients over all ranks, bit for bit alike.

    Ranks are added in order, so that the result depends on nothing but their number. The memory
    has no name: nothing is left of it when the processes have gone, however they went.
    """

    def __init__(
        self, context: Context, memory: mmap.mmap, peers: list[psutil.Process], times: StepTimes
    ) -> None:
        """Use memory that all ranks have mapped; `peers` are their processes."""
        self.rank, self.world_size = context.rank, context.world_size
        self._times = times
        self._peers = peers
        self._patience_s = context.patience_s
        self._counters = memoryview(memory).cast("q")[:: _LINE // 8]
        start = self.world_size * _LINE
        self._memory = torch.frombuffer(memory, dtype=torch.uint8, offset=start)
        self._memory = self._memory.view(self.world_size + 1, -1)  # one row a rank, and the result
        self._meetings = 0
        self._used = 0  # bytes of each row
        self._pending: list[_Bucket] = []

    @classmethod
    def among(cls, context: Context, most_bytes: int, times: StepTimes) -> "SharedGradients | None":
        """Share memory for gradients of so many bytes; collective.

        Where it cannot be had: None, and a warning of rank 0.
        """
        row = -(-most_bytes // _LINE) * _LINE
        size = context.world_size * _LINE + (context.world_size + 1) * row
        token, memory, descriptor, problem = os.urandom(16), None, -1, ""
        try:
            if context.rank == 0:
                descriptor = _memory(size)
                memory = mmap.mmap(descriptor, size)
                memory[-len(token) :] = token
        except (OSError, ValueError) as error:
            problem = str(error)
        places = context.gather((os.getpid(), descriptor, token))
        leader, number, token = places[0]
        try:
            memory = memory or _opened(f"/proc/{leader}/fd/{number}", size)
            peers = [psutil.Process(pid) for pid, _, _ in places]
            if memory[-len(token) :] != token:  # a process of another container has that number
                problem = "the processes do not see each other"
        except (OSError, ValueError, psutil.Error) as error:
            problem = problem or str(error)
        problem = next(filter(None, context.gather(problem)), "")
        if descriptor >= 0:
            os.close(descriptor)
        if problem or memory is None:
            if context.rank == 0:
                print(f"WARNING: gradients go through sockets: {problem}", flush=True)
            return None
        return cls(context, memory, peers, times)

    def average(self, bucket: GradBucket) -> Future[Tensor]:
        """Lay down a bucket of gradients; with the last one of a step, sum all of them."""
        with self._times.spending("communication"):
            laid = self._place(bucket)
            torch.mul(laid.gradients, 1 / self.world_size, out=laid.own)  # before the sum, like DDP
            self._pending.append(laid)
            if bucket.is_last():
                self._sum()
        return laid.future

    def _sum(self) -> None:
        self._meet()  # all have laid their gradients down
        for laid in self._pending:
            if len(laid.total):
                torch.add(laid.parts[0], laid.parts[1], out=laid.total)
                reduce(Tensor.add_, laid.parts[2:], laid.total)
        self._meet()  # all parts are summed; nobody reads the gradients of another any more
        for laid in self._pending:
            laid.gradients.copy_(laid.result)
            laid.future.set_result(laid.gradients)
        self._pending.clear()
        self._used = 0

    def _place(self, bucket: GradBucket) -> _Bucket:
        """Find a place for a bucket behind those before it: the same on all ranks."""
        gradients = bucket.buffer()
        end = self._used + gradients.nbytes
        rows = self._memory[:, self._used : end].view(gradients.dtype)  # (world + 1, n)
        self._used = -(-end // _LINE) * _LINE
        cut = [len(gradients) * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        *parts, total = rows[:, cut[0] : cut[1]]
        return _Bucket(rows[self.rank], parts, total, rows[-1], gradients)

    def _meet(self) -> None:
        """Wait until all ranks are here; raises PeerFailed where one of them has died."""
        self._meetings += 1
        self._counters[self.rank] = self._meetings
        for rank in range(self.world_size):
            for _ in range(_SPINS):
                if self._counters[rank] >= self._meetings:
                    break
                os.sched_yield()
            else:
                self._wait_for(rank)

    def _wait_for(self, rank: int) -> None:
        began = looked = time.monotonic()
        while self._counters[rank] < self._meetings:
            time.sleep(_NAP_S)
            if time.monotonic() - looked > _LOOK_S:
                looked = time.monotonic()
                if gone := [r for r, peer in enumerate(self._peers) if not _lives(peer)]:
                    raise PeerFailed(f"rank {gone[0]} has gone in the middle of a step")
                if looked - began > self._patience_s:
                    waited = f"{self._patience_s:g} s"
                    raise PeerFailed(f"rank {rank} did not finish its step in {waited}")


def _memory(size: int) -> int:
    """Return the descriptor of a file in memory that has no name; raises OSError."""
    if size > psutil.virtual_memory().available / 2:  # memory is taken when it is written to
        raise OSError(f"{size / 1e9:.0f} GB for them are too much for this machine")
    descriptor = nameless("gradients")
    os.ftruncate(descriptor, size)
    return descriptor


def _opened(path: str, size: int) -> mmap.mmap:
    """Return the memory behind another process's file descriptor."""
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), size)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
