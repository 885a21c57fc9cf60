"""A script that trains an MLP by DDP, and whose processes send themselves signals as told.

    mlp.py STEPS [START:SIGNAL:RANK:STEP]...

At that step of that start of the run, that rank sends itself the signal. A step takes PAUSE_S
seconds more where the environment says so.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import launcher

torch.manual_seed(0)
net: Any = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
x = torch.arange(40.0).view(10, 4) / 40
data = launcher.ArrayDataset(x, torch.arange(10) % 3)


def save(folder: Path) -> None:
    (folder / f"rank-{run.rank}").mkdir()
    (folder / f"rank-{run.rank}" / "own.txt").write_text(str(run.rank))
    if run.rank == 0:
        torch.save([net.state_dict(), optimizer.state_dict()], folder / "state.pt")


def load(folder: Path) -> None:
    model, optimized = torch.load(folder / "state.pt", weights_only=True)
    net.load_state_dict(model)
    optimizer.load_state_dict(optimized)


def main(steps: int, events: list[list[str]]) -> None:
    shards = launcher.shards(data, 4, seed=1)
    model = net
    if run.world_size > 1:
        model = DistributedDataParallel(net, find_unused_parameters=True)  # keeps bits at 3, too
    for step in run.steps(steps):
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        share = shards[step]
        inputs, labels = share.batch
        loss: Any = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        (loss * share.weight).backward()
        optimizer.step()
        run.log(step, weight=net[0].weight.sum().detach(), lr=0.01)
        for start, name, rank, at in events:
            if [start, rank, at] == [
                os.environ.get("LAUNCHER_START", "1"),
                str(run.rank),
                str(step),
            ]:
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
    if run.rank == 0:
        state = b"".join(weight.numpy().tobytes() for weight in net.state_dict().values())
        (run.dir / "final.txt").write_text(hashlib.sha256(state).hexdigest())


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    run = launcher.attach(save, load, dir=os.environ.get("DIR"), checkpoint_every=3)
    main(int(sys.argv[1]), [event.split(":") for event in sys.argv[2:]])
    if "RANK" in os.environ:
        dist.destroy_process_group()
