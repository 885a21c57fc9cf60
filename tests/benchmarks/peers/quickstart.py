"""The PyTorch quickstart as its tutorial has it: one process, an image at a time."""

import torch
import work
from torch import nn
from torch.utils.data import DataLoader

work.timed()
torch.manual_seed(0)
train, test = work.torchvision_sets()
model = work.model()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=work.RATE)

model.train()
for number, (inputs, labels) in enumerate(DataLoader(train, work.BATCH, shuffle=True)):
    loss = loss_fn(model(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0:
        print(f"loss: {loss.item():>7f}", flush=True)

model.eval()
correct = 0.0
with torch.no_grad():
    for inputs, labels in DataLoader(test, work.BATCH):
        correct += (model(inputs).argmax(1) == labels).float().sum().item()
work.report(correct / len(test))
