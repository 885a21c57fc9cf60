"""Train one recipe with any number of processes, with the same numbers.

What a recipe needs is importable from here, and loaded when first used: the launcher side never
imports torch, and `launcher --help` next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.arrays import ArrayDataset, load_digits
    from launcher.context import unwrapped
    from launcher.randomness import SampleRandom, sample_seed
    from launcher.recipe import Recipe, StepSums
    from launcher.script import main

__all__ = [
    "ArrayDataset",
    "Recipe",
    "SampleRandom",
    "StepSums",
    "load_digits",
    "main",
    "sample_seed",
    "unwrapped",
]
__version__ = "0.1.0"

_HOMES = {
    "ArrayDataset": "launcher.arrays",
    "Recipe": "launcher.recipe",
    "SampleRandom": "launcher.randomness",
    "StepSums": "launcher.recipe",
    "load_digits": "launcher.arrays",
    "main": "launcher.script",
    "sample_seed": "launcher.randomness",
    "unwrapped": "launcher.context",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `launcher` has no attribute `{name}`")
