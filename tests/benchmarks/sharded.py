"""What `shard=true` costs and saves: memory of a process, a step, and what a save blocks.

    uv run python tests/benchmarks/sharded.py [--rounds 3] [--steps 8] [--small] [--only NAME,NAME]

A decoder of 200 million parameters (embedding and head: 4%) with AdamW, two processes over gloo:
`shard=true` of the launcher, `fully_shard` and DDP by hand, taking turns, with the same settings of
malloc. MB are the most that a process had in memory, above what it had after its imports, of the
larger process: up to the last step, and with a save by all ranks at the end. A step is the 5th
percentile of all but the first two. Then what a save blocks, with and without `shard_checkpoints`.
"""

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook

from launcher import ArrayDataset, Recipe, StepSums
from launcher.launch.allocator import allocator

RANKS, BATCH, TOKENS, VOCABULARY, WARM = 2, 4, 32, 4096, 2
WIDTH, LAYERS = (64, 2) if os.environ.get("SHARDED_SMALL") else (1024, 16)
ITSELF = str(Path(__file__).resolve())


def memory(kind: str) -> float:
    """MB of this process in memory: now (`VmRSS`), or the most so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


AFTER_IMPORTS = memory("VmRSS")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.into, self.back = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # (samples, tokens, width)
        heads = (*x.shape[:2], 3, WIDTH // 64, 64)
        q, k, v = self.qkv(self.norms[0](x)).view(heads).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        made: Tensor = x + self.back(torch.relu(self.into(self.norms[1](x))))
        return made


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(x)
        return scores


def samples(count: int) -> Tensor:
    """Return random tokens, (count, TOKENS + 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, TOKENS + 1), generator=generator)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def noted() -> None:
    """Note when steps end, and memory; written when the process ends."""
    walls: list[float] = []
    most: list[float] = []

    def note(*_: object) -> None:
        walls.append(time.perf_counter())
        most[:] = [memory("VmHWM") - AFTER_IMPORTS]

    def write() -> None:
        told = {"walls": walls, "MB": most[0], "MB with save": memory("VmHWM") - AFTER_IMPORTS}
        (Path(os.environ["SHARDED_OUT"]) / f"{os.getpid()}.json").write_text(json.dumps(told))

    register_optimizer_step_post_hook(note)
    atexit.register(write)


@dataclass(frozen=True)
class Large(Recipe):
    """The work as a recipe."""

    shard: bool = True
    shard_checkpoints: bool | None = True
    batch_size: int = BATCH

    def model(self) -> nn.Module:
        return Decoder()

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(samples(1024))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if "SHARDED_OUT" in os.environ:
            noted()
        return torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        tokens = batch[0] if isinstance(batch, tuple | list) else batch
        return StepSums(loss_of(model, tokens), len(tokens), scale=len(tokens))


def by_hand(way: str, steps: int) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    noted()
    model: Any = Decoder()
    if way == "DDP":
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        for module in (*model.blocks, model):
            fully_shard(module)
            module.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens, own = samples(BATCH * steps), BATCH // RANKS
    for start in range(dist.get_rank() * own, len(tokens), BATCH):
        loss: Any = loss_of(model, tokens[start : start + own])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    del model
    dist.destroy_process_group()


def saves(rounds: int) -> None:
    """Print what a save blocks, in ms, by rank 0: gathered there, and each rank's share."""
    from launcher.ranks.context import Context  # another process's imports
    from launcher.ranks.faults import StopRequest
    from launcher.run.directory import RunDir
    from launcher.train.checkpoint import Saver
    from launcher.train.exchange import checkpoint
    from launcher.train.prepare import prepare
    from launcher.train.step import train_step

    context = Context(cpu=True)
    training = prepare(Large(), context, StopRequest())
    shard = next(iter(training.train_loader))
    saver = Saver(RunDir(Path(os.environ["SHARDED_RUN"])), keep_last=1, keep_best=0)
    took: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * rounds + 2):
        train_step(training, shard)
        training.sums.reset()
        training.progress.step += 1
        object.__setattr__(training.recipe, "shard_checkpoints", number % 2 == 1)
        context.agree(False)
        began = time.perf_counter()
        checkpoint(training, saver)
        context.agree(False)  # until the slowest of them goes on
        if number > 1:
            took[number % 2 == 1].append(1e3 * (time.perf_counter() - began))
        saver.wait(training.marker)
        context.agree(False)
    if context.rank == 0:
        whole, share = (statistics.median(took[kind]) for kind in (False, True))
        print(f"a save blocks {whole:.0f} ms gathered, {share:.0f} ms in shares", end=": ")
        print(f"{share / whole:.2f}", flush=True)
    del training
    context.close()


def peers(steps: int) -> dict[str, list[str]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={RANKS}", ITSELF, "--steps", str(steps), "--as"]
    ours = [sys.executable, "-m", "launcher", "run", ITSELF, f"steps={steps}", "--run-dir=run"]
    ours += [f"--nproc={RANKS}", "--cpu", "--tracking=disabled"]
    by_hand = {way: [*torchrun, way] for way in ("fully_shard", "DDP", "saves")}
    return {"launcher": ours, **by_hand}


def started(command: list[str], *, small: bool) -> tuple[str, list[dict[str, Any]]]:
    """Run a peer; returns what it said, and what its processes have noted."""
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith("SHARDED_")}
        env |= allocator(shard=True) | {"OMP_NUM_THREADS": "1", "SHARDED_RUN": folder}
        env |= {"SHARDED_SMALL": "1"} if small else {}
        env |= {"SHARDED_OUT": folder} if command[-1] != "saves" else {}
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout, [json.loads(p.read_text()) for p in Path(folder).glob("*.json")]


def row_of(told: list[dict[str, Any]]) -> dict[str, float]:
    walls = told[0]["walls"][WARM:]
    gaps = sorted(1e3 * (b - a) for a, b in pairwise(walls))
    row = {"step ms": gaps[len(gaps) // 20], "median ms": statistics.median(gaps)}
    return row | {key: max(one[key] for one in told) for key in ("MB", "MB with save")}


def show(rows: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and how they stand to each other."""
    found = {
        name: {key: statistics.median(row[key] for row in several) for key in several[0]}
        for name, several in rows.items()
    }
    for number, (name, row) in enumerate(found.items()):
        if number == 0:
            print(f"{'':12}" + "".join(f"{key:>14}" for key in row))
        print(f"{name:12}" + "".join(f"{value:14.1f}" for value in row.values()))
    for key, theirs, aim in (
        ("MB", "DDP", ", at most 0.60"),
        ("step ms", "fully_shard", ", at most 1.05"),
        ("step ms", "DDP", ""),
    ):
        if {"launcher", theirs} <= found.keys():
            ratio = found["launcher"][key] / found[theirs][key]
            print(f"{key}, launcher of {theirs}: {ratio:.2f}{aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="a model of some hundred thousand")
    parser.add_argument("--only", default="launcher,fully_shard,DDP,saves")
    parser.add_argument("--as", dest="way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return (
            saves(options.rounds) if options.way == "saves" else by_hand(options.way, options.steps)
        )
    names = options.only.split(",")
    timed = {name: peers(options.steps)[name] for name in names if name != "saves"}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in timed}
    for _ in range(options.rounds):
        for name, command in timed.items():
            rows[name].append(row_of(started(command, small=options.small)[1]))
            print(f"{name}: {rows[name][-1]}", file=sys.stderr)
    show(rows)
    if "saves" in names:
        print(started(peers(options.steps)["saves"], small=options.small)[0], end="")
    return None


if __name__ == "__main__":
    main()
