"""Lightning, as its quick start has it."""

import sys

import lightning as L  # noqa: N812  # as everybody has it
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Line(L.LightningModule):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(10, 5)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.line(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


if __name__ == "__main__":
    data = DataLoader(TensorDataset(torch.randn(64, 10), torch.randn(64, 5)), batch_size=8)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(sys.argv[1]),
        num_nodes=int(sys.argv[2]) if len(sys.argv) > 2 else 1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Line(), data)
    place = type(trainer._accelerator_connector.cluster_environment).__name__
    print(f"world {trainer.world_size} rank {trainer.global_rank} by {place}")
