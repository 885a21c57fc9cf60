"""Recipe files: found, outlined without torch, loaded, and refused in words."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import RecipeError
from launcher.recipe.base import REQUIRED_METHODS, Recipe
from launcher.recipe.file import RecipeFile, bundled, find, load, one_line, outline
from launcher.recipe.hyperparameters import configure, describe

TOP = "from dataclasses import dataclass\nfrom launcher import Recipe\n"
METHODS = "".join(f"    def {name}(self, *parts): ...\n" for name in REQUIRED_METHODS)
RECIPE = f"""
@dataclass(frozen=True)
class Mine(Recipe):
    \"\"\"What it is.\"\"\"

    width: int = 3  # units of a layer
{METHODS}"""
SPY = "import ran_in_full\n"  # a module beside the recipe, so that only a full load imports it


@pytest.fixture(autouse=True)
def _forgets_what_recipes_imported() -> Iterator[None]:
    path, modules = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("recipe_") or name in ("ran_in_full", "beside"):
            del sys.modules[name]


def written(folder: Path, source: str, name: str = "mine.py") -> RecipeFile:
    (folder / "ran_in_full.py").write_text("N = 7\n")
    (folder / name).write_text(source)
    return find(str(folder / name))


def defaults(recipe: type[Recipe]) -> dict[str, object]:
    return {h.name: h.default for h in describe(recipe)}


def test_the_bundled_recipes_are_sorted_by_name_and_have_a_line_each() -> None:
    files = [find(path.stem) for path in bundled()]
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert {"digits", "fashion_mnist"} <= {file.name for file in files}
    assert all(one_line(file) for file in files)


@pytest.mark.parametrize("name", [path.stem for path in bundled()])
def test_outline_and_load_of_a_bundled_recipe_agree(name: str) -> None:
    file = find(name)
    assert describe(outline(file)) == describe(load(file))


# Whether the outline is enough, what comes before a recipe, and the default of its `width`.
DEFAULTS: list[tuple[bool, str, str]] = [
    (True, "", "3"),
    (True, "WIDTH = 2 ** 5", "WIDTH"),
    (True, "WIDTH: int = 4\nDOUBLE = 2 * WIDTH", "DOUBLE"),
    (True, "import math", "math.floor(3.5)"),
    (True, "import torch\nDEVICE = torch.device('cpu')", "3"),
    (True, "import torch\ndef helper(x: torch.Tensor) -> torch.Tensor: return x", "3"),
    (True, "import torch\nclass Net(torch.nn.Module): ...", "3"),
    (True, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nothing", "3"),
    (True, "'''A docstring.'''", "3"),
    (False, "import torch", "torch.tensor(7).item()"),
    (False, "from ran_in_full import N", "N"),
    (False, "import ran_in_full\nN = 4\nN = ran_in_full.N", "N"),
    (False, "N = 4\nif N:\n    N = 5", "N"),
    (False, "N = 4\nN += 1", "N"),
    (False, "N = []\nN.append(1)", "len(N)"),
    (False, "try:\n    import nothing\n    N = 1\nexcept ImportError:\n    N = 2", "N"),
    (False, "for N in range(3): ...", "N"),
    (False, "def computed(): return 9", "computed()"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("enough", "top", "default"), DEFAULTS)
def test_outline_and_load_agree_on_the_fields(
    enough: bool, top: str, default: str, tmp_path: Path
) -> None:
    source = f"{top}\n{TOP}{SPY}{RECIPE.replace('width: int = 3', f'width: int = {default}')}"
    file = written(tmp_path, source)
    outlined = describe(outline(file))
    assert ("ran_in_full" not in sys.modules) == enough
    assert outlined == describe(load(file))


@pytest.mark.parametrize(
    ("enough", "kind"),
    [
        (True, "int"),
        (True, "'int'"),
        (True, "'ClassVar[int]'"),
        (False, "'ClassVar[torch.Tensor | int]'"),
        (False, "ClassVar[torch.Tensor | int]"),
    ],
)
def test_a_type_that_needs_torch_loads_the_file_in_full(
    enough: bool, kind: str, tmp_path: Path
) -> None:
    top = f"from typing import ClassVar\nimport torch\n{TOP}{SPY}"
    file = written(tmp_path, top + RECIPE.replace("width: int", f"width: {kind}"))
    assert ("width" in defaults(outline(file))) == ("ClassVar" not in kind)
    assert ("ran_in_full" not in sys.modules) == enough


def test_postponed_annotations_are_resolved(tmp_path: Path) -> None:
    file = written(tmp_path, f"from __future__ import annotations\n{TOP}{RECIPE}")
    assert describe(outline(file)) == describe(load(file))
    assert configure(load(file), "mine", {"width": "5"}).hyperparameters()["width"] == 5


def test_a_check_of_the_recipes_own_may_use_all_of_the_file(tmp_path: Path) -> None:
    check = """
    @property
    def half(self): return self.width / 2

    def __post_init__(self):
        super().__post_init__()
        refuse_odd(self.half)
"""
    helper = """
def refuse_odd(half):
    if half % 1:
        raise ValueError("width must be even")
"""
    file = written(tmp_path, TOP + RECIPE.replace("= 3", "= 4") + check + helper)
    assert configure(outline(file), "mine", {"width": "6"})
    with pytest.raises(RecipeError, match=r"recipe `mine` refuses .*: width must be even"):
        configure(outline(file), "mine", {"width": "5"})


def test_a_recipe_may_inherit_from_another_in_its_file(tmp_path: Path) -> None:
    child = '''
@dataclass(frozen=True)
class Child(Mine):
    """The child."""

    width: int = 8
    depth: int = 2  # layers
'''
    file = written(tmp_path, TOP + SPY + RECIPE + child)
    recipe = outline(file)
    assert "ran_in_full" not in sys.modules
    assert recipe.__name__ == "Child"
    assert one_line(file) == "The child."
    assert [tuple(h) for h in describe(recipe)[-2:]] == [
        ("width", "int", 8, "units of a layer"),
        ("depth", "int", 2, "layers"),
    ]
    assert describe(recipe) == describe(load(file))


def test_a_recipe_may_inherit_from_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(TOP + RECIPE)
    child = "@dataclass(frozen=True)\nclass Child(Mine):\n    depth: int = 2  # layers\n"
    file = written(tmp_path, f'"""A file."""\n{TOP}from beside import Mine\n{child}')
    assert one_line(file) == "A file."
    assert outline(file).__name__ == "Child"
    assert defaults(outline(file))["width"] == 3
    assert describe(outline(file)) == describe(load(file))


@pytest.mark.parametrize(
    ("top", "base"),
    [
        ("import launcher", "launcher.Recipe"),
        ("import launcher as house", "house.Recipe"),
        ("from launcher import Recipe as Mother", "Mother"),
    ],
)
def test_recipe_may_be_imported_under_any_name(top: str, base: str, tmp_path: Path) -> None:
    source = RECIPE.replace("(Recipe)", f"({base})")
    file = written(tmp_path, f"from dataclasses import dataclass\n{top}\n{source}")
    assert describe(outline(file)) == describe(load(file))


def test_a_second_name_for_a_recipe_makes_no_second_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, f"{TOP}{RECIPE}\nBest = Mine\n")
    assert outline(file).__name__ == load(file).__name__ == "Mine"


def test_any_file_name_and_a_byte_order_mark_will_do(tmp_path: Path) -> None:
    (tmp_path / "my recipe.txt").write_text("\ufeff" + TOP + RECIPE, encoding="utf-8")
    file = find(str(tmp_path / "my recipe.txt"))
    assert file.name == "my recipe"
    assert describe(outline(file)) == describe(load(file))


LACKING = f"{TOP}@dataclass(frozen=True)\nclass Mine(Recipe):\n    width: int = 3\n"
# What a file holds, and the error's words; {path} is the file's.
BROKEN: dict[str, tuple[str, str]] = {
    "empty": ("", "{path} has no recipe"),
    "only a base class": ("from launcher import Recipe\n", "{path} has no recipe"),
    "two recipes": (
        TOP + RECIPE + RECIPE.replace("Mine", "Other"),
        "{path} has 2 recipes: Mine, Other",
    ),
    "syntax error": (f"{TOP}class Mine Recipe:\n", "syntax error in {path}, line 3: "),
    "indentation": (f"{TOP}  x = 1\n", "syntax error in {path}, line 3: unexpected indent"),
    "return": (f"{TOP}{RECIPE}return\n", "syntax error in {path}, line 14: 'return' outside"),
    "NUL byte": ("x = '\0'\n", "{path} is not a Python file: "),
    "no methods": (LACKING, "recipe `mine` lacks the method `model`, the method `train_data`"),
    "one method missing": (
        TOP + RECIPE.replace("def loss", "def loose"),
        "recipe `mine` lacks the method `loss`",
    ),
    "not a dataclass": (
        TOP + RECIPE.replace("@dataclass(frozen=True)", ""),
        "recipe `Mine` is not a dataclass",
    ),
    "not frozen": (
        TOP + RECIPE.replace("(frozen=True)", ""),
        "recipe `{path}` fails when it is loaded: TypeError: cannot inherit non-frozen dataclass",
    ),
    "no import": (
        "from dataclasses import dataclass\nimport nothing_of_that_name\n" + TOP + RECIPE,
        "recipe `{path}` fails when it is loaded: ModuleNotFoundError: No module named",
    ),
    "exits": (f"{TOP}{RECIPE}raise SystemExit(3)\n", "recipe `{path}` ends the program when it is"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_in_words(what: str, tmp_path: Path) -> None:
    source, words = BROKEN[what]
    file = written(tmp_path, source)
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert caught.value.message.startswith(words.format(path=file.path))
    assert caught.value.hint or what == "NUL byte"


@pytest.mark.parametrize("what", [what for what in BROKEN if what != "no import"])
def test_a_broken_file_is_refused_by_its_outline_in_the_same_words(
    what: str, tmp_path: Path
) -> None:
    source, words = BROKEN[what]
    file = written(tmp_path, source)
    with pytest.raises(RecipeError) as caught:
        outline(file)
    assert caught.value.message.startswith(words.format(path=file.path))


def test_the_line_that_fails_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, f"{TOP}\n\nx = 1 / 0\n{RECIPE}")
    with pytest.raises(RecipeError, match="ZeroDivisionError: division by zero") as caught:
        load(file)
    assert caught.value.hint == f"{file.path}, line 5"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("digit", "digits"),
        ("digitz", "digits"),
        ("fashion-mnist", "fashion_mnist"),
        ("mien.py", "mine.py"),
        ("nowhere/xyzzy.py", None),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(
    name: str, near: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        find(name)
    assert caught.value.message == f"there is no recipe `{name}`"
    assert str(caught.value.hint).startswith(f"did you mean `{near}`? " if near else "`launcher")


@pytest.mark.parametrize(
    ("path", "why"),
    [("/proc/self/mem", "Input/output error"), ("x" * 300, "File name too long")],
)
def test_a_file_that_cannot_be_read_is_refused(path: str, why: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe `{path}` cannot be read: .*{why}"):
        find(path)


def test_a_folder_is_the_file_in_it_that_python_runs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the folder `.*` has no __main__.py"):
        find(str(tmp_path))
    (tmp_path / "__main__.py").write_text("# here")
    assert find(str(tmp_path)) == (tmp_path.name, tmp_path / "__main__.py", "# here")


def test_a_notebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a b.ipynb").write_text('{"cells": []}')
    with pytest.raises(RecipeError, match=r"b.ipynb` is a notebook") as caught:
        find(str(tmp_path / "a b.ipynb"))
    assert "nbconvert --to script '" in str(caught.value.hint)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(RecipeError, match="cannot be read: 'utf-8' codec"):
        find(str(tmp_path / "mine.py"))


def test_a_recipe_without_a_docstring_has_an_empty_line(tmp_path: Path) -> None:
    assert not one_line(written(tmp_path, "x = 1\n"))
