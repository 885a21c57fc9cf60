"""The buckets in which DDP sends gradients, arranged for good before the first step."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import RecipeError


def sparse_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights whose gradients are sparse tensors."""
    modules = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return [m.weight for m in modules if m.sparse and m.weight.requires_grad]


def settle_buckets(model: DistributedDataParallel) -> None:
    """Have DDP arrange its gradient buckets for good, before the first step; collective.

    DDP rearranges them once, after the first backward pass. A resumed run would take that step
    later than an undisturbed one, sum in another order, and differ in the last bits at three ranks
    and more. So a stand-in for the model, without the user's code in it, gives all parameters a
    gradient once, last ones first as a real backward pass does. Raises RecipeError for gradients
    that cannot be averaged.
    """
    inner = model.module
    if next(inner.parameters()).is_cuda and dist.get_world_size() > 1 and sparse_weights(inner):
        raise RecipeError(
            "the model has embeddings with sparse=True, whose gradients GPUs cannot average",
            hint="leave `sparse=True` out, or train with one process or on CPUs",
        )
    parameters = [p for p in inner.parameters() if p.requires_grad]
    model.module = _SumOfParameters(parameters, sparse_weights(inner))
    broadcast, model.broadcast_buffers = model.broadcast_buffers, False  # the stand-in has none
    # Buckets are rearranged in the second forward pass. Its backward pass must follow: DDP would
    # wait for it, and synchronise the first micro-batch of the first step instead.
    for _ in range(2):
        # Where DDP knows its GPU it moves inputs there, and there must be one.
        model(parameters[0].new_zeros(())).backward()
    model.module, model.broadcast_buffers = inner, broadcast
    model.zero_grad()


class _SumOfParameters(nn.Module):
    """Depends on every parameter; its value is zero."""

    def __init__(self, parameters: list[nn.Parameter], sparse: list[Tensor]) -> None:
        super().__init__()
        self._given = tuple(parameters)  # in a tuple, so that they are not registered again
        self._sparse = {id(weight) for weight in sparse}

    def forward(self, nothing: Tensor) -> Tensor:
        return nothing + torch.stack([self._zero(p) for p in self._given]).sum()

    def _zero(self, parameter: Tensor) -> Tensor:
        if id(parameter) in self._sparse:  # DDP wants a gradient of that kind
            first = torch.zeros(1, dtype=torch.long, device=parameter.device)
            parameter = nn.functional.embedding(first, parameter, sparse=True)
        return (parameter * 0).sum().float()
