"""HF's Trainer, as its guide has it, with its own checkpoints."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments


class Squares(Dataset[dict[str, torch.Tensor]]):
    """x and its square."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([index / 64])
        return {"x": x, "labels": x**2}


class Model(nn.Module):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        guess = self.line(x)
        return {"loss": nn.functional.mse_loss(guess, labels), "logits": guess}


if __name__ == "__main__":
    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]  # as the guide has it
    [arguments] = parser.parse_args_into_dataclasses()
    trainer = Trainer(model=Model(), args=arguments, train_dataset=Squares())
    last = any(Path(arguments.output_dir).glob("checkpoint-*"))
    done = trainer.train(resume_from_checkpoint=last)
    print(f"world {arguments.world_size} rank {arguments.process_index}, step {done.global_step}")
