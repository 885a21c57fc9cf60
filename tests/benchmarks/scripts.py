"""How much later than under torchrun a script starts under the launcher.

    uv run python tests/benchmarks/scripts.py [--rounds 5]

Interleaved, medians of the seconds from the command to the script's first line, to the end of
`init_process_group` and a barrier, both on the slowest rank, and to the end of the command. Two
processes, on the CPU.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NPROC = 2
SCRIPT = """
import os, time
began = time.time()
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
met = time.time()
with open(f"times-{os.environ['RANK']}", "w") as file:
    print(began, met, file=file)
dist.destroy_process_group()
"""
WAYS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NPROC}"],
    "launcher": ["-m", "launcher", "run", f"--nproc={NPROC}", "--tracking=disabled"],
}


def measured(way: str) -> tuple[float, ...]:
    """The seconds to the first line, to the meeting, and to the end of one run."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script.py").write_text(SCRIPT)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        began = time.time()
        command = [sys.executable, *WAYS[way], "script.py"]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        ended = time.time()
        times = [Path(folder, f"times-{rank}").read_text().split() for rank in range(NPROC)]
    return tuple(max(map(float, when)) - began for when in (*zip(*times, strict=True), [ended]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(measured(way))
    print(f"{'':<10}{'first line':>12}{'met':>8}{'end':>8}")
    for way, rows in found.items():
        line, met, end = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{way:<10}{line:>12.2f}{met:>8.2f}{end:>8.2f}")


if __name__ == "__main__":
    main()
