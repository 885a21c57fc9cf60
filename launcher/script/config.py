"""config.json of a script's run: everything that is needed to repeat it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.run.config import here_and_now
from launcher.run.told import KIND
from launcher.script.script import Script


def describe(
    script: Script,
    name: str,
    path: Path,
    *,
    world_size: int,
    nodes: int,
    tracking: Mapping[str, Any],
    cpu: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Return the contents of config.json for a script, whose file is at `path`.

    `threads` are those of each process; None: not known.
    """
    return {
        "kind": KIND,
        "recipe": name,
        "recipe_path": str(path),
        "script": script.told(),
        "hyperparameters": {},
        "world_size": world_size,
        "nodes": nodes,
        "cpu": cpu,
        "threads": threads,
        "tracking": tracking,
        **here_and_now(path),
    }
