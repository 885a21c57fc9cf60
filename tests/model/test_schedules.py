"""Schedules say what they count; what does not is refused with words for it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from launcher import Schedule, Steps, warmup_cosine
from launcher.errors import RecipeError
from launcher.model.schedules import asked_for

STEPS = Steps(100, per_epoch=10)
BATCH: Any = "batch"


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.ones(1))], lr=0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o, _: StepLR(o, 1), r"bare StepLR.*\n.*every=\"step\".*every=\"epoch\""),
        (lambda o, _: [StepLR(o, 1)], "bare StepLR"),
        (lambda o: StepLR(o, 1), "bare StepLR"),  # the signature of old
        (lambda o, _: ReduceLROnPlateau(o), r"bare ReduceLROnPlateau.*\n.*every=\"test\""),
        (lambda o, _: Schedule(ReduceLROnPlateau(o), every="epoch"), "looks at tests"),
        (lambda o, _: Schedule(StepLR(o, 1), every=BATCH), "`every` of a Schedule is 'batch'"),
        (lambda o, _: Schedule(o, every="step"), "a Schedule of SGD"),
        (lambda *_: 3, "returned int, not a launcher.Schedule"),
    ],
)
def test_what_does_not_say_when_it_is_stepped_is_refused(make: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        asked_for(make, optimizer(), STEPS)


def test_a_scheduler_may_take_no_steps_or_be_none() -> None:
    assert list(asked_for(lambda o: Schedule(StepLR(o, 1), every="epoch"), optimizer(), STEPS))
    assert not list(asked_for(lambda _: None, optimizer(), STEPS))
    several = asked_for(lambda o, s: {"a": warmup_cosine(o, s), "b": None}, optimizer(), STEPS)
    assert len(list(several)) == 1


def test_the_number_of_steps_is_a_number_and_no_state() -> None:
    made = asked_for(
        lambda o, s: Schedule(OneCycleLR(o, 1.0, total_steps=s), every="step"), optimizer(), STEPS
    )
    assert STEPS.per_epoch == 10
    assert STEPS / 2 == 50
    assert type(made.state()[0]["total_steps"]) is int
    made.refuse_too_short(100, 10)
    with pytest.raises(RecipeError, match="OneCycleLR of this run ends after 100 steps, and"):
        made.refuse_too_short(101, 10)


@pytest.mark.parametrize(("better", "mode"), [("more", "min"), ("less", "max")])
def test_a_plateau_that_takes_better_for_worse_is_refused(better: str, mode: Any) -> None:
    made = asked_for(
        lambda o, _: Schedule(ReduceLROnPlateau(o, mode=mode), every="test"), optimizer(), STEPS
    )
    other = {"min": "max", "max": "min"}[mode]
    with pytest.raises(RecipeError, match=f'mode="{mode}".*{better} is better\n.*mode="{other}"'):
        made.refuse_other_mode("f1", larger_is_better=better == "more")
    made.refuse_other_mode("f1", larger_is_better=better == "less")


def test_a_schedule_of_an_optimizer_that_is_not_stepped_is_refused() -> None:
    mine = optimizer()
    made = asked_for(lambda _, s: warmup_cosine(optimizer(), s), mine, STEPS)
    with pytest.raises(RecipeError, match="an optimizer that `optimizer` has not returned"):
        made.refuse_others([mine])


def test_warm_up_and_cosine_have_the_rates_they_say() -> None:
    mine = optimizer()
    made = asked_for(lambda o, s: warmup_cosine(o, s, warmup=0.1), mine, STEPS)
    seen = []
    for _ in range(100):
        seen.append(mine.param_groups[0]["lr"])
        mine.step()
        made.step("step")
    assert seen[:10] == pytest.approx([0.05 * n for n in range(1, 11)])
    assert seen[10] == pytest.approx(0.5)
    assert seen[55] == pytest.approx(0.25)
    assert all(before > after for before, after in pairwise(seen[10:]))
    assert mine.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(RecipeError, match="`warmup` is a share"):
        warmup_cosine(mine, STEPS, warmup=5)
