"""Train one recipe with any number of processes, with the same numbers.

What a recipe needs is importable from here. Names that need torch are loaded when first used,
so that the launcher side never imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from launcher.recipe import Recipe, StepSums

if TYPE_CHECKING:
    from launcher.context import unwrapped
    from launcher.data import ArrayDataset, SampleRandom, load_digits
    from launcher.script import main

__all__ = ["ArrayDataset", "Recipe", "SampleRandom", "StepSums", "load_digits", "main", "unwrapped"]
__version__ = "0.1.0"

_NEEDS_TORCH = {
    "ArrayDataset": "launcher.data",
    "SampleRandom": "launcher.data",
    "load_digits": "launcher.data",
    "main": "launcher.script",
    "unwrapped": "launcher.context",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module `launcher` has no attribute `{name}`")
