"""Batch norm needs two values of each channel: shards of one sample are told before the first step.

A last batch that is shorter than the others, or a micro-batch that is left over, may be such a
shard, at the end of an epoch. Whether a channel has more values than samples (pixels) only the
first forward pass shows.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from launcher.data.sampler import ShardSampler
from launcher.errors import RecipeError


def refuse_lone_samples(model: nn.Module, train: ShardSampler, test: ShardSampler | None) -> None:
    """Have the first forward pass raise RecipeError where one to come has a value a channel only.

    Frozen statistics do not mind; those that are never kept are a batch's own in tests, too.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            _refuse_ghosts(name, train)
        elif isinstance(module, _BatchNorm):
            if module.training and train.smallest_part() == 1:
                _Look(name, module, train)
            elif module.running_mean is None and test is not None and test.smallest_part() == 1:
                _Look(name, module, test)


def refuse_parts(model: nn.Module) -> None:
    """Raise RecipeError for batch norm where memory decides how many samples come at a time."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise RecipeError(
                f"`{name}` is batch norm, whose statistics are those of a micro-batch: with "
                "`micro_batch_size=auto` the numbers would depend on the memory of the device",
                hint="give a number, or use a norm of each sample (group norm, layer norm)",
            )


class _Look:
    """Looks at the shape of what a layer gets, once."""

    def __init__(self, name: str, module: _BatchNorm, sampler: ShardSampler) -> None:
        self._name, self._sampler = name, sampler
        self._handle = module.register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._handle.remove()
        if isinstance(x := given[0], Tensor) and x.numel() == x.shape[0] * x.shape[1]:
            sampler = self._sampler
            raise RecipeError(
                f"`{self._name}` is batch norm, and a process would get a single sample for it: "
                f"{_words(sampler)}",
                hint=f"{_remedy(sampler)}another number of processes; group norm and frozen "
                "statistics (`.eval()` in `model`) take single samples",
            )


def _refuse_ghosts(name: str, sampler: ShardSampler) -> None:
    """Raise RecipeError where ranks would not take part in shared statistics alike."""
    if sampler.num_replicas > 1 and not sampler.alike():
        raise RecipeError(
            f"`{name}` shares its statistics, and not all processes would have samples for it, or "
            f"as many micro-batches: {_words(sampler)}",
            hint=f"{_remedy(sampler)}no micro_batch_size; or nn.BatchNorm, or group norm",
        )


def _words(sampler: ShardSampler) -> str:
    words = f"{sampler.size} samples in batches of {sampler.batch_size}"
    words += f", the last one of {rest}" if (rest := sampler.rest()) else ""
    if sampler.micro_batch_size < sampler.batch_size:
        words += f", in micro-batches of {sampler.micro_batch_size}"
    return f"{words}, for {sampler.num_replicas} process(es)"


def _remedy(sampler: ShardSampler) -> str:
    """Return the nearest batch size that leaves no sample alone, as the start of a hint."""
    size = sampler.batch_size
    others = sorted(range(1, size + 3 * sampler.num_replicas), key=lambda other: abs(other - size))
    found = next((other for other in others if sampler.smallest_part(other) > 1), None)
    name = "batch_size" if sampler.shuffle else "test_batch_size"
    return f"give {name}={found}, or " if found else "give "
