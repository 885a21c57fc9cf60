"""A hyperparameter that is changed for a resume takes effect, or it is refused."""

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedules
from torch.optim.lr_scheduler import LRScheduler
from training import RECIPES, Run, launcher

from launcher.errors import RecipeError
from launcher.model.made import as_made, refuse_other_schedule, with_changes
from launcher.model.schedules import Schedule

pytestmark = pytest.mark.warm

SCHEDULED = RECIPES / "scheduled.py"
Make = Callable[[Optimizer], LRScheduler]


def resumed(
    made: Callable[..., Optimizer], now: Callable[..., Optimizer], schedule: Make | None = None
) -> dict[str, Any]:
    """The options of an optimizer after three steps and a resume with another one."""
    saved = stepped(made, schedule)
    [parameter] = weights()
    optimizer = now([parameter])
    scheduler = schedule(optimizer) if schedule else None
    described = as_made([optimizer], counted(scheduler), 20)
    refuse_other_schedule(saved["made"], described, counted(scheduler))
    groups = with_changes(saved["optimizer"]["param_groups"], saved["made"], described)
    optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.param_groups[0]


def stepped(made: Callable[..., Optimizer], schedule: Make | None) -> dict[str, Any]:
    [parameter] = weights()
    optimizer = made([parameter])
    scheduler = schedule(optimizer) if schedule else None
    described = as_made([optimizer], counted(scheduler), 20)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {"made": described, "optimizer": optimizer.state_dict()}


def counted(scheduler: LRScheduler | None) -> list[Schedule]:
    return [Schedule(scheduler, every="step")] if scheduler else []


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (SGD, {"lr": 0.1}, {"lr": 0.01}),
        (SGD, {"lr": 0.1, "momentum": 0.9}, {"momentum": 0.5}),
        (SGD, {"lr": 0.1, "weight_decay": 0}, {"weight_decay": 0.1}),
        (AdamW, {"betas": (0.9, 0.99)}, {"betas": (0.9, 0.95), "eps": 1e-6}),
        (AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.0}),
        (Adam, {"lr": torch.tensor(0.1)}, {"lr": torch.tensor(0.3)}),
        (RMSprop, {"alpha": 0.9}, {"alpha": 0.99}),
    ],
)
def test_a_changed_option_of_an_optimizer_takes_effect(
    kind: Any, before: dict[str, Any], after: dict[str, Any]
) -> None:
    group = resumed(partial(kind, **before), partial(kind, **before | after))
    assert {name: group[name] for name in after} == after


@pytest.mark.parametrize(
    ("made", "now", "words"),
    [
        (AdamW, partial(AdamW, amsgrad=True), "amsgrad was False and is True"),
        (SGD, partial(SGD, momentum=0.9), "momentum was 0 and is 0.9"),
        (partial(RMSprop, momentum=0.9), RMSprop, "momentum was 0.9 and is 0"),
        (RMSprop, partial(RMSprop, centered=True), "centered was False"),
        (Adam, AdamW, "it was Adam and is AdamW"),
    ],
)
def test_an_optimizer_that_would_remember_something_else_is_refused(
    made: Any, now: Any, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        resumed(made, now)


def test_what_a_recipe_moves_by_itself_is_no_change() -> None:
    saved = stepped(partial(SGD, lr=0.1), None)
    saved["optimizer"]["param_groups"][0]["lr"] = 0.025  # by its train_step
    now = as_made([SGD(weights(), lr=0.1, momentum=0)], [], 20)
    [group] = with_changes(saved["optimizer"]["param_groups"], saved["made"], now)
    assert group["lr"] == 0.025


def sequence(optimizer: Optimizer, *, milestone: int = 2, gamma: float = 0.5) -> LRScheduler:
    parts = [schedules.LinearLR(optimizer), schedules.StepLR(optimizer, 4, gamma)]
    return schedules.SequentialLR(optimizer, parts, [milestone])


def chain(optimizer: Optimizer, *, power: float = 1.0, length: int = 20) -> LRScheduler:
    parts = [schedules.LambdaLR(optimizer, lambda s: (1 + s) ** -power)]
    deeper = schedules.ChainedScheduler([schedules.PolynomialLR(optimizer, length)])
    return schedules.ChainedScheduler([*parts, deeper])


def cyclic(optimizer: Optimizer, slope: float) -> LRScheduler:
    shape = lambda cycle: slope**cycle  # noqa: E731
    return schedules.CyclicLR(optimizer, 0.01, 0.1, 3, scale_fn=shape, cycle_momentum=False)


def multiplied(optimizer: Optimizer, late: float) -> LRScheduler:
    return schedules.MultiplicativeLR(optimizer, lambda step: 0.9 if step < 12 else late)


TABLE: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (schedules.CosineAnnealingLR, {"T_max": 10}, {"T_max": 20}, "T_max was 10 and is 20"),
    (schedules.CosineAnnealingLR, {"T_max": 10}, {"T_max": 10, "eta_min": 0.1}, "eta_min"),
    (schedules.CosineAnnealingWarmRestarts, {"T_0": 2}, {"T_0": 3}, "T_0"),
    (schedules.StepLR, {"step_size": 2}, {"step_size": 2, "gamma": 0.3}, "gamma"),
    (schedules.MultiStepLR, {"milestones": [2, 9]}, {"milestones": [2, 8]}, "milestones"),
    (schedules.ExponentialLR, {"gamma": 0.9}, {"gamma": 0.8}, "gamma was 0.9 and is 0.8"),
    (schedules.OneCycleLR, {"max_lr": 1, "total_steps": 20}, {"max_lr": 1, "total_steps": 40}, ""),
    (schedules.OneCycleLR, {"max_lr": 1, "total_steps": 20}, {"max_lr": 2, "total_steps": 20}, ""),
    (
        schedules.LambdaLR,
        {"lr_lambda": lambda step: 1 / (1 + step)},
        {"lr_lambda": lambda step: 1 if step < 16 else 0.5},
        "lr_lambda at step 1 was",
    ),
    (
        schedules.LambdaLR,  # a warm-up that is over when ten steps are spread over a long run
        {"lr_lambda": lambda step: min(1, step / 2)},
        {"lr_lambda": lambda step: min(1, step / 3)},
        "lr_lambda at step 1 was",
    ),
    (multiplied, {"late": 0.9}, {"late": 0.5}, "lr_lambda at step 13"),
    (cyclic, {"slope": 0.9}, {"slope": 0.8}, "scale_fn at step 1 was"),
    (sequence, {}, {"milestone": 3}, "_milestones"),
    (sequence, {}, {"gamma": 0.1}, "StepLR 2.gamma was 0.5 and is 0.1"),
    (chain, {}, {"power": 2.0}, "LambdaLR 1.lr_lambda at step 1"),
    (chain, {}, {"length": 40}, "PolynomialLR 3.total_iters was 20 and is 40"),
]


@pytest.mark.parametrize(("kind", "before", "after", "words"), TABLE)
def test_another_schedule_is_refused_and_the_same_is_not(
    kind: Any, before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the ways of its own nested schedules
        saved = stepped(partial(SGD, lr=0.5, momentum=0.9), partial(kind, **before))
        for options, refused in ((before, False), (after, True)):
            optimizer = SGD(weights(), lr=0.5, momentum=0.9)
            scheduler = kind(optimizer, **options)
            now = as_made([optimizer], counted(scheduler), 40)
            with pytest.raises(RecipeError, match=words) if refused else nullcontext():
                refuse_other_schedule(saved["made"], now, counted(scheduler))


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_schedule_that_came_or_went_is_refused(before: bool, after: bool) -> None:
    made = partial(schedules.StepLR, step_size=3)
    saved = stepped(SGD, made if before else None)
    optimizer = SGD(weights())
    scheduler = counted(made(optimizer) if after else None)
    with pytest.raises(RecipeError, match=r"it was .* and is"):
        refuse_other_schedule(saved["made"], as_made([optimizer], scheduler, 20), scheduler)


def test_a_schedule_that_counts_something_else_is_refused() -> None:
    optimizer = SGD(weights())
    steps, epochs = (
        [Schedule(schedules.StepLR(optimizer, 3), every=every)] for every in ("step", "epoch")
    )
    made = as_made([optimizer], steps, 20)
    with pytest.raises(RecipeError, match="every of schedule 0 was step and is epoch"):
        refuse_other_schedule(made, as_made([optimizer], epochs, 20), epochs)


def test_the_rate_that_a_schedule_starts_from_is_a_part_of_it() -> None:
    schedule = partial(schedules.StepLR, step_size=3)
    with pytest.raises(RecipeError, match=r"base_lrs was \[0.1\] and is \[0.2\]"):
        resumed(partial(SGD, lr=0.1), partial(SGD, lr=0.2), schedule)
    group = resumed(
        partial(SGD, lr=0.1, weight_decay=0.1), partial(SGD, lr=0.1, weight_decay=0.3), schedule
    )
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.01), 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for schedule in ("none", "cosine"):
        words = ["run", SCHEDULED, f"schedule={schedule}", "--run-dir", schedule]
        assert launcher(*words, cwd=folder).returncode == 0
    return folder


@pytest.mark.slow
def test_a_changed_learning_rate_is_what_the_run_goes_on_with(run: Path) -> None:
    words = ["none", "epochs=3", "learning_rate=0.001", "momentum=0.5", "log_every=1"]
    done = launcher("resume", *words, "--allow-changes", "--nproc", "2", cwd=run)
    assert done.returncode == 0, done.stderr
    rates = [row["learning_rate"] for row in Run(run / "none").rows if row["split"] == "train"]
    assert rates[-5:] == [0.001] * 5
    assert hyperparameters(run / "none")["learning_rate"] == 0.001


@pytest.mark.slow
def test_a_refused_resume_leaves_the_run_as_it_was(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "cosine").rglob("*.json")}
    words = ["resume", "cosine", "epochs=4", "learning_rate=0.2", "--allow-changes"]
    done = launcher(*words, cwd=run)
    assert done.returncode == 2
    assert "the schedule of a run cannot be changed" in done.stderr
    for name in ("config.json", "result.json"):
        assert (run / "cosine" / name).read_bytes() == before[run / "cosine" / name]


def hyperparameters(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "config.json").read_text())["hyperparameters"])
