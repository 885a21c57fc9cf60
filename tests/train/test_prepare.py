"""What is built from a recipe: optimizers that update all weights in one operation."""

from typing import Any

import pytest
import torch
from torch import nn

from launcher.errors import RecipeError
from launcher.model.made import as_made
from launcher.model.optimizers import Optimizers


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (3, 100)]


def stepped(optimizer: torch.optim.Optimizer, times: int) -> list[list[float]]:
    parameters = optimizer.param_groups[0]["params"]
    for _ in range(times):
        for parameter in parameters:
            parameter.grad = parameter.detach().cos()
        optimizer.step()
    return [parameter.tolist() for parameter in parameters]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_fused_optimizer_is_what_torch_makes_when_asked(kind: Any) -> None:
    ours = kind(weights(), lr=0.1)
    Optimizers(ours).fuse()
    assert stepped(ours, 5) == stepped(kind(weights(), lr=0.1, fused=True), 5)


def test_an_optimizer_that_cannot_be_fused_is_refused() -> None:
    with pytest.raises(RecipeError, match="RMSprop has no fused form"):
        Optimizers(torch.optim.RMSprop(weights())).fuse()


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_how_an_optimizer_computes_is_not_taken_from_a_checkpoint(
    before: bool, after: bool
) -> None:
    saved = torch.optim.Adam(weights(), lr=0.1, fused=before)
    stepped(saved, 3)
    loaded = torch.optim.Adam(weights(), lr=0.5, fused=after)
    made, now = as_made([saved], [], 9), as_made([loaded], [], 9)
    Optimizers(loaded).load([saved.state_dict()], made | {"groups": now["groups"]}, now)
    [group] = loaded.param_groups
    assert (group["lr"], group["fused"]) == (0.1, after)
    assert int(loaded.state[group["params"][0]]["step"]) == 3
    stepped(loaded, 1)
