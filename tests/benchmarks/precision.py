"""What precision, layout and the other options of a recipe cost or gain a step, on the CPU.

    uv run python tests/benchmarks/precision.py [--rounds 3] [--work conv,mlp] [--only NAME,NAME]

One process for each measurement, and all in turns, a round at a time. A step is its 5th percentile,
as in speed.py; a ratio is against the plain step of the same round, and the median over rounds is
shown. Whether bf16 pays depends on what the CPU can do in it, so that is printed too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from speed import LAUNCHER, PEERS, PYTHON, Peer, measure

VARIANTS = {
    "plain": [],
    "bf16": ["mixed_precision=bf16"],
    "channels_last": ["channels_last=true"],
    "bf16 + channels_last": ["mixed_precision=bf16", "channels_last=true"],
    "compile": ["compile=true"],
    "clip_norm": ["clip_norm=1"],
    "ema_decay": ["ema_decay=0.999"],
    "fused_optimizer": ["fused_optimizer=true"],
}


def variants(only: str) -> dict[str, list[str]]:
    """Return those asked for; `plain`, the measure of all, is always one."""
    names = ["plain", *only.split(",")] if only else list(VARIANTS)
    if unknown := sorted(set(names) - set(VARIANTS)):
        sys.exit(f"no such variant: {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    return {name: VARIANTS[name] for name in VARIANTS if name in names}


def bf16_units() -> str:
    """Return what the CPU has for bf16, by Linux's names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    found = [flag for flag in flags if flag in {"amx_bf16", "avx512_bf16"}]
    return ", ".join(found) or "none"


def steps(
    work: str, rounds: int, words: dict[str, list[str]], data: Path
) -> dict[str, list[float]]:
    """Return the step of each variant in each round, ms."""
    found: dict[str, list[float]] = {name: [] for name in words}
    for number in range(rounds):
        for name, options in words.items():
            peer = Peer(f"launcher {name}", 1, [*LAUNCHER, "--cpu", "--nproc=1", *options])
            found[name].append(measure(peer, work, data)["step ms"])
            print(f"{work}, round {number + 1}, {name}: {found[name][-1]:.2f}", file=sys.stderr)
    return found


def table(work: str, found: dict[str, list[float]]) -> str:
    lines = [f"{work:24}{'step ms':>10}{'x plain':>10}"]
    for name, times in found.items():
        pairs = zip(times, found["plain"], strict=True)
        ratio = statistics.median(mine / plain for mine, plain in pairs)
        lines.append(f"{name:24}{statistics.median(times):10.2f}{ratio:10.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default="conv,mlp", help="with commas")
    parser.add_argument("--only", default="", help=f"of {', '.join(VARIANTS)}; with commas")
    options = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, bf16 units: {bf16_units()}")
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"SPEED_DATA": folder}
        subprocess.run([PYTHON, str(PEERS / "work.py")], env=env, check=True)
        for work in options.work.split(","):
            words = variants(options.only)
            print(table(work, steps(work, options.rounds, words, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
