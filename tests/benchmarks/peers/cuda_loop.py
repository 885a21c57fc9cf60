"""The limit on a GPU: images in one tensor on the device, no loader, no framework.

`SPEED_OPTIONS` may name `bf16`, `channels_last`, `compile` and `fused`, with commas.
"""

import os

import torch
import work
from torch import nn

work.timed()
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
images, labels = (array.to(device) for array in work.in_memory("train", work.TRAIN))
asked = os.environ.get("SPEED_OPTIONS", "").split(",")
model = work.model().to(device)
if "channels_last" in asked:
    model.to(memory_format=torch.channels_last)
if "compile" in asked:
    model.compile()
optimizer = torch.optim.SGD(model.parameters(), lr=work.RATE, fused="fused" in asked or None)
loss_fn = nn.CrossEntropyLoss()

order = torch.randperm(len(images)).to(device)
for number, batch in enumerate(torch.split(order, work.BATCH), start=1):
    with torch.autocast(device, torch.bfloat16, enabled="bf16" in asked):
        loss = loss_fn(model(images[batch].float() / 255), labels[batch])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0:
        print(f"loss: {loss.item():>7f}", flush=True)

model.eval()
images, labels = (array.to(device) for array in work.in_memory("t10k", work.TEST))
correct = torch.zeros((), device=device)
with torch.no_grad():
    for batch in torch.split(torch.arange(len(images), device=device), 1000):
        correct += (model(images[batch].float() / 255).argmax(1) == labels[batch]).sum()
work.report(correct.item() / len(images))
