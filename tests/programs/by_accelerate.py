"""A loop as Accelerate's quick tour has it."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator()
data = TensorDataset(torch.randn(64, 10), torch.randn(64, 5))
model = nn.Linear(10, 5)
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(data, batch_size=8)
)
for inputs, targets in loader:
    optimizer.zero_grad()
    accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
    optimizer.step()
accelerator.wait_for_everyone()
print(f"world {accelerator.num_processes} rank {accelerator.process_index}, {len(loader)} batches")
accelerator.end_training()
