"""Run directories that no process has trained: for what only reads them."""

import json
from pathlib import Path
from typing import Any

from launcher.run.directory import RunDir


def made(path: Path, rows: Any = (), result: Any = None, **config: Any) -> RunDir:
    """A run directory with what is given in it."""
    path.mkdir(parents=True)
    run = RunDir(path)
    told = {"recipe": "digits", "hyperparameters": {"epochs": 4}, "world_size": 2, "created": 1e9}
    run.config.write_text(json.dumps(told | config))
    if rows:
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result:
        run.result.write_text(json.dumps(result))
    return run


def row(split: str, epoch: int, step: int, loss: float | None, accuracy: float = 0.5) -> Any:
    return {"split": split, "epoch": epoch, "step": step, "loss": loss, "accuracy": accuracy}


ROWS = [
    row("train", 0, 5, 2.0),
    row("test", 0, 5, 0.5, 0.9),
    row("train", 1, 10, 1.0),
    row("test", 1, 10, 0.75, 0.8),
    row("train", 2, 13, 0.25),
]
