"""What a step does besides training: nothing waits for the device, nobody talks out of turn."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from training import PROJECT, RECIPES

from launcher.pulse import Pulse
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.train import loops
from launcher.train.prepare import prepare
from launcher.train.training import Training

# What makes the host wait for a device, or fetch from it.
WAITS = {
    *("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__"),
    *("__index__", "__array__", "__contains__", "is_nonzero", "equal", "allclose", "unique"),
}


@dataclass
class Watch(TorchFunctionMode):
    """Notes after which step something waited, or ranks talked to each other."""

    training: Training
    seen: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        reduce = self.training.context.reduce

        def watched(values: torch.Tensor) -> torch.Tensor:
            self.note("reduce")
            return reduce(values)

        self.training.context.reduce = watched  # type: ignore[method-assign]

    def note(self, what: str) -> None:
        self.seen.append((self.training.progress.step, what))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS:
            self.note(name)
        return func(*args, **(kwargs or {}))


def made(path: Path, **values: object) -> Training:
    recipe = configure(load(find(str(path))), path.stem, values)
    training = prepare(recipe, Context(cpu=True), StopRequest())
    training.pulse = Pulse(1000)
    return training


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [{}, {"clip_norm": 1.0}, {"ema_decay": 0.9}, {"fused_optimizer": True}]
)
def test_nothing_waits_and_nobody_talks_between_reports(values: dict[str, object]) -> None:
    training = made(
        PROJECT / "recipes" / "digits.py", batch_size=1, log_every=100, micro_batch_size=1, **values
    )
    training.most_steps = 1000
    with Watch(training) as watch:
        loops.train_loop(training, None)
    settled = [(step, what) for step, what in watch.seen if 600 < step < 1000]  # then it tests
    assert {step for step, _ in settled} == {700, 800, 900}
    assert [what for _, what in settled].count("reduce") == 3


def test_the_watch_sees_a_recipe_that_waits() -> None:
    training = made(RECIPES / "curve.py", epochs=1, log_every=1000, samples=100)
    with Watch(training) as watch:
        inner = training.recipe.train_step

        def waits(*given: Any) -> Any:
            sums = inner(*given)
            sums.loss.item()
            return sums

        object.__setattr__(training.recipe, "train_step", waits)
        loops.train_loop(training, None)
    assert {step for step, what in watch.seen if what == "item"} == {0, 1, 2}  # and in the test


@pytest.mark.floors
def test_gradients_of_a_few_rows_are_measured_and_clipped_as_whole_ones_are() -> None:
    words = {"dtype": "float64", "epochs": 1, "clip_norm": 0.1}
    whole, sparse = (made(RECIPES / "tokens.py", sparse=few, **words) for few in (False, True))
    for training in (whole, sparse):
        loops.train_loop(training, None)
    norms = [training.measured.gradient_norm for training in (whole, sparse)]
    torch.testing.assert_close(*norms)
    for mine, other in zip(sparse.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_steps_of_milliseconds_exchange_nothing_between_reports() -> None:
    pulse = Pulse()
    exchanges = 0
    for step in range(1, 2001):
        due = pulse.due()
        if due or step % 100 == 0:
            exchanges += due and step > 200
            pulse.beat(0.001 * (pulse._steps_since))
    assert exchanges == 0


def test_steps_of_a_second_exchange_every_time() -> None:
    pulse = Pulse()
    for _ in range(20):
        assert pulse.due()
        pulse.beat(1.0)


def test_a_test_after_fast_steps_hears_of_a_stop_soon() -> None:
    pulse = Pulse()
    for _ in range(1000):
        if pulse.due():
            pulse.beat(0.001 * pulse._steps_since)
    pulse.start()
    assert pulse.due()
    pulse.beat(0.5)  # a test batch
    assert [pulse.due() for _ in range(2)] == [False, True]


def test_a_report_by_the_clock_is_planned_from_the_exchanges_of_all_ranks() -> None:
    pulse = Pulse()
    reports = []
    for step in range(1, 101):
        report = pulse.reaches(3.0)
        if pulse.due():
            pulse.beat(0.25 * pulse._steps_since)
            if report:
                pulse.reported()
                reports.append(step)
    steps = [after - before for before, after in pairwise(reports)]
    assert len(steps) >= 6
    assert set(steps) <= {12, 13, 14, 15, 16}  # exchanges are some four steps apart
    assert reports[0] <= 16


def test_a_report_by_the_clock_comes_when_there_is_no_room_for_more_losses() -> None:
    training = made(RECIPES / "curve.py", epochs=1, samples=997, log_every=7)
    training.log_s = 1e9
    assert [training.reports_after(step) for step in range(7)] == [False] * 7
    training.sums._step = 6
    assert training.reports_after(7)
