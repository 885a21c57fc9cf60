"""A script that defines a recipe and ends without training it has failed: a note for who judges it.

Reading finds most recipes (see `launcher.recipe.source`); some are made while a file runs.
"""

import atexit
import os
import sys
from contextlib import suppress
from pathlib import Path

from launcher.around import AGENT, RUN_DIR
from launcher.files import written

_defined: list[type] = []


def defined(recipe_type: type) -> None:
    """Hear of a class that descends from `Recipe`: of interest in a process of a script's run."""
    if os.environ.get(AGENT) == str(os.getppid()):  # not in those that the script itself starts
        if not _defined:
            atexit.register(_note)
        _defined.append(recipe_type)


def is_trained() -> None:
    """Hear that a recipe is trained, or was refused in words."""
    atexit.unregister(_note)


def note_of(run: Path, rank: int) -> Path:
    """Where a process of a script says which recipe nobody trained."""
    return run / "logs" / f"rank-{rank}-recipe.txt"


def _note() -> None:
    names = [one.__name__ for one in _defined if _is_of_script(one)]
    run, rank = os.environ.get(RUN_DIR), os.environ.get("RANK", "0")
    if names and run:
        with suppress(OSError), written(note_of(Path(run), int(rank))) as beside:
            beside.write_text(names[-1], encoding="utf-8")


def _is_of_script(recipe_type: type) -> bool:
    """Whether a class was made by the script, and is not one that it has imported."""
    module = sys.modules.get(recipe_type.__module__)
    imported = getattr(module, recipe_type.__name__, None) is recipe_type
    return recipe_type.__module__ == "__main__" or (
        not imported and any(one is recipe_type for one in vars(sys.modules["__main__"]).values())
    )
