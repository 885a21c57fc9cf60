"""A BERT of Hugging Face's, made from a configuration: batches are dictionaries, F1 counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

from launcher import Recipe, StepSums, Totals, main

LENGTH, VOCABULARY = 8, 20


class Sentences(Dataset[dict[str, Tensor]]):
    """Words of 1 to `LENGTH` letters, padded; those with letter 1 and letter 2 are to be found."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
        self.mask = (torch.arange(LENGTH) < lengths).long()  # (count, length)
        letters = torch.randint(1, 6, (count, LENGTH), generator=generator)
        self.letters = letters * self.mask
        self.labels = ((self.letters == 1).any(1) & (self.letters == 2).any(1)).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.letters[index],
            "attention_mask": self.mask[index],
            "labels": self.labels[index],
        }


@dataclass(frozen=True)
class Bert(Recipe):
    """A classifier of sequences."""

    epochs: int = 2
    batch_size: int = 12
    test_batch_size: int = 9
    learning_rate: float = 3e-3
    num_workers: int | None = 0
    log_every: int = 2
    samples: int = 67
    test_samples: int = 29

    def model(self) -> nn.Module:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model: nn.Module = BertForSequenceClassification(config)  # of two classes
        return model

    def train_data(self) -> Sentences:
        return Sentences(self.samples, seed=0)

    def test_data(self) -> Sentences:
        return Sentences(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        labels = batch["labels"]
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        told = outputs.logits.argmax(1)  # (batch,)
        sums = {
            "hits": (told * labels).sum(),
            "told": told.sum(),
            "true": labels.sum(),
        }
        loss, count = loss_fn(outputs.logits, labels), len(labels)
        return StepSums(loss, count, (told == labels).sum(), scale=count, sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"f1": 2 * totals["hits"] / (totals["told"] + totals["true"]).clamp(min=1)}


if __name__ == "__main__":
    main(Bert)
