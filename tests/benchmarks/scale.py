"""What grows with the number of processes, in a simulation of up to 1,024 ranks by one.

    uv run python tests/benchmarks/scale.py

One process stands for a rank, or for the launcher of a node, and does what it would do; a fake
process group answers collectives at once, so what is measured is this side of the network.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher.data.sampler import ShardSampler
from launcher.launch.launch import Nodes, command, environment
from launcher.launch.supervise import HangWatch
from launcher.launch.verdict import verdict
from launcher.model.pieces import own
from launcher.ranks.metrics import Sums
from launcher.ranks.timing import StepTimes
from launcher.recipe.base import StepSums
from launcher.run.directory import RunDir
from launcher.run.mark import Marker
from launcher.run.record import Record
from launcher.sharding.building import _wrap
from launcher.sharding.moving import scattered
from launcher.times.slow import RankTimes, SlowRanks
from launcher.train.exchange import _own_slot

WORLDS = (1, 8, 64, 256, 1024)
NODE = 8  # processes of a machine
SAMPLES = 10**9
WIDTH = 512  # of a layer of the model in pieces


def ms(do: Callable[[], object], times: int = 5) -> float:
    """Median CPU time, ms."""
    took = []
    for _ in range(times):
        began = time.process_time()
        do()
        took.append(1e3 * (time.process_time() - began))
    return statistics.median(took)


def sampler(world: int) -> tuple[float, float]:
    """Seek to the middle of an epoch, and a step: 64 samples a rank."""
    made = ShardSampler(SAMPLES, 64 * world, rank=world - 1, world_size=world)
    middle = made.steps // 2

    def first() -> None:
        made.seek(1, middle)
        next(iter(made))

    def steps() -> None:
        made.seek(1, middle)
        shards = iter(made)
        for _ in range(1000):
            next(shards, None)

    return ms(first), ms(steps) / 1000


def report(world: int) -> float:
    """Add up a hundred steps and reduce them: what a report costs a rank."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        sums = Sums(100, torch.device("cpu"))
        step = StepSums(torch.tensor(1.0), 64, torch.tensor(3))

        def one() -> None:
            sums.reset()
            for _ in range(100):
                sums.add(step)
                sums.end_step(64)
            vector = sums.vector()
            dist.all_reduce(vector)
            sums.totals(vector.tolist())

        return ms(one)
    finally:
        dist.destroy_process_group()


def compared(world: int) -> float:
    """Put a rank's own time into its slot, and judge those of all: what a report adds on rank 0."""
    context = SimpleNamespace(world_size=world, rank=0)
    run: Any = SimpleNamespace(context=context, times=StepTimes(), waits_in_passes=False)
    judged = SlowRanks()

    def one() -> None:
        told = torch.tensor(_own_slot(run), dtype=torch.float64).tolist()
        times = RankTimes(told or [0.0], data_alone=False)
        judged.judge(RunDir(Path()), times, steps=100, step_s=1.0, uneven=1.0)

    judged._noted = []  # nothing is noted anywhere
    return ms(one)


class Blocks(nn.Module):
    """A small model, cut as a large one is: block by block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(8)
        )
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 8) of (batch, WIDTH)."""
        for block in self.blocks:
            x = block(x)
        return cast("torch.Tensor", self.head(x))


def pieces(world: int) -> tuple[float, float, float]:
    """Train a model in pieces as rank 0: ms of a step, ms to cut a tensor of 1 MB, MB it holds."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        context: Any = SimpleNamespace(device=torch.device("cpu"), world_size=world, rank=0)
        recipe: Any = SimpleNamespace(mixed_precision="no")
        with torch.device("meta"):
            model = Blocks()
        _wrap(model, {str(at): block for at, block in enumerate(model.blocks)}, recipe, context)
        model.to_empty(device="cpu")
        optimizer = torch.optim.AdamW(model.parameters())
        batch, whole = torch.zeros(4, WIDTH), torch.zeros(WIDTH, WIDTH)

        def step() -> None:
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        weight = next(iter(model.parameters()))
        states = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
        held = sum(own(tensor).nbytes for tensor in (*model.parameters(), *states))
        return ms(step), ms(lambda: scattered(whole, weight, context)), held / 1e6
    finally:
        dist.destroy_process_group()


def node(world: int, folder: Path) -> tuple[float, float]:
    """Plan a machine's processes and look at how they get on, once."""
    run = RunDir(folder / f"node-{world}")
    run.logs.mkdir(parents=True)
    here = min(world, NODE)
    for rank in range(here):
        Marker(run.mark(rank)).step(1)
    watch = HangWatch({rank: run.mark(rank) for rank in range(here)}, 600, 3600)
    nodes = Nodes(here, world // here, endpoint="host:1", cpu=True)

    def look() -> None:
        watch._looked = 0.0  # it looks twice a second
        watch.verdict()

    plan = ms(lambda: (command(nodes, run, run, "no"), environment(nodes, os.environ)))
    return plan, ms(look)


def ending(world: int, folder: Path) -> float:
    """Read how all ranks ended, as machine 0 does."""
    run = RunDir(folder / f"ending-{world}")
    run.logs.mkdir(parents=True)
    for rank in range(world):
        record = Record.started(rank)
        record.end("completed")
        record.write(run)
    return ms(lambda: verdict(run, range(world), [0], 0))


def main() -> None:
    rows: dict[str, list[float]] = {}
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what nobody has sent is whatever memory holds
    with tempfile.TemporaryDirectory() as folder:
        for world in WORLDS:
            first, step = sampler(world)
            plan, look = node(world, Path(folder))
            step_in_pieces, handed_out, held = pieces(world)
            found = {
                "sampler: to the middle of 10^9 samples": first,
                "sampler: a step": step,
                "metrics: 100 steps and their report": report(world),
                "metrics: compare all ranks at a report": compared(world),
                "launch: plan a machine": plan,
                "launch: look for a hang": look,
                "shard: a step of eight blocks": step_in_pieces,
                "shard: cut a tensor of 1 MB": handed_out,
                "shard: MB of weights and AdamW a rank": held,
                "end: read all ranks' records": ending(world, Path(folder)),
            }
            for what, took in found.items():
                rows.setdefault(what, []).append(took)
    print(f"{'CPU ms, by ranks':42}" + "".join(f"{world:>9,}" for world in WORLDS))
    for what, times in rows.items():
        print(f"{what:42}" + "".join(f"{took:9.3f}" for took in times))


if __name__ == "__main__":
    main()
