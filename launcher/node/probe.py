"""What each process of a check does: use its device, meet the others, talk, and write it down.

Started exactly as a training process is: `python -m launcher.node.start probe RESULTS SHARED`.
"""

import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import accelerate
import torch

from launcher.files import seen_file, write_json
from launcher.ranks.context import Context

_LATENCY_ROUNDS = 20
_SPEED_ROUNDS = 3
_CPU_BYTES, _GPU_BYTES = 16 * 2**20, 64 * 2**20


class Report:
    """How far this process came, in RESULTS/rank-K.json at every moment."""

    def __init__(self, folder: Path) -> None:
        rank = int(os.environ.get("RANK", "0"))
        self._path = folder / f"rank-{rank}.json"
        self.facts: dict[str, Any] = {"rank": rank, "host": socket.gethostname()}

    def note(self, **facts: Any) -> None:
        """Write down some more."""
        self.facts |= facts
        write_json(self._path, self.facts)


def use_device() -> str:
    """Multiply matrices on this process's device; returns its name. Raises where it is broken."""
    on_gpu = os.environ.get("ACCELERATE_USE_CPU") != "true" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    ones = torch.ones(512, 512, device=device)
    product = ones @ ones  # each entry is 512
    if not torch.equal(product.cpu(), torch.full((512, 512), 512.0)):
        raise ArithmeticError(f"{device} multiplies matrices wrongly")
    return torch.cuda.get_device_name(device) if on_gpu else "cpu"


def talk(context: Context) -> dict[str, float]:
    """Sum numbers over all ranks; collective. Returns seconds and bytes per second."""
    small = torch.zeros(1, device=context.device)
    latency_s = statistics.median(_timed(context, small) for _ in range(_LATENCY_ROUNDS))
    size = _CPU_BYTES if context.device.type == "cpu" else _GPU_BYTES
    large = torch.empty(size // 4, device=context.device)
    fastest_s = min(_timed(context, large) for _ in range(_SPEED_ROUNDS))
    mine = torch.full((1000,), float(context.rank + 1), device=context.device)
    expected = context.world_size * (context.world_size + 1) / 2
    if not (context.reduce(mine) == expected).all():
        raise ArithmeticError(f"the sum over all ranks is {mine[0].item()}, not {expected}")
    return {"latency_s": latency_s, "bytes": size, "bytes_per_s": size / fastest_s}


def _timed(context: Context, values: torch.Tensor) -> float:
    """Seconds that an all-reduce takes; `.item()` waits for a GPU."""
    values.fill_(1.0)
    context.agree(False)
    began = time.perf_counter()
    context.reduce(values)[-1].item()
    return time.perf_counter() - began


def meet(context: Context, shared: Path) -> dict[str, Any]:
    """Compare clocks and what is in the shared folder; collective. Returns lists by rank."""
    context.agree(False)  # all read their clocks at the same moment
    clock = time.time()
    token = seen_file(shared, os.environ)
    try:
        if context.rank == 0:
            token.touch()
        context.agree(False)
        sees = _sees(token)
        everybody = context.gather((socket.gethostname(), os.getpid(), clock, sees))
    finally:
        if context.rank == 0:
            token.unlink(missing_ok=True)
    hosts, pids, clocks, seen = zip(*everybody, strict=True)
    return {"hosts": hosts, "pids": pids, "clocks": clocks, "seen": seen}


def _sees(token: Path, patience_s: float = 10) -> bool:
    """Whether a file of another machine is seen here, where a network file system may be slow."""
    deadline = time.monotonic() + patience_s
    while not token.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def main(arguments: list[str]) -> int:
    """Check as one of several processes; returns the exit code."""
    results, shared = map(Path, arguments)
    report = Report(results)
    report.note(torch=torch.__version__, accelerate=accelerate.__version__, stage="device")
    try:
        report.note(device=use_device(), stage="join")
        context = Context(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true")
        try:
            report.note(world_size=context.world_size, stage="talk")
            report.note(**meet(context, shared), **talk(context), stage="done")
        finally:
            context.close()
    except Exception as error:
        report.note(error=f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    return 0
