"""Has every Python that tests start import the heavy packages quicker; on its PYTHONPATH.

What is there for good is not looked through for garbage, which is a fifth of importing torch, and
the lines of others are not counted: another fifth. Nothing else changes.
"""

from __future__ import annotations

import gc
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # mypy's word; typing takes its time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_HEAVY = {"torch", "torch._dynamo", "torchvision", "accelerate", "transformers", "lightning"}
_HEAVY |= {"accelerate.commands.launch", "torch.distributed.run", "numpy", "plotly", "wandb"}


class Quick:
    """Finds the heavy packages as ever."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _HEAVY else None
        if spec and spec.loader:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _quickly(execute, module)  # type: ignore[method-assign]
        return spec


def _quickly(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    tracer, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    counts = getattr(tracer, "stop", None)  # coverage.py's tracer has it
    if counts:
        counts()
    try:
        execute(module)
    finally:
        if counts:
            tracer.start()  # type: ignore[union-attr]
        if collects:
            gc.enable()


def count_what_runs() -> None:
    """Leave files of which nothing runs to pytest's own process: each would list all of them."""
    if inorout := sys.modules.get("coverage.inorout"):
        inorout.InOrOut.find_possibly_unexecuted_files = lambda _: ()


count_what_runs()
sys.meta_path.insert(0, Quick)
