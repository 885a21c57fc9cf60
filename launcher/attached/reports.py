"""What a script logs: a line on the console, a row of metrics.jsonl, and W&B, which mirrors it."""

import json
import math
import numbers
import sys
import time
from collections.abc import Mapping
from typing import Any

from launcher.errors import BadInput
from launcher.files import read_json, write_bytes, write_json
from launcher.run.directory import RunDir
from launcher.run.rows import finite
from launcher.run.wandb import is_scripts_own

# What a row tells by itself, or what is no number in it.
_TAKEN = {"split", "step", "time", "line", "epochs", "learning_rates"}


class Reports:
    """metrics.jsonl of a script, written by rank 0 alone; a row is there whole or not at all.

    What an earlier start of the run has logged, and this one will log again, is cut off.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.rows = 0  # that are there
        self._begun = False
        self._before = -math.inf  # the last step of an earlier start whose rows are kept
        self._last = -math.inf  # the last step of this start

    def begin(self, rows: int) -> None:
        """Keep the first rows, those of the checkpoint that the run goes on from."""
        self._begin(self._lines()[:rows])

    def begin_before(self, step: int) -> None:
        """Keep the rows of earlier steps: there is no checkpoint, or none of ours."""
        lines = self._lines()
        steps = [_step_of(line) for line in lines]
        kept = next((at for at, found in enumerate(steps) if found >= step), len(lines))
        self._begin(lines[:kept])

    @property
    def begun(self) -> bool:
        """Whether it is known which rows are kept."""
        return self._begun

    def _lines(self) -> list[bytes]:
        path = self._run.metrics
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def _begin(self, kept: list[bytes]) -> None:
        if not self._begun:
            self._begun, self.rows = True, len(kept)
            self._before = _step_of(kept[-1]) if kept else -math.inf
            if self._run.metrics.exists():
                write_bytes(self._run.metrics, b"".join(kept))

    def log(self, step: int, told: Mapping[str, Any]) -> None:
        """Write a row and say it on the console; raises BadInput for what is no number.

        A step that an earlier start has logged, and that is kept, is passed over.
        """
        row = {name: number(name, value) for name, value in told.items()}
        if step < self._last:
            raise BadInput(
                f"`run.log({step})` after `run.log({self._last})`: steps are logged in order",
                hint="the first argument is the step of the run, over all its starts",
            )
        if step <= self._before or not row:
            return
        self._last = step
        words = ", ".join(f"{name}: {_words(value)}" for name, value in row.items())
        print(f"step {step}: {words}", flush=True)
        line = {"split": "train", "step": step, "line": self.rows}
        line |= {name: finite(value) for name, value in row.items()} | {"time": time.time()}
        with self._run.metrics.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())
        self.rows += 1


def own_wandb_run(run: RunDir) -> bool:
    """Whether this process has a W&B run of its own, which is noted: it is not mirrored as well."""
    module: Any = sys.modules.get("wandb")
    own = getattr(module, "run", None)
    if own is None:
        if is_scripts_own(read_json(run.wandb_state)):  # an earlier start had one
            run.wandb_state.unlink()
        return False
    print("W&B: this script has a run of its own, so its rows are not mirrored", file=sys.stderr)
    write_json(run.wandb_state, {"url": getattr(own, "url", None), "complete": True, "own": True})
    return True


def number(name: str, value: Any) -> float:
    """Return a number, or the one element of a tensor or an array; raises BadInput for others."""
    if name in _TAKEN:
        raise BadInput(f"`run.log({name}=…)`: a row has a `{name}` of its own", hint="rename it")
    found = value
    if not isinstance(value, numbers.Real) and hasattr(value, "item"):
        try:
            found = value.item()
        except (TypeError, ValueError, RuntimeError):
            found = None
    if isinstance(found, numbers.Real):
        return int(found) if isinstance(found, int) else float(found)
    shape = getattr(value, "shape", None)
    what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise BadInput(
        f"`run.log({name}=…)` got {what}, which is no number",
        hint="log a number, or a tensor of one element, like `loss.mean()`",
    )


def _words(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _step_of(line: bytes) -> float:
    """Return the step of a row; one that cannot be read is none of those that are kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
