"""The parts of a run that need no peer: help, the test loop, the start of a very long epoch.

    uv run python tests/benchmarks/parts.py        # speed.py prints it too

CPU time, interleaved, medians: other load on the machine hardly changes a ratio.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import torch
from torch import nn

from launcher.data.sampler import ShardSampler
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.ranks.timing import HostClock
from launcher.train.prepare import prepare
from launcher.train.step import train_step
from launcher.train.testing import test_loop


def ratio(
    mine: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """Return the medians of two measurements, taken in turns."""
    pairs = [(mine(), theirs()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def show(what: str, mine: float, theirs: float, most: float) -> None:
    print(f"{what:42}{mine:10.1f} against {theirs:10.1f}: {mine / theirs:.2f}, at most {most}")


def start_of(*words: str) -> float:
    """CPU time of a command, ms."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def timed(do: Callable[[], object]) -> Callable[[], float]:
    def cpu_ms() -> float:
        before = time.process_time()
        do()
        return 1e3 * (time.process_time() - before)

    return cpu_ms


def loops_over_images() -> tuple[float, float]:
    """Our test loop over 10,000 images, and plain slicing, in CPU ms."""
    import work
    from ours import Ours

    training = prepare(Ours(), Context(cpu=True), StopRequest())
    images, labels = work.in_memory("t10k", work.TEST)

    @torch.no_grad()
    def plain() -> list[float]:
        training.model.eval()
        total = torch.zeros(2)
        for at in range(0, len(images), 1000):
            scores, right = (
                training.model(images[at : at + 1000].float() / 255),
                labels[at : at + 1000],
            )
            total[0] += nn.functional.cross_entropy(scores, right, reduction="sum")
            total[1] += (scores.argmax(1) == right).sum()
        return list(total)

    plain()
    return ratio(timed(lambda: test_loop(training, None)), timed(plain), 30)


class Still(HostClock):
    """A clock that stands still."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def steps_counted() -> tuple[float, float]:
    """A hundred steps of which a rank's own time is counted, and as many without, in CPU ms."""
    from ours import Ours

    training = prepare(Ours(), Context(cpu=True), StopRequest())
    shard = next(iter(training.train_loader))

    def steps(clock: HostClock) -> None:
        training.times.own = clock
        for _ in range(100):
            train_step(training, shard)
        training.sums.reset()

    steps(Still())
    return ratio(timed(lambda: steps(HostClock())), timed(lambda: steps(Still())), 50)


def resident() -> float:
    """MB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def long_epochs() -> None:
    size, batch = 10**9, 64
    for where, step in (("start", 0), ("middle", size // batch // 2), ("end", size // batch - 1)):
        before, began = resident(), time.process_time()
        sampler = ShardSampler(size, batch, rank=1, world_size=2)
        sampler.seek(3, step)
        next(iter(sampler))
        took, grown = 1e3 * (time.process_time() - began), max(0.0, resident() - before)
        print(f"10^9 samples, from the {where:18}{took:10.1f} ms, {grown:.1f} MB; at most 50, 50")


def main() -> None:
    torch.set_num_threads(1)
    told = ratio(lambda: start_of("-m", "launcher", "--help"), lambda: start_of("-c", "pass"), 15)
    show("launcher --help, ms, of `python -c pass`", *told, 5)
    long_epochs()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(os.environ.setdefault("SPEED_DATA", folder))
        import work

        if not (made / "FashionMNIST").exists():
            work.make_images(made)
        show("100 steps, ms, of them uncounted", *steps_counted(), 1.02)
        show("test loop, ms, of plain slicing", *loops_over_images(), 1.2)


if __name__ == "__main__":
    main()
