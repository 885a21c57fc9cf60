"""DDP by hand under torchrun, as PyTorch's tutorials have it."""

import torch
import torch.distributed as dist
import work
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

work.timed()
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
train_set, test_set = work.torchvision_sets()
sampler: DistributedSampler[int] = DistributedSampler(train_set)
model = DistributedDataParallel(work.model())
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=work.RATE)

model.train()  # type: ignore[no-untyped-call]  # torch's own
sampler.set_epoch(0)
for number, (inputs, labels) in enumerate(
    DataLoader(train_set, work.BATCH // world, sampler=sampler)
):
    loss = loss_fn(model(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0:
        shown = loss.detach().clone()
        dist.all_reduce(shown)
        if rank == 0:
            print(f"loss: {shown.item() / world:>7f}", flush=True)

model.eval()
total = torch.zeros(2)  # right answers, images
shard: DistributedSampler[int] = DistributedSampler(test_set, shuffle=False)
with torch.no_grad():
    for inputs, labels in DataLoader(test_set, work.BATCH // world, sampler=shard):
        total[0] += (model(inputs).argmax(1) == labels).sum()
        total[1] += len(labels)
dist.all_reduce(total)
dist.destroy_process_group()
if rank == 0:
    work.report(total[0].item() / total[1].item())
