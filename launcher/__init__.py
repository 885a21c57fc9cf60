"""Train one recipe with any number of processes, with the same numbers.

What a recipe needs is importable from here, and loaded when first used: the launcher side never
imports torch, and `launcher --help` next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.attached.attached import attach
    from launcher.attached.shards import shards
    from launcher.child.started import start
    from launcher.child.submitted import submit
    from launcher.data.arrays import ArrayDataset, load_digits
    from launcher.data.computed import Mixture
    from launcher.data.files import stream_of
    from launcher.data.loader import Loader
    from launcher.data.randomness import BatchRandom, SampleRandom, sample_seed
    from launcher.data.sampler import ShardSampler
    from launcher.data.streams import Stream
    from launcher.model.schedules import Schedule, Steps, warmup_cosine
    from launcher.ranks.context import unwrapped
    from launcher.ranks.gathering import gather
    from launcher.recipe.base import Recipe, StepSums
    from launcher.recipe.totals import Totals
    from launcher.train.script import main

__all__ = [
    "ArrayDataset",
    "BatchRandom",
    "Loader",
    "Mixture",
    "Recipe",
    "SampleRandom",
    "Schedule",
    "ShardSampler",
    "StepSums",
    "Steps",
    "Stream",
    "Totals",
    "attach",
    "gather",
    "load_digits",
    "main",
    "sample_seed",
    "shards",
    "start",
    "stream_of",
    "submit",
    "unwrapped",
    "warmup_cosine",
]
__version__ = "0.1.0"

_HOMES = {
    "ArrayDataset": "launcher.data.arrays",
    "BatchRandom": "launcher.data.randomness",
    "Loader": "launcher.data.loader",
    "Mixture": "launcher.data.computed",
    "Recipe": "launcher.recipe.base",
    "SampleRandom": "launcher.data.randomness",
    "Schedule": "launcher.model.schedules",
    "ShardSampler": "launcher.data.sampler",
    "StepSums": "launcher.recipe.base",
    "Steps": "launcher.model.schedules",
    "Stream": "launcher.data.streams",
    "Totals": "launcher.recipe.totals",
    "attach": "launcher.attached.attached",
    "gather": "launcher.ranks.gathering",
    "load_digits": "launcher.data.arrays",
    "main": "launcher.train.script",
    "sample_seed": "launcher.data.randomness",
    "shards": "launcher.attached.shards",
    "start": "launcher.child.started",
    "stream_of": "launcher.data.files",
    "submit": "launcher.child.submitted",
    "unwrapped": "launcher.ranks.context",
    "warmup_cosine": "launcher.model.schedules",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `launcher` has no attribute `{name}`")
