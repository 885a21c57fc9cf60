"""Average gradients of several models in one set of processes (see test_shared_memory)."""

import sys
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from many_runs import forked
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launcher.ranks.context import Context
from launcher.ranks.shared_memory import SharedGradients, share_gradients
from launcher.ranks.timing import StepTimes

# The shapes of parameters, and their types: fewer numbers than ranks, odd ones, several buckets.
Shapes = list[tuple[tuple[int, ...], torch.dtype]]
CASES: dict[str, Shapes] = {
    "one number": [((1,), torch.float32)],
    "odd": [((7, 13), torch.float32), ((3,), torch.float32), ((101,), torch.float32)],
    "mixed": [((33,), torch.float64), ((65, 5), torch.float32), ((17,), torch.bfloat16)],
    "buckets": [((300, 301), torch.float32)] * 9,
}


class Sum(nn.Module):
    """A loss whose gradients are the given numbers."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        given = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]
        self.given = nn.ParameterList(given)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        pairs = zip(self.given, gradients, strict=True)
        return torch.stack([(p * g).sum().double() for p, g in pairs]).sum()


def mean_in_order(context: Context, own: Tensor) -> Tensor:
    """What the average must be, bit for bit: shares of all ranks, added in their order."""
    everyones = [torch.empty_like(own) for _ in range(context.world_size)]
    dist.all_gather(everyones, own)
    total, *others = [values * (1 / context.world_size) for values in everyones]
    for values in others:
        total = total + values
    return total


def check(context: Context, name: str, times: StepTimes) -> None:
    model = DistributedDataParallel(Sum(CASES[name]), bucket_cap_mb=1, gradient_as_bucket_view=True)
    share_gradients(model, context, times)
    generator = torch.Generator().manual_seed(context.rank)
    for step in range(25):
        made = [
            [torch.randn(p.shape, generator=generator).to(p.dtype) for p in model.parameters()]
            for _ in range(2)
        ]
        with model.no_sync():
            model(made[0]).backward()
        model(made[1]).backward()
        for first, second, parameter in zip(*made, model.parameters(), strict=True):
            expected = mean_in_order(context, first + second)
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, expected), f"{name}, step {step}"
            parameter.grad.fill_(-1)  # like clipping: nobody else may see it
        model.zero_grad()


def main(out: Path) -> int:
    torch.set_num_threads(1)
    context, times = Context(cpu=True), StepTimes()
    for name in CASES:
        check(context, name, times)
    assert times.spent["communication"] > 0  # it was this that averaged them
    too_much = psutil.virtual_memory().available
    assert SharedGradients.among(context, too_much, times) is None
    (out / f"rank-{context.rank}").touch()
    context.close()
    return 0


if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    sys.exit(max(map(abs, forked(partial(main, folder), processes, folder / "store"))))
