"""As torch's tutorial has it, for torchrun."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
local_rank = int(os.environ["LOCAL_RANK"])
model = DistributedDataParallel(nn.Linear(10, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
for _ in range(3):
    optimizer.zero_grad()
    outputs = model(torch.randn(20, 10))
    nn.functional.mse_loss(outputs, torch.randn(20, 5)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
weights = [torch.zeros(5, 10) for _ in range(dist.get_world_size())]
dist.all_gather(weights, model.module.weight.data)
assert all(torch.equal(weights[0], one) for one in weights)
print(f"world {dist.get_world_size()} rank {dist.get_rank()} local {local_rank}")
dist.destroy_process_group()
