"""What a loss is a mean over, and whether its shapes fit: right, or refused in words."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it
from torch.utils.data import Dataset

from launcher import ArrayDataset, Recipe, StepSums
from launcher.errors import LauncherError, RecipeError, TrainingFailed
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.train.loops import train_loop
from launcher.train.prepare import prepare


class Own(nn.Module):
    """A loss that a user has written around torch's."""

    def __init__(self, mean: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 2 * self.mean(outputs, labels)


class Listed(Dataset[Any]):
    """An ordinary dataset."""

    def __init__(self, *arrays: Tensor) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(array[index] for array in self.arrays)


def labels(*others: tuple[int, int]) -> Tensor:
    y = torch.arange(24) % 3
    for place, label in others:
        y[place] = label
    return y


X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Given(Recipe):
    """Everything is given."""

    batch_size: int = 6
    log_every: int = 2
    num_workers: int | None = 0
    outputs: int = 3
    train: Any = field(default_factory=lambda: ArrayDataset(X, labels()))
    tests: Any = None
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    def model(self) -> nn.Module:
        return nn.Linear(4, self.outputs)

    def train_data(self) -> Any:
        return self.train

    def test_data(self) -> Any:
        return self.tests or self.train

    def loss(self) -> nn.Module:
        return self.criterion

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


class Doubled(Given):
    """A `train_step` that calls torch's function itself, as its test step does not."""

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        return StepSums(F.mse_loss(model(x), y, reduction="sum"), len(y))


@pytest.fixture(autouse=True)
def _warnings_as_in_a_run() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as recipes like to
        yield


def run(recipe: Recipe) -> None:
    training = prepare(recipe, Context(cpu=True), StopRequest())
    train_loop(training, None)  # and a test at its end


ONE = ArrayDataset(X, X[:, 0])
REGRESSION: dict[str, Any] = {"outputs": 1, "train": ONE}


@pytest.mark.parametrize(
    "recipe",
    [
        *(
            Given(criterion=loss, **REGRESSION)
            for loss in (
                *(nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()),
                *(nn.PoissonNLLLoss(), nn.SoftMarginLoss(), Own(F.mse_loss)),
            )
        ),
        Given(outputs=2, train=ArrayDataset(X, X[:, :1]), criterion=nn.MSELoss()),
        Given(outputs=1, train=ArrayDataset(X, X[:, :1]), tests=ONE, criterion=nn.MSELoss()),
        Doubled(**REGRESSION),
    ],
    ids=lambda recipe: f"{type(recipe).__name__}-{type(recipe.criterion).__name__}",
)
def test_outputs_are_not_compared_with_labels_of_other_samples(recipe: Recipe) -> None:
    words = r"outputs of shape \(6, [12]\) and labels of shape \((6|24),|\(24, 1\) and labels"
    with pytest.raises(RecipeError, match=words):
        run(recipe)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("batch_size", [6, 23, 1])
def test_shapes_that_mean_the_same_are_taken(batch_size: int) -> None:
    squeezed = Own(lambda outputs, y: F.mse_loss(outputs.squeeze(), y))  # (): a batch of one
    run(Given(batch_size=batch_size, criterion=squeezed, **REGRESSION))


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (Own(nn.CrossEntropyLoss(ignore_index=2)), "leaves out labels of 2 somewhere inside"),
        (Own(lambda o, y: F.cross_entropy(o, y, ignore_index=2)), "leaves out labels of 2"),
        (Own(nn.NLLLoss(ignore_index=0)), "leaves out labels of 0"),
        (Own(nn.CrossEntropyLoss(torch.ones(3))), "is weighted inside"),
        (Own(lambda o, y: F.nll_loss(o, y, weight=torch.ones(3))), "is weighted inside"),
        (nn.NLLLoss(weight=torch.ones(3)), "weighted by class"),
        (nn.NLLLoss(reduction="sum"), "reduction `sum`"),
    ],
)
def test_a_mean_over_something_else_is_refused(criterion: nn.Module, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        run(Given(criterion=criterion))
    assert "StepSums" in str(caught.value.hint)


def own_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, ignore_index=2, reduction="none").mean()


def test_a_mean_over_all_samples_is_taken_whatever_is_in_it() -> None:
    run(Given(criterion=Own(own_mean)))
    run(Given(criterion=Own(lambda o, y: F.cross_entropy(o, y, reduction="sum") / len(y))))


LATE = labels((23, -100))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), Own(nn.NLLLoss())])
@pytest.mark.parametrize("kind", [ArrayDataset, Listed])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_labels_that_torch_leaves_out_by_itself_end_the_run_at_a_report(
    kind: Any, criterion: nn.Module, workers: int
) -> None:
    everywhere = kind(X, labels(*((place, -100) for place in range(0, 24, 2))))
    for data, words in (
        ({"train": everywhere}, "3 labels are -100, seen after step 1"),
        ({"tests": kind(X, LATE)}, "1 labels are -100, seen after step 4"),
    ):
        recipe = Given(criterion=criterion, num_workers=workers, **{"tests": None, **data})
        with pytest.raises(LauncherError, match=words) as caught:
            run(recipe)
        assert type(caught.value) is (RecipeError if "train" in data else TrainingFailed)
        assert "ignore_index=255" in str(caught.value.hint)


def test_a_shard_without_labels_that_count_is_no_nan() -> None:
    with pytest.raises(RecipeError, match="labels are -100"):
        run(Given(train=ArrayDataset(X, torch.full((24,), -100))))


@pytest.mark.parametrize(
    "recipe",
    [
        Given(criterion=nn.CrossEntropyLoss(ignore_index=255), train=Listed(X, LATE * 0 + 255)),
        Given(criterion=Own(lambda o, y: (o[:, 0] - y).abs().mean()), train=Listed(X, LATE)),
        Doubled(outputs=1, train=ArrayDataset(X, X[:, :1])),
    ],
)
def test_a_label_of_minus_100_may_mean_something_else(recipe: Recipe) -> None:
    run(recipe)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"x": X[0], "y": 1}] * 24, "a batch is a dict of x, y"),
        (ArrayDataset(X), "a batch is a tuple of 1"),
        (ArrayDataset(X, X, labels()), "a batch is a tuple of 3"),
        ([X[:2]] * 24, "a batch is a Tensor"),
    ],
)
def test_a_batch_that_is_no_pair_is_told_with_the_way_out(data: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        run(Given(train=data))
    assert "write `train_step(" in str(caught.value.hint)
