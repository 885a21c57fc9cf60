"""What `run.steps()` costs a step, in microseconds: started by python or torchrun.

The best of many stretches of steps, so that a busy machine says little.
"""

import os
import tempfile
import time

import launcher

STRETCH, STRETCHES = 1000, 100


def main() -> None:
    """Make empty steps and print what one takes."""
    folder = os.environ.get("DIR") or tempfile.mkdtemp()
    run = launcher.attach(lambda _: None, lambda _: None, dir=folder, checkpoint_every=None)
    best, began = float("inf"), time.perf_counter()
    for step in run.steps(STRETCH * STRETCHES):
        if step % STRETCH == 0:
            now = time.perf_counter()
            best, began = min(best, now - began) if step else best, now
    if run.rank == 0:
        print(f"{1e6 * best / STRETCH:.2f} microseconds a step")


if __name__ == "__main__":
    main()
