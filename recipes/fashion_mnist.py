"""The PyTorch quickstart: a multilayer perceptron on FashionMNIST."""

from dataclasses import dataclass

import torch
from torch import nn
from torchvision import datasets

from launcher import ArrayDataset, Recipe, main


class NeuralNetwork(nn.Module):
    """The network of the quickstart."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores, (batch, 10), of images, (batch, 1, 28, 28)."""
        x = self.flatten(x)
        logits: torch.Tensor = self.linear_relu_stack(x)
        return logits


@dataclass(frozen=True)
class FashionMNIST(Recipe):
    """The PyTorch quickstart: a multilayer perceptron on FashionMNIST."""

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    data: str = "data"  # folder of the images, downloaded to it where they are not in it

    def model(self) -> nn.Module:
        return NeuralNetwork()

    def train_data(self) -> ArrayDataset:
        return ArrayDataset.from_torchvision(
            datasets.FashionMNIST, root=self.data, train=True, transform=to_float
        )

    def test_data(self) -> ArrayDataset:
        return ArrayDataset.from_torchvision(
            datasets.FashionMNIST, root=self.data, train=False, transform=to_float
        )

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Do what ToTensor does, for a batch: uint8 (batch, 28, 28) to float (batch, 1, 28, 28)."""
    return images.unsqueeze(1).float() / 255


if __name__ == "__main__":
    main(FashionMNIST)
