"""Which test is the best: by the metric that a recipe's `best_by` names. Never imports torch."""

from collections.abc import Mapping
from typing import Any

from launcher.run.rows import finite


def name_of(best_by: str | None, test: Mapping[str, Any]) -> str:
    """Return the name of the metric that counts: accuracy where there is one, unless said."""
    if best_by:
        return best_by.removeprefix("-")
    return "loss" if test.get("accuracy") is None else "accuracy"


def larger_is_better(best_by: str | None, test: Mapping[str, Any]) -> bool:
    """Whether more of that metric is better: not of a loss, nor of what is named with a minus."""
    return not (best_by or "").startswith("-") and name_of(best_by, test) != "loss"


def score(test: Mapping[str, Any], best_by: str | None) -> float | None:
    """Return how good a test was, larger is better; None where it has no such number."""
    value = test.get(name_of(best_by, test))
    if isinstance(value, bool) or not isinstance(value, int | float) or finite(value) is None:
        return None
    return float(value if larger_is_better(best_by, test) else -value)


def in_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test that a checkpoint, or a result.json, tells of."""
    start = "test_"
    return {name.removeprefix(start): v for name, v in facts.items() if name.startswith(start)}
