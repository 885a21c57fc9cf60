"""Lightning as its documentation has it; needs `uv run --with lightning`."""

import sys
from typing import Any

import lightning
import torch
import work
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = work.model()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        self.log("loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        right = (self.net(inputs).argmax(1) == labels).float().mean()
        self.log("accuracy", right, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=work.RATE)


world = int(sys.argv[1])
work.timed()
lightning.seed_everything(0)
train, test = work.torchvision_sets()
trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=world, log_every_n_steps=100, logger=False,
    enable_checkpointing=False, enable_progress_bar=False,
)  # fmt: skip
model = Classifier()
trainer.fit(model, DataLoader(train, work.BATCH // world, shuffle=True))
[result] = trainer.test(model, DataLoader(test, work.BATCH // world), verbose=False)
if trainer.is_global_zero:
    work.report(result["accuracy"])
