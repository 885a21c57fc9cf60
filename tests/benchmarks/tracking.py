"""What W&B costs a training step: offline against disabled, interleaved, of the quickstart's size.

    uv run python tests/benchmarks/tracking.py [--rounds 5] [--nproc 1]

A step's time is the median over the reports of a run, a report every 100 steps; the ratio is the
median over rounds. The whole command's time is printed, too: it has W&B's start and end in it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import RECIPES, Run, launcher

RUN = (RECIPES / "curve.py", "hidden=512", "samples=64000", "batch_size=64", "log_every=100")


def timed(folder: Path, mode: str, nproc: int) -> tuple[float, float]:
    """Return the step time in ms and the wall time in s of one run."""
    started = time.perf_counter()
    words = ("--tracking", mode, "--nproc", nproc, "--run-dir", folder / mode)
    done = launcher("run", *RUN, "epochs=3", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [row for row in Run(folder / mode).rows if row["split"] == "train"]
    seconds = time.perf_counter() - started
    return 1000 * statistics.median(row["step_time"] for row in rows), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=1)
    options = parser.parse_args()
    ratios = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            order = ("disabled", "offline") if number % 2 else ("offline", "disabled")
            took = {mode: timed(Path(folder), mode, options.nproc) for mode in order}
        ratios.append(took["offline"][0] / took["disabled"][0])
        words = ", ".join(f"{m} {took[m][0]:.3f} ms/step {took[m][1]:.1f} s" for m in sorted(took))
        print(f"round {number + 1}: {words}, step ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio of a step, offline / disabled: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
