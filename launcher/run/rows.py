"""The rows of metrics.jsonl: the fields that each may have, and the metrics of a recipe."""

import math
from collections.abc import Mapping
from typing import Any

# What a row has of its own; all else in it are numbers that the recipe has given a name.
FIELDS = (
    *("split", "epoch", "step", "samples", "loss", "accuracy", "epochs", "time"),
    *(
        "learning_rate",
        "learning_rates",
        "gradient_norm",
        "samples_per_second",
        "step_time",
        "data_wait",
    ),
    *("rank_time_median", "rank_time_slowest", "slowest_rank", "rank_time_of"),
    *("gpu_memory", "steps_in_all", "eta_seconds", "tflops", "mfu"),
    "line",  # of a script's rows, which may have several of a step: its number, from 0
)
# No metric has one of these names: "correct" is a field of result.json.
RESERVED = {*FIELDS, "correct"}


def metrics_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a recipe in a row, by name."""
    return {name: value for name, value in row.items() if name not in FIELDS}


def told_of_test(test: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the numbers of a test as result.json and checkpoints have them: `test_loss`, …

    Null is what a recipe does not have, and what is no finite number: JSON has none.
    """
    all_have = dict.fromkeys(("loss", "accuracy", "correct", "samples"))
    return {f"test_{name}": finite(value) for name, value in (all_have | dict(test or {})).items()}


def finite(value: Any) -> Any:
    """Return a value, None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
