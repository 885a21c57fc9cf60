"""Replayed passes give what the passes give; a stand-in replays where there is no GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.errors import RecipeError
from launcher.model.graphs import Graphs, Passes
from launcher.recipe.base import StepSums


class Recorder:
    """Stands in for a CUDA graph: writes where it wrote while recording, from the same inputs."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.recorded = self.replayed = 0

    def record(self, passes: Passes, batch: Any) -> tuple[Callable[[], None], StepSums]:
        self.recorded += 1
        assert all(p.grad is None for p in self.parameters)
        weights = [p.detach().clone() for p in self.parameters]
        sums = passes(batch)  # a graph computes nothing yet
        gradients = [p.grad for p in self.parameters]
        for gradient in gradients:
            assert gradient is not None
            gradient.fill_(float("nan"))
        assert all(torch.equal(p, w) for p, w in zip(self.parameters, weights, strict=True))

        loss, correct = sums.loss.detach(), sums.correct  # a graph keeps memory and no history

        def replay() -> None:
            self.replayed += 1
            for parameter in self.parameters:
                parameter.grad = None
            again = passes(batch)
            loss.copy_(again.loss.detach())
            if correct is not None and again.correct is not None:
                correct.copy_(again.correct)
            for gradient, parameter in zip(gradients, self.parameters, strict=True):
                assert gradient is not None
                assert parameter.grad is not None
                gradient.copy_(parameter.grad)

        return replay, sums


def learn(graphs: Callable[[list[nn.Parameter], Passes], Callable[[Any], StepSums]]) -> Any:
    """Train on batches of two shapes; returns the weight, and the sums of each step, read late."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.9)

    def passes(batch: tuple[Tensor, str]) -> StepSums:
        x, _ = batch
        loss = ((x @ weight - 1) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return StepSums(loss, len(x), (x @ weight > 1).sum(), scale=len(x))

    step = graphs([weight], passes)
    generator = torch.Generator().manual_seed(0)
    kept = []
    for number in range(12):
        size = 2 if number in (2, 9) else 4
        batch = torch.rand(size, 3, generator=generator, dtype=torch.float64), "kind"
        kept.append(step(batch))
        optimizer.step()
        optimizer.zero_grad()
    right = [int(sums.correct) for sums in kept if sums.correct is not None]
    return weight.tolist(), [(float(sums.loss.detach()), sums.count) for sums in kept], right


def test_replayed_steps_are_those_of_a_loop_without_a_graph() -> None:
    made: list[Recorder] = []

    def replayed(parameters: list[nn.Parameter], passes: Passes) -> Callable[[Any], StepSums]:
        made.append(Recorder(parameters))
        graphs = Graphs(parameters, made[0].record)
        return lambda batch: graphs.run(passes, batch, 1.0)

    assert learn(replayed) == learn(lambda _, passes: passes)
    # Steps 3, 4 and 5 warm up; 9 has another shape; all others from 6 on are replayed.
    assert (made[0].recorded, made[0].replayed) == (1, 5)


def test_nothing_is_left_of_the_history_of_a_recording() -> None:
    weight = nn.Parameter(torch.ones(3))
    graphs = Graphs([weight], Recorder([weight]).record)

    def passes(batch: Tensor) -> StepSums:
        loss = (batch * weight).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        _gradient_of(weight).metadata["seen"] = True
        return StepSums(loss, 1)

    for _ in range(5):
        assert not graphs.run(passes, torch.ones(3)).loss.requires_grad or not graphs._replay
        weight.grad = None
    # Passes on another stream would meet the node that was made while recording.
    assert "seen" not in _gradient_of(weight).metadata


def _gradient_of(weight: nn.Parameter) -> Any:
    """The node that adds up a parameter's gradient: one as long as anything needs it."""
    history = weight.expand_as(weight).grad_fn
    assert history
    return history.next_functions[0][0]


def test_a_constant_that_changes_is_not_replayed_with_the_old_one() -> None:
    weight = nn.Parameter(torch.ones(()))
    graphs = Graphs([weight], Recorder([weight]).record)

    def passes(scale: float) -> Passes:
        def run(batch: Tensor) -> StepSums:
            loss = (batch * weight).sum() * scale
            loss.backward()  # type: ignore[no-untyped-call]
            return StepSums(loss, 1)

        return run

    for scale in (2.0, 2.0, 2.0, 2.0, 3.0, 2.0):
        sums = graphs.run(passes(scale), torch.ones(1), scale)
        assert float(sums.loss.detach()) == scale
        assert weight.grad is not None
        assert float(weight.grad) == scale
        weight.grad = None


def test_passes_that_cannot_be_recorded_are_told_with_the_way_out() -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs([], refuse)
    for _ in range(3):
        graphs.run(lambda _: StepSums(torch.ones(()), 1), torch.ones(1))
    with pytest.raises(RecipeError, match="cannot be recorded for cuda_graphs: operation") as told:
        graphs.run(lambda _: StepSums(torch.ones(()), 1), torch.ones(1))
    assert ".item()" in str(told.value.hint)


def test_sums_that_a_recipe_names_are_those_of_each_replay() -> None:
    total = torch.zeros(2)

    def passes(batch: Tensor) -> StepSums:
        total.copy_(batch.sum(0))  # where a recording has written
        return StepSums(batch.sum(), len(batch), sums={"total": total})

    def record(passes: Passes, batch: Any) -> tuple[Callable[[], None], StepSums]:
        def replay() -> None:
            passes(batch)

        return replay, passes(batch)

    graphs = Graphs([], record)
    batches = [torch.full((3, 2), float(number)) for number in range(6)]
    sums = [graphs.run(passes, batch).sums["total"].clone() for batch in batches[:3]]
    sums += [graphs.run(passes, batch).sums["total"] for batch in batches[3:]]
    assert [one.tolist() for one in sums] == [[3.0 * number] * 2 for number in range(6)]


def test_a_sum_that_a_replay_would_not_make_anew_is_refused() -> None:
    def record(passes: Passes, batch: Any) -> tuple[Callable[[], None], StepSums]:
        return lambda: None, passes(batch)

    def passes(batch: Tensor) -> StepSums:
        return StepSums(batch.sum(), 1, sums={"n": torch.zeros((), device="meta")})

    graphs = Graphs([], record)
    for _ in range(3):
        graphs.run(passes, torch.ones(2))
    with pytest.raises(RecipeError, match="the sum `n` is made on the host"):
        graphs.run(passes, torch.ones(2))
