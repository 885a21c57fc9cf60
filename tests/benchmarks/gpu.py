"""The launcher on a CUDA GPU: against a loop by hand and Accelerate, and what its options gain.

    uv run python tests/benchmarks/gpu.py [--rounds 3] [--work mlp,resnet] [--peak-tflops 989]

One GPU, one process. `mlp` is the quickstart at its batch size of 64, `resnet` a ResNet-18 on
images of CIFAR's shape, 512 at a time; both on images made here. Contenders are interleaved, a
round at a time; a step is the median of the times between events on the device. One more run of
each, under the profiler, gives

- idle: the share of time in which no kernel runs. The profiler slows the host, so it is an upper
  bound, to be compared with the loop's;
- waits: how often a step makes the host wait for the device. The steps traced are shortly before
  a report, so the launcher's should be 0, but where a second has passed since ranks last asked
  each other whether to stop.

MFU is the floating point operations of the model, as torch counts them, against what the device
could do in bf16 without sparsity, whatever the precision of the run.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed import ACCELERATE, LAUNCHER, PEERS, PYTHON, Peer, Row, measure

sys.path.insert(0, str(PEERS))
import torch
import work
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from launcher.model.peaks import peak_tflops

WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
OPTIONS = {
    "": [],
    "bf16": ["mixed_precision=bf16"],
    "compile": ["compile=true"],
    "channels_last": ["channels_last=true"],
    "data_on_device": ["data_on_device=true"],
    "fused": ["fused_optimizer=true"],
}
OPTIONS["all"] = [word for words in OPTIONS.values() for word in words]
OPTIONS["graphs"] = ["data_on_device=true", "fused_optimizer=true", "cuda_graphs=true"]
OPTIONS["compile graphs"] = [*OPTIONS["graphs"], "compile=true"]
OPTIONS["all graphs"] = [*OPTIONS["all"], "cuda_graphs=true"]
BY_HAND = "bf16,channels_last,compile,fused"  # what `all` is compared with


def contenders(what: str) -> list[Peer]:
    command = [*LAUNCHER, "--nproc=1", f"batch_size={work.SIZES[what].batch}"]
    accelerated = [*ACCELERATE, "--num_processes=1", str(PEERS / "cuda_accelerated.py")]
    return [
        Peer("loop", 1, [PYTHON, str(PEERS / "cuda_loop.py")]),
        Peer("loop all", 1, [PYTHON, str(PEERS / "cuda_loop.py")]),
        Peer("accelerate", 1, accelerated),
        *(Peer(f"launcher {name}".strip(), 1, [*command, *o]) for name, o in OPTIONS.items()),
    ]


def measured(peer: Peer, what: str, data: Path, where: Mapping[str, str]) -> Row:
    """Run a contender once on the GPU; `where` is what its environment has besides."""
    options = BY_HAND if peer.name == "loop all" else ""
    return measure(peer, what, data, where={"SPEED_OPTIONS": options, **where})


def flops_of_step(model: nn.Module, batch: int, shape: Sequence[int]) -> int:
    """Return the operations of a forward and a backward pass; nothing is computed."""
    images = torch.empty(batch, *shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(images).sum().backward()
    return int(counter.get_total_flops())


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@dataclass(frozen=True)
class Trace:
    """What a trace says about the steps in it."""

    idle: float  # share of the time from the first kernel to the last in which none runs
    waits: float  # of the host for the device, a step


def read_trace(path: Path) -> Trace:
    """Read what torch.profiler wrote; only waits inside of steps count, not the profiler's own."""
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("ph") == "X"]
    kernels = [span(e) for e in events if e.get("cat") == "kernel"]
    steps = [
        span(e)
        for e in events
        if e["name"].startswith("ProfilerStep#") and e.get("cat") == "user_annotation"
    ]
    began, ended = min(start for start, _ in steps), max(end for _, end in steps)
    waits = [e for e in events if e["name"] in WAITS and began <= e["ts"] < ended]
    if not kernels:
        return Trace(1.0, len(waits) / len(steps))
    wall = max(end for _, end in kernels) - min(start for start, _ in kernels)
    return Trace(1 - covered(kernels) / wall, len(waits) / len(steps))


def span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def traced(peer: Peer, what: str, data: Path, path: Path) -> Trace:
    """Run a contender under the profiler, which writes to a file."""
    measured(peer, what, data, {"SPEED_TRACE": str(path)})
    return read_trace(path)


def compare(what: str, rounds: int, data: Path) -> tuple[dict[str, float], dict[str, Trace]]:
    """Return the step of each contender, in seconds, and its trace."""
    everyone = contenders(what)
    rows: dict[str, list[Row]] = {peer.name: [] for peer in everyone}
    for number in range(rounds):
        for peer in everyone:
            rows[peer.name].append(measured(peer, what, data, {}))
            print(f"round {number + 1}, {peer.name}: {rows[peer.name][-1]}", file=sys.stderr)
    steps = {name: statistics.median(r["median ms"] for r in rs) / 1e3 for name, rs in rows.items()}
    traces = {p.name: traced(p, what, data, data / f"{what}, {p.name}.json") for p in everyone}
    return steps, traces


def table(what: str, steps: dict[str, float], traces: dict[str, Trace], peak: float | None) -> str:
    """Lay out what was found: `x loop` is a step against the loop's, `gain` against no options."""
    size = work.SIZES[what]
    flops = flops_of_step(work.model(what), size.batch, size.shape)
    heads = ("samples/s", "step ms", "x loop", "gain", "idle %", "waits", "MFU %")
    lines = [f"{what + f', {flops / 1e9:.2f} GFLOP':24}" + "".join(f"{h:>11}" for h in heads)]
    for name, step in steps.items():
        gain = steps["launcher"] / step if name.startswith("launcher ") else math.nan
        mfu = 100 * flops / step / (1e12 * peak) if peak else math.nan
        found = [size.batch / step, 1e3 * step, step / steps["loop"], gain]
        found += [100 * traces[name].idle, traces[name].waits, mfu]
        words = (f"{'':11}" if math.isnan(value) else f"{value:11,.2f}" for value in found)
        lines.append(f"{name:24}" + "".join(words).rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default="mlp,resnet", help="with commas")
    parser.add_argument("--peak-tflops", type=float, help="of a device that is not known here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU, and torch finds none here")
    device = torch.cuda.get_device_name()
    peak = options.peak_tflops or peak_tflops(device)
    known = f"{peak:g} TFLOP/s in bf16" if peak else "unknown peak (give --peak-tflops for MFU)"
    print(f"{device}, {known}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"SPEED_DATA": folder}
        subprocess.run([PYTHON, str(PEERS / "work.py")], env=env, check=True)
        for what in options.work.split(","):
            print(table(what, *compare(what, options.rounds, Path(folder)), peak), flush=True)


if __name__ == "__main__":
    main()
