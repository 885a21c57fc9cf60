"""One layer of a transformer: the bias of its keys has a gradient of rounding alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, load_digits, main


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True
        )
        self.out = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, (batch, 10), of images, (batch, 8, 8)."""
        scores: Tensor = self.out(self.layer(self.embed(images)).mean(1))
        return scores


@dataclass(frozen=True)
class Attention(Recipe):
    """Digits, with attention between their rows, by AdamW."""

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3

    def model(self) -> nn.Module:
        return Rows()

    def train_data(self) -> ArrayDataset:
        return load_digits(train=True, transform=scaled)

    def test_data(self) -> ArrayDataset:
        return load_digits(train=False, transform=scaled)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate)


def scaled(images: Tensor) -> Tensor:
    """Scale a batch of images, uint8 (batch, 8, 8), to 0 … 1."""
    return images.float() / 16


if __name__ == "__main__":
    main(Attention)
