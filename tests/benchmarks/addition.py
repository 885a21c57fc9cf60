"""How many additions `recipes/gpt.py`, with its defaults, gets entirely right, and how soon.

    uv run python tests/benchmarks/addition.py --seeds 3

Not a test: each seed takes a minute or two, for 1 process and for 2.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from training import Run, launcher

GOOD = 0.99  # of the additions that were kept out of training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("words", nargs="*", help="hyperparameters, instead of the defaults")
    asked = parser.parse_args()
    print(f"{'processes':>9} {'seed':>4} {'exact':>7} {'seconds':>7} {'steps to 99%':>12}")
    for processes in (1, 2):
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as folder:
                words = ["--nproc", processes, f"seed={seed}", *asked.words, "--run-dir", "r"]
                done = launcher("run", "gpt", *words, cwd=Path(folder), timeout_s=3600)
                if done.returncode:
                    raise SystemExit(done.stderr)
                run = Run(Path(folder) / "r")
                tests = [row for row in run.rows if row["split"] == "test"]
                good = [row["step"] for row in tests if row["exact"] >= GOOD]
                exact, seconds = run.result["test_exact"], run.result["seconds"]
                first = good[0] if good else "never"
                print(
                    f"{processes:>9} {seed:>4} {exact:7.4f} {seconds:7.0f} {first:>12}", flush=True
                )


if __name__ == "__main__":
    main()
