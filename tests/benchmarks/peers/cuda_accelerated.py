"""Accelerate on a GPU as its documentation has it: prepare everything, gather for metrics."""

import torch
import work
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

work.timed()
accelerator = Accelerator()
torch.manual_seed(0)
train = TensorDataset(*work.in_memory("train", work.TRAIN))
test = TensorDataset(*work.in_memory("t10k", work.TEST))
model = work.model()
optimizer = torch.optim.SGD(model.parameters(), lr=work.RATE)
model, optimizer, train_loader, test_loader = accelerator.prepare(
    model,
    optimizer,
    DataLoader(train, work.BATCH, shuffle=True, pin_memory=torch.cuda.is_available()),
    DataLoader(test, 1000, pin_memory=torch.cuda.is_available()),
)
loss_fn = nn.CrossEntropyLoss()

model.train()
for number, (images, labels) in enumerate(train_loader, start=1):
    loss = loss_fn(model(images.float() / 255), labels)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0:
        accelerator.print(f"loss: {accelerator.gather(loss.detach()).mean().item():>7f}")

model.eval()
correct = 0.0
with torch.no_grad():
    for images, labels in test_loader:
        guesses = model(images.float() / 255).argmax(1)
        all_guesses, all_labels = accelerator.gather_for_metrics((guesses, labels))
        correct += (all_guesses == all_labels).float().sum().item()
work.report(correct / len(test))
accelerator.end_training()
