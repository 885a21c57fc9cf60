"""The limit: images in one tensor, no loader, no framework; with DDP where there are several."""

import os

import torch
import torch.distributed as dist
import work
from torch import nn
from torch.nn.parallel import DistributedDataParallel

work.timed()
rank = int(os.environ.get("RANK", "0"))
if work.WORLD > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
images, labels = work.in_memory("train", work.TRAIN)
plain = model = work.model()
if work.WORLD > 1:
    model = DistributedDataParallel(plain)
optimizer = torch.optim.SGD(plain.parameters(), lr=work.RATE)
loss_fn = nn.CrossEntropyLoss()

order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
for number, batch in enumerate(torch.split(order, work.BATCH)):
    own = batch[rank :: work.WORLD]
    loss = loss_fn(model(images[own].float() / 255), labels[own])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0 and rank == 0:
        print(f"loss: {loss.item():>7f}", flush=True)

plain.eval()
images, labels = work.in_memory("t10k", work.TEST)
total = torch.zeros(2)  # loss, right answers
with torch.no_grad():
    for own in torch.split(torch.arange(rank, len(images), work.WORLD), 1000 // work.WORLD):
        scores = plain(images[own].float() / 255)
        total[0] += nn.functional.cross_entropy(scores, labels[own], reduction="sum")
        total[1] += (scores.argmax(1) == labels[own]).sum()
if work.WORLD > 1:
    dist.all_reduce(total)
    dist.destroy_process_group()
if rank == 0:
    work.report(total[1].item() / len(images))
