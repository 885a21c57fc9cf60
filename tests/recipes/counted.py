"""Sums of a recipe's own, and metrics that are made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from launcher import ArrayDataset, Recipe, StepSums, Totals, main


@dataclass(frozen=True)
class Counted(Recipe):
    """Four classes of points; nothing but what is summed by name tells how well they are told."""

    epochs: int = 2
    batch_size: int = 10
    test_batch_size: int = 7
    learning_rate: float = 0.1
    samples: int = 101
    test_samples: int = 38
    log_every: int = 4
    hidden: int = 16
    talks: Literal["never", "after_test", "test_metrics"] = "never"  # where only one may listen
    least: int = 0  # test samples that `test_metrics` needs

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 4)
        ).double()

    def train_data(self) -> ArrayDataset:
        return points(self.samples, seed=0)

    def test_data(self) -> ArrayDataset:
        return points(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        outputs: Tensor = model(x)  # (batch, 4)
        classes = one_hot(y, 4)
        matrix = classes.T @ one_hot(outputs.argmax(1), 4)  # (4, 4): true and told
        top2 = (outputs.topk(2).indices == y.unsqueeze(1)).any(1).sum()
        loss = cross_entropy(outputs, y, reduction="sum")
        return StepSums(loss, len(x), sums={"top2": top2, "confusion": matrix, "spread": x.sum(0)})

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        made, (x, y) = self.train_step(model, batch, loss_fn), batch
        parts = [row[: int(label)] for row, label in zip(x, y, strict=True)]  # 0 to 3 numbers
        return replace(made, kept={"x": x, "parts": parts, "told": model(x).argmax(1)})

    def test_metrics(self, totals: Totals, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        assert len(kept["parts"]) == totals.samples
        if totals.samples < self.least:
            raise ValueError("these are too few")
        if self.talks == "test_metrics":
            dist.all_reduce(torch.ones(1))
        values = torch.cat(kept["parts"])
        weights = torch.arange(len(values)) % 7  # the order of samples counts
        return {"median": kept["x"].median(), "weighted": (values * weights).sum()}

    def after_test(self, model: nn.Module, report: Any, folder: Path) -> None:
        assert not model.training
        assert not torch.is_grad_enabled()
        if self.talks == "after_test":
            dist.barrier()
        told = int(model(torch.ones(1, 3).double()).argmax())
        Image.new("L", (8, 8), report.step).save(folder / "picture.png")
        (folder / "told.txt").write_text(f"{report.step} {report.metrics['miou']} {told}")

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        matrix = totals["confusion"]
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return {
            "top2": totals["top2"] / totals.count,
            "miou": (matrix.diag() / union.clamp(min=1)).mean(),
            "spread": totals["spread"].sum(),
            "error": totals.loss**0.5,
        }


def points(count: int, seed: int) -> ArrayDataset:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ArrayDataset(x, (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long())


if __name__ == "__main__":
    main(Counted)
