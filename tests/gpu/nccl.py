"""Stage 4: one rank under torchrun takes every path of several, over NCCL on a GPU."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import PeerFailed
from launcher.ranks.context import Context

sys.path.insert(0, str(Path(__file__).parent))
from check import Note

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]


def main(cpu: bool, folder: Path, note: Note) -> None:
    from training import RECIPES, Run, command, many_runs

    found = folder / "found.json"
    done = command(*TORCHRUN, __file__, str(found), "cpu" if cpu else "cuda", cwd=folder)
    if found.exists():
        note(**json.loads(found.read_text()))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    cases: list[dict[str, object]] = [
        {"name": "plain", "recipe": "curve", "epochs": 2, "norm": True},
        {"name": "tokens", "recipe": "tokens", "dtype": "float64"},
    ]
    for name, in_ddp in (("alone", False), ("in-ddp", True)):
        (folder / name).mkdir()
        many_runs(folder / name, 1, cases, in_ddp=in_ddp, cpu=cpu)
        note(**{name: "trained"})
    off = [
        Run(folder / "in-ddp" / n).farthest(Run(folder / "alone" / n)) for n in ("plain", "tokens")
    ]
    note(in_ddp_differs_by=off)
    assert max(off) < 1e-6
    failed = command(
        *(*TORCHRUN, RECIPES / "trouble.py", "what=raise", "at_step=2", "epochs=3"),
        *("--run-dir", "failed"),
        cwd=folder,
        env={"CUDA_VISIBLE_DEVICES": ""} if cpu else {},
        timeout_s=40,
    )
    told = "the third wheel came off" in failed.stderr
    note(exception_on_a_rank=f"exit code {failed.returncode}, told: {told}")
    assert failed.returncode == 1
    assert told


def on_one_rank(found: Path, where: str) -> None:
    """Use every collective there is; runs under torchrun."""
    context = Context(cpu=where == "cpu")
    facts: dict[str, object] = {"backend": dist.get_backend(), "device": str(context.device)}
    total = context.reduce(torch.full((3,), 1 / 3, dtype=torch.float64, device=context.device))
    facts["all_reduce_float64"] = total.tolist() == [1 / 3] * 3
    facts["gather"] = context.gather({"rank": context.rank}) == [{"rank": 0}]
    facts["agree"] = [context.agree(False), context.agree(True)]
    try:
        context.local_first(lambda: 1 / 0)
    except (ZeroDivisionError, PeerFailed) as error:
        facts["local_first"] = type(error).__name__
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model.register_buffer("strided", torch.arange(6.0).view(2, 3).t())
    wrapped = context.wrap(model)
    facts["in_ddp"] = isinstance(wrapped, DistributedDataParallel)
    context.share_buffers(model)
    facts["strided_buffer"] = model.get_buffer("strided").tolist() == [[0, 3], [1, 4], [2, 5]]
    wrapped(torch.ones(2, 1, 4, 4, device=context.device)).sum().backward()
    facts["gradients"] = all(p.grad is not None for p in model.parameters())
    facts["interface"] = os.environ.get("NCCL_SOCKET_IFNAME")
    del wrapped
    context.close()
    facts["closed"] = not dist.is_initialized()
    found.write_text(json.dumps(facts))
    assert facts["all_reduce_float64"]
    assert facts["in_ddp"]
    assert facts["gradients"]
    assert facts["backend"] == ("gloo" if where == "cpu" else "nccl")


if __name__ == "__main__":
    on_one_rank(Path(sys.argv[1]), sys.argv[2])
