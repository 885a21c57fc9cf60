"""Kill a random worker at a random time, again and again; how long until the next step?

    uv run python tests/benchmarks/soak.py --kills 50

Not a test: it takes a quarter of an hour. Every kill must be recovered from at the first attempt,
and the final weights must be those of a run that nobody disturbed.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from training import RECIPES, Run, guards_of, launcher, started

from launcher.run import mark

WORDS = ["samples=400", "checkpoint_every=4", "step_s=0.05", "hidden=32", "dropout=0.1"]


def steps(run: Path, world: int) -> int:
    marks = [mark.read(run / "logs" / f"rank-{rank}.mark") for rank in range(world)]
    return min((found.steps for found in marks if found), default=0)


def wait_for_steps(run: Path, world: int, target: int, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while steps(run, world) < target:
        if time.monotonic() > deadline:
            raise SystemExit(f"no step {target} after {timeout_s} s")
        time.sleep(0.01)


def kill_one(process: "subprocess.Popen[str]", rng: random.Random) -> None:
    [agent] = guards_of(process)[1].children()
    rng.choice(agent.children()).kill()


def soak(folder: Path, world: int, kills: int, rng: random.Random) -> list[float]:
    """Return the seconds from each kill to the next new step."""
    words = [*WORDS, f"epochs={kills * 3}", "--nproc", str(world)]
    recoveries = []
    run = folder / f"world-{world}"
    with started(
        "run",
        RECIPES / "curve.py",
        *words,
        "--max-restarts",
        str(kills),
        "--run-dir",
        run,
        cwd=folder,
    ) as process:
        wait_for_steps(run, world, 1)
        for kill in range(kills):
            time.sleep(rng.uniform(0.1, 1.5))
            reached = max(steps(run, world), 1)
            killed = time.monotonic()
            kill_one(process, rng)
            while steps(run, world) >= reached and time.monotonic() - killed < 60:
                time.sleep(0.005)  # until the marks are those of the next attempt
            wait_for_steps(run, world, reached + 1)
            recoveries.append(time.monotonic() - killed)
            print(f"world {world}, kill {kill + 1}: {recoveries[-1]:.1f} s", flush=True)
        _, stderr = process.communicate(timeout=600)
    restarts = stderr.count("restarting;")
    if process.returncode or restarts != kills:
        raise SystemExit(
            f"exit {process.returncode}, {restarts} restarts for {kills} kills: {stderr}"
        )
    whole = folder / f"whole-{world}"
    launcher("run", RECIPES / "curve.py", *words, "--run-dir", whole, cwd=folder, timeout_s=900)
    same = Run(run).weight_bytes == Run(whole).weight_bytes
    print(f"world {world}: {kills} kills, {kills} recoveries, weights the same: {same}", flush=True)
    if not same:
        raise SystemExit("the weights differ")
    return recoveries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for at, world in enumerate(options.worlds):
            share = range(at, options.kills, len(options.worlds))
            seconds += soak(Path(folder), world, len(share), rng)
    seconds.sort()
    median, p95 = statistics.median(seconds), seconds[int(len(seconds) * 0.95)]
    print(f"{len(seconds)} kills, {len(seconds)} recoveries at the first attempt")
    print(f"from kill to next step: median {median:.1f} s, p95 {p95:.1f} s")


if __name__ == "__main__":
    main()
