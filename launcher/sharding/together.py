"""Passes through a sharded model: each is one of all ranks, or the run ends in words.

Weights are gathered from all ranks when a module is called. A rank that calls what another does
not would wait for ever, or get another module's weights. So before a pass, and before whatever else
they do together, ranks tell each other what comes next.

Weights inside of a module may be used on some ranks only: the others count as zeros.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.errors import RecipeError, TrainingFailed
from launcher.model.pieces import in_pieces
from launcher.ranks.context import Apart

TALK, BACKWARD, _FIRST = 0, 1, 2  # what comes next; from the last one on a module's forward pass
_LOOKED_AT = 50  # passes in which each module is announced; then the model's alone, and their order
_MIXED = "mixed torch.Tensor and DTensor"  # torch's words for weights that are not gathered
_MODULUS = (1 << 61) - 1


class Together(Apart):
    """Announces what a rank is about to do, and raises TrainingFailed where ranks differ in it."""

    def __init__(
        self, model: nn.Module, members: Mapping[str, nn.Module], patience_s: float
    ) -> None:
        """Watch a model and its members, outer ones first; collective."""
        self._group: Any = None
        if dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_s))
        self._names = ["", *members]
        self._watched = [model, *members.values()]
        self._depth = self._passes = self._order = 0
        self._weights = {name: p for name, p in model.named_parameters() if in_pieces(p)}
        self._used = set[str]()  # in this step
        for number, module in enumerate(self._watched):
            module.register_forward_pre_hook(partial(self._before, number), prepend=True)
            module.register_forward_hook(self._after, always_call=True)
            self._note_use(module, self._names[number])

    def __call__(self, what: int = TALK) -> None:
        """Tell the others what comes next; collective."""
        self._tell(what, 0)

    def _tell(self, what: int, flag: int) -> int:
        """Tell what comes next, and return the largest `flag` of any rank; collective."""
        if self._group is None:  # nobody else is there
            return flag
        told = torch.tensor([what, -what, self._order, -self._order, flag])
        dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
        most, least, last, first, flag = told.tolist()
        if most != -least:
            raise _apart(f"one is at {self._name(-least)}, another at {self._name(most)}")
        if last != -first:
            raise _apart("they have called its modules in another order")
        return flag

    def _note_use(self, module: nn.Module, prefix: str) -> None:
        """Have the weights of a module noted as used whenever they get a gradient.

        They are gathered as other tensors than their pieces, the same ones each time.
        """

        def begin(*_: Any) -> None:
            handle.remove()
            for name, parameter in module.named_parameters(prefix=prefix):
                if name in self._weights and not in_pieces(parameter):  # of no module inside
                    watch: Any = parameter.register_post_accumulate_grad_hook
                    watch(partial(self._note, name))

        handle = module.register_forward_pre_hook(begin)  # behind torch's, which gathers

    def _note(self, name: str, _parameter: Tensor) -> None:
        self._used.add(name)

    def leave_unused(self) -> None:
        """Have no gradient of a weight that no rank has used in a step; collective.

        Torch has zeros for it, and those would change it where an optimizer remembers or decays.
        """
        used = [p.grad is None or name in self._used for name, p in self._weights.items()]
        self._used.clear()
        if not self._tell(TALK, int(not all(used))):
            return
        anywhere = torch.tensor(used, dtype=torch.uint8)
        if self._group is not None:
            dist.all_reduce(anywhere, dist.ReduceOp.MAX, self._group)
        for parameter, taken in zip(self._weights.values(), anywhere.tolist(), strict=True):
            if not taken:
                parameter.grad = None

    def _before(self, number: int, _module: nn.Module, _given: Any) -> None:
        if self._depth == 0:
            self._passes += 1
        if self._depth == 0 or self._passes <= _LOOKED_AT:
            self(_FIRST + number)
        self._order = (31 * self._order + number + 1) % _MODULUS
        self._depth += 1

    def _after(self, *_: Any) -> None:
        self._depth -= 1

    def _name(self, what: int) -> str:
        if what < _FIRST:
            return "a backward pass" if what == BACKWARD else "what comes after it"
        name = self._names[what - _FIRST]
        return f"the forward pass of {f'`{name}`' if name else 'the model'}"

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Have a RecipeError in the place of torch's for weights that are not gathered."""
        try:
            yield
        except RuntimeError as error:
            if _MIXED not in str(error):
                raise
            raise _not_called(self._blamed(error.__traceback__)) from error

    def _blamed(self, trace: TracebackType | None) -> str:
        """Return the module whose weights were not there, "" for the model itself."""
        inside, called = list[nn.Module](), set[int]()
        while trace:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                inside.append(module)
                if trace.tb_frame.f_code.co_name == "_call_impl":
                    called.add(id(module))
            trace = trace.tb_next
        places = {id(part): n for n, m in enumerate(self._watched) for part in m.modules()}
        for module in reversed(inside):
            number = places.get(id(module), 0)
            if id(self._watched[number]) not in called:
                return self._names[number]
        return next(iter(self._names[1:]), "") if called else ""


def _apart(how: str) -> TrainingFailed:
    return TrainingFailed(
        f"ranks do not go through the model alike: {how}",
        hint="with `shard` each has a piece of the weights, and they are gathered when a module is "
        "called: call the model alike on all ranks, and its parts in the same order",
    )


def _not_called(name: str) -> RecipeError:
    if not name:
        return RecipeError(
            "weights of the model are used otherwise than by calling it, and with `shard` they are "
            "there only while it is called",
            hint="what needs them belongs into the `forward` of the model",
        )
    return RecipeError(
        f"`{name}` is used otherwise than by calling it, and with `shard` its weights are there "
        "only while it is called",
        hint=f"call it; or write `shards(self, model)`, which returns the modules to gather one at "
        f"a time, without `{name}`: what is in none of them is there while the model is called",
    )
