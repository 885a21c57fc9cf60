"""What W&B costs a training step of the quickstart's size: offline against none, in one run.

    uv run python tests/benchmarks/tracking.py [--epochs 15] [--nproc 1]

What mirrors the run is stopped and let go on every 2 s by turns, so that both are measured on the
same machine in the same minute: whole runs differ by far more than what is sought. The first
window, in which wandb is imported, is left out. Medians over reports of 50 steps.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

import itertools

from training import RECIPES, Run, started, wait_for

RUN = (RECIPES / "curve.py", "hidden=512", "samples=64000", "batch_size=64", "log_every=50")
WINDOW_S = 2.0


def alternated(folder: Path, epochs: int, nproc: int) -> tuple[Run, list[tuple[float, bool]]]:
    """Train offline; returns the run, and when (seconds since 1970) the mirror was let to run."""
    run = Run(folder / "r")
    words = ("run", *RUN, f"epochs={epochs}", "--nproc", nproc, "--run-dir", "r")
    turns: list[tuple[float, bool]] = []
    with started(*words, "--tracking", "offline", cwd=folder) as process:
        wait_for(lambda: any(run.path.glob("wandb/offline-run-*/*.wandb")))
        time.sleep(WINDOW_S)
        family = psutil.Process(process.pid).children(recursive=True)
        mirror = next(one for one in family if "mirror" in one.cmdline())
        both = [mirror, *mirror.children(recursive=True)]
        while process.poll() is None and not (run.path / "result.json").exists():
            going = len(turns) % 2 == 0
            for one in both:
                (one.resume if going else one.suspend)()
            turns.append((time.time(), going))
            time.sleep(WINDOW_S)
        for one in both:
            one.resume()
        process.communicate()
    return run, turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--nproc", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, turns = alternated(Path(folder), options.epochs, options.nproc)
        rows = [row for row in run.rows if row["split"] == "train"]
    ms: dict[bool, list[float]] = {True: [], False: []}
    for (start, going), (end, _) in itertools.pairwise(turns):
        inside = [row for row in rows if start + 0.3 < row["time"] < end]
        ms[going] += [1000 * row["step_time"] for row in inside]
    on, off = statistics.median(ms[True]), statistics.median(ms[False])
    print(f"step, W&B offline: {on:.3f} ms ({len(ms[True])} reports of 50 steps)")
    print(f"step, without:     {off:.3f} ms ({len(ms[False])} reports)")
    print(f"ratio of medians:  {on / off:.3f}")


if __name__ == "__main__":
    main()
