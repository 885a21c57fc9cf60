"""Accelerate as its documentation has it: prepare everything, gather for metrics."""

import torch
import work
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

work.timed()
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
train, test = work.torchvision_sets()
model = work.model()
optimizer = torch.optim.SGD(model.parameters(), lr=work.RATE)
size = work.BATCH // accelerator.num_processes
model, optimizer, train_loader, test_loader = accelerator.prepare(
    model, optimizer, DataLoader(train, size, shuffle=True), DataLoader(test, size)
)
loss_fn = nn.CrossEntropyLoss()

model.train()
for number, (inputs, labels) in enumerate(train_loader):
    loss = loss_fn(model(inputs), labels)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    if number % 100 == 0:
        accelerator.print(f"loss: {accelerator.gather(loss.detach()).mean().item():>7f}")

model.eval()
correct = 0.0
with torch.no_grad():
    for inputs, labels in test_loader:
        guesses = model(inputs).argmax(1)
        all_guesses, all_labels = accelerator.gather_for_metrics((guesses, labels))
        correct += (all_guesses == all_labels).float().sum().item()
if accelerator.is_main_process:
    work.report(correct / len(test))
accelerator.end_training()
