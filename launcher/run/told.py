"""What the files of a run say: they may be foreign, old or broken, and are then told in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import RunDirError
from launcher.files import json_object

# What a config.json says, where it says it.
CONFIG = {
    **dict.fromkeys(("recipe", "recipe_path", "folder", "init_from"), str),
    **dict.fromkeys(("hyperparameters", "tracking", "script", "first_session"), dict),
    "world_size": int,
    "nodes": int,
    "cpu": bool,
    "resumed": list,
}
KIND = "script"  # config.json's `kind`; that of a recipe has none


class Told(dict[str, Any]):
    """What a file of a run says; what it should say and does not is told in words."""

    def __init__(self, path: Path, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._none = f"`{path}` is not the {path.name} of a run"
        for key, kind in kinds.items():
            if key in self and not isinstance(self[key], kind):
                raise RunDirError(f"{self._none}: its {key} is {self[key]!r}")

    def __missing__(self, key: str) -> Any:
        raise RunDirError(f"{self._none}: it has no {key}")


def is_script(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a script."""
    return config.get("kind") == KIND


def read_config(path: Path, *, to_look: bool = False) -> dict[str, Any]:
    """Return a config.json; raises RunDirError when it cannot be read, or a value is no such.

    Who only wants `to_look` takes all values but the hyperparameters as they are.
    """
    kinds = {"hyperparameters": dict} if to_look else CONFIG
    try:
        told = Told(path, json_object(path.read_text(encoding="utf-8")), kinds)
    except (OSError, ValueError) as error:
        raise RunDirError(f"`{path}` is not the config.json of a run: {error}") from error
    told["hyperparameters"]  # raises where there are none
    return told
