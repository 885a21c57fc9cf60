"""What a file is, found without running it: recipes in every form, and scripts."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli.main import main
from launcher.errors import RecipeError
from launcher.recipe.base import REQUIRED_METHODS
from launcher.recipe.file import RecipeFile, find, load, outline
from launcher.recipe.hyperparameters import describe

DATACLASS = "from dataclasses import dataclass\n"
METHODS = "".join(f"    def {name}(self, *parts): ...\n" for name in REQUIRED_METHODS)
BASE = f"{DATACLASS}from launcher import Recipe\n@dataclass(frozen=True)\nclass Base(Recipe):\n"
BASE += METHODS


def child(base: str) -> str:
    """A recipe that says little by itself."""
    return f"{DATACLASS}@dataclass(frozen=True)\nclass Mine({base}):\n    width: int = 3\n"


def whole(base: str) -> str:
    return child(base) + METHODS


# Files, of which the last is the recipe.
RECIPES: dict[str, dict[str, str]] = {
    "the name": {"mine.py": "from launcher import Recipe\n" + whole("Recipe")},
    "from its own module": {
        "mine.py": "from launcher.recipe.base import Recipe\n" + whole("Recipe")
    },
    "an alias": {"mine.py": "from launcher import Recipe as R\n" + whole("R")},
    "a module": {"mine.py": "import launcher\n" + whole("launcher.Recipe")},
    "a module's alias": {"mine.py": "import launcher as l\n" + whole("l.Recipe")},
    "a submodule": {
        "mine.py": "import launcher.recipe.base\n" + whole("launcher.recipe.base.Recipe")
    },
    "a star": {"mine.py": "from launcher.recipe.base import *\n" + whole("Recipe")},
    "a second name": {"mine.py": "import launcher\nR = launcher.Recipe\n" + whole("R")},
    "a choice": {
        "mine.py": "import sys\nfrom launcher import Recipe\n"
        "R = Recipe if sys.argv else object\n" + whole("R")
    },
    "on condition": {
        "mine.py": "try:\n    from nowhere import R\nexcept ImportError:\n"
        "    from launcher import Recipe as R\n" + whole("R")
    },
    "a class on condition": {
        "mine.py": "from launcher import Recipe\nif True:\n"
        + "".join(f"    {line}\n" for line in whole("Recipe").splitlines())
    },
    "several bases": {
        "mine.py": "from typing import Generic, TypeVar\nfrom launcher import Recipe\n"
        "T = TypeVar('T')\n" + whole("Recipe, Generic[T]")
    },
    "a function of it": {
        "mine.py": "from launcher import Recipe\ndef mixed(base):\n    return base\n"
        + whole("mixed(Recipe)")
    },
    "through the file": {"mine.py": BASE + child("Base")},
    "a file beside it": {"base.py": BASE, "mine.py": "from base import Base\n" + child("Base")},
    "through two files": {
        "first.py": BASE,
        "second.py": "from first import Base as Again\n",
        "mine.py": "import second as s\n" + child("s.Again"),
    },
    "a star of a file": {"base.py": BASE, "mine.py": "from base import *\n" + child("Base")},
    "a folder beside it": {
        "lib/deep/base.py": BASE,
        "mine.py": "import lib.deep.base\n" + child("lib.deep.base.Base"),
    },
    "a package beside it": {
        "lib/__init__.py": "from .base import Base\n",
        "lib/base.py": BASE,
        "mine.py": "import lib as b\n" + child("b.Base"),
    },
    "a factory beside it": {
        "base.py": f"{BASE}def base(width):\n    return Base\n",
        "mine.py": "from base import base\n" + child("base(3)"),
    },
    "a factory's class": {
        "mine.py": "from launcher import Recipe\ndef make(width_):\n"
        + "".join(f"    {line}\n" for line in whole("Recipe").splitlines())
        + "    return Mine\nBest = make(3)\n"
    },
    "made by a call": {
        "base.py": BASE,
        "mine.py": f"from base import Base\n{DATACLASS}"
        "Mine = dataclass(frozen=True)(type('Mine', (Base,), {'__annotations__': {'width': int}, "
        "'width': 3}))\n",
    },
    "not to be read, with its methods": {
        "mine.py": "import importlib\nR = importlib.import_module('launcher').Recipe\n" + whole("R")
    },
    "in a package": {
        "my/__init__.py": "",
        "my/base.py": BASE,
        "my/mine.py": "from .base import Base\n" + child("Base"),
    },
    "deep in a package": {
        "my/__init__.py": "",
        "my/base.py": BASE,
        "my/deep/__init__.py": "",
        "my/deep/mine.py": "from .. import base\nfrom my.base import Base\n" + child("base.Base"),
    },
    "in a folder like a package": {
        "my/base.py": BASE,
        "my/mine.py": "from . import base as b\n" + child("b.Base"),
    },
    "in a folder below the current one": {
        "lib.py": BASE,
        "my/mine.py": "from lib import Base\n" + child("Base"),
    },
}
NET = "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): ...\n"
SCRIPTS: dict[str, str] = {
    "empty": "",
    "plain": "print('trained')\n",
    "a model": NET,
    "guarded": f"{NET}if __name__ == '__main__':\n    print('trained')\n",
    "uses the name": "from launcher import Recipe\ndef epochs(recipe: Recipe): ...\n",
    "imports it": "from launcher import Recipe\n",
    "another Recipe": f"class Recipe: ...\n{whole('Recipe').replace('loss', 'soup')}",
    "one method": "class Task(somebodys.Base):\n    def loss(self): ...\n",
    "no base": whole("").replace("()", ""),
    "unknown base": "from nowhere.at_all import Base\nclass Mine(Base): ...\n",
    "itself": "class A(A): ...\nclass B(C): ...\nclass C(B): ...\n",
    "grows": "a = a.b\nb = b.c.d + b.e\nclass A(a.x, b.y): ...\n",
    "again and again": 300 * NET + "a = a.b.c + a.d\nclass A(a): ...\n",
    "endless": "import mine\nfrom mine import *\nclass A(mine.A): ...\nclass B(Z): ...\n",
}


OWN = {"recipe_mine", "base", "first", "second", "lib", "my"}  # what recipes below import


@pytest.fixture(autouse=True)
def _forgets_what_recipes_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]


def written(folder: Path, files: dict[str, str]) -> RecipeFile:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    return find(str(folder / list(files)[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("what", RECIPES)
def test_a_recipe_is_one_in_whatever_form(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, RECIPES[what])
    assert describe(outline(file)) == describe(load(file))
    assert describe(load(file))[-1][:3] == ("width", "int", 3)


@pytest.mark.slow
@pytest.mark.parametrize("what", SCRIPTS)
def test_a_script_is_none_and_is_not_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, {"mine.py": f"open('ran', 'w')\n{SCRIPTS[what]}"})
    for use in (outline, load):
        with pytest.raises(RecipeError, match=r"mine\.py has no recipe"):
            use(file)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        (SCRIPTS["no base"], "no recipe: `Mine` does not inherit from `Recipe`", ""),
        (SCRIPTS["unknown base"], "no recipe", "; `nowhere.at_all`, which it imports, cannot be"),
        ("from .b import B\nclass A(B): ...\n", "no recipe", "; `.b`, which it imports, cannot be"),
        ("from bad import B\nclass A(B): ...\n", "no recipe", "/bad.py`, which it imports, cannot"),
    ],
)
def test_the_nearest_to_a_recipe_is_named(
    source: str, message: str, hint: str, tmp_path: Path
) -> None:
    file = written(tmp_path, {"bad.py": "def = 3\n", "mine.py": source})
    with pytest.raises(RecipeError) as caught:
        outline(file)
    assert caught.value.message.endswith(message)
    assert hint in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "run r/recipe.py epochs=3 --cpu --nproc 2",
        "recipes show script.py",
        "submit script.py --dry-run",
        "submit script.py --grid seed=0,1 --dry-run --json",
        "debug script.py",
        "resume r",
        "resume r epochs=9",
        "run r/recipe.py --config r/config.json",
    ],
)
def test_no_command_runs_a_script_to_find_out_what_it_is(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"recipe": "script", "recipe_path": str(tmp_path / "script.py"), "world_size": 1}
    told |= {"cpu": True, "hyperparameters": {"epochs": 1}}
    script = f"open({str(tmp_path / 'ran')!r}, 'w')\n{NET}"
    files = {"r/config.json": json.dumps(told), "r/recipe.py": script, "script.py": script}
    written(tmp_path, files)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    answer = CliRunner().invoke(main, words.split())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    if words == "submit script.py --dry-run":
        assert (answer.exit_code, "sbatch" in answer.stdout.lower()) == (0, True)
        return
    assert answer.exit_code == 2
    [message, hint] = answer.stderr.splitlines()
    assert message.startswith("error: ")
    assert "it is a script" in hint or "for recipes" in message or "`epochs=3` is none" in message
