"""What the files of a run say: they may be foreign, old or broken, and are then told in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import RunDirError

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
