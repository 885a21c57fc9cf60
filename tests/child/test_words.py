"""The arguments of a call as the words of a command, and back."""

from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from launcher.child.words import Asked, text_of, words_for_script, words_of
from launcher.cli.run import run
from launcher.cli.slurm import submit
from launcher.errors import BadInput
from launcher.recipe.file import find
from launcher.recipe.values import convert


class Colour(Enum):
    RED = "red"
    BOTH = ("red", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a recipe `my.py`, a script and a module."""
    field = "class Digits(Recipe):\n    group: int = 0\n"
    recipe = find("digits").source.replace("class Digits(Recipe):\n", field)
    (tmp_path / "my.py").write_text(recipe)
    (tmp_path / "script.py").write_text("print(1)\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "train.py").write_text("print(1)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("value", "hint", "read"),
    [
        (None, int | None, None),
        (True, bool, True),
        (False, bool, False),
        (3, int, 3),
        (-3, int, -3),
        (1e-05, float, 1e-05),
        (float("inf"), float, float("inf")),
        (0.1 + 0.2, float, 0.1 + 0.2),
        ("two words, = and 'quotes'", str, "two words, = and 'quotes'"),
        ("", str, ""),
        ("umlaut: ä\n", str, "umlaut: ä\n"),
        ("none", str, "none"),
        (Path("a b"), Path, Path("a b")),
        ((0.9, 0.999), tuple[float, float], (0.9, 0.999)),
        ([1, 2], list[int], [1, 2]),
        ((3,), tuple[int, ...], (3,)),
        ((), tuple[int, ...], ()),
        (("a,b", "c d"), tuple[str, ...], ("a,b", "c d")),
        (["true", "1"], list[str], ["true", "1"]),
        ([[1, 2], [3]], list[list[int]], [[1, 2], [3]]),
        ([None, 1], list[int | None], [None, 1]),
        ([True, False], list[bool], [True, False]),
        ([Path("x")], list[Path], [Path("x")]),
        ((1, None), tuple[int, float | None], (1, None)),
        ([float("inf")], list[float], [float("inf")]),
        (Colour.RED, Literal["red", "blue"], "red"),
        (Colour.BOTH, tuple[str, int], ("red", 2)),
        (np.float64(0.5), float, 0.5),
        (np.int64(5), int, 5),
        (np.array([1, 2]), list[int], [1, 2]),
    ],
    ids=str,
)
def test_a_value_is_read_back_as_it_was(value: Any, hint: Any, read: Any) -> None:
    found = convert(hint, text_of("x", value))
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize("value", [{"a": 1}, {1}, b"x", 1j, [1j], (b"x",)], ids=repr)
def test_what_no_hyperparameter_can_be_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="`x` cannot be given as"):
        text_of("x", value)


@pytest.mark.parametrize(
    ("command", "keywords", "words"),
    [
        (run, {"nproc": 2, "epochs": 3}, ["my.py", "--nproc=2", "epochs=3"]),
        (run, {"cpu": True, "lr": None}, ["my.py", "--cpu", "lr=none"]),
        (run, {"cpu": False, "nproc": None, "config": None}, ["my.py"]),
        (run, {"tags": ["a", "b c"]}, ["my.py", "--tag=a", "--tag=b c"]),
        (run, {"tags": "ab"}, ["my.py", "--tag=ab"]),
        (run, {"init_from": Path("r")}, ["my.py", "--init-from=r"]),
        (run, {"project": "-x"}, ["my.py", "--project=-x"]),
        (submit, {"gpus_per_node": 8}, ["my.py", "--gpus-per-node=8"]),
        (submit, {"time": "4:0:0", "lr": 1}, ["my.py", "--time=4:0:0", "lr=1"]),
        (submit, {"sbatch": {"hint": "x"}}, ["my.py", "--sbatch=hint=x"]),
        (submit, {"grid": {"lr": [0.1, 1]}}, ["my.py", "--grid=lr=0.1,1"]),
        (submit, {"grid": {"a": [[1, 2]], "b": "x"}}, ["my.py", "--grid=a=[1, 2]", "--grid=b=x"]),
    ],
)  # fmt: skip
def test_a_keyword_is_an_option_or_a_hyperparameter(
    command: Any, keywords: dict[str, Any], words: list[str]
) -> None:
    assert words_of(command, Asked("my.py", keywords, {}, [])) == words


def test_words_for_a_script_come_last(folder: Path) -> None:
    (folder / "-my.py").write_text("")
    args = words_for_script(["--lr", 1e-3, Path("a b")])
    words = words_of(run, Asked("-my.py", {"nproc": 1, "grace": 2}, {}, args))
    path = str(folder / "-my.py")
    assert words == [path, "--nproc=1", "--grace=2", "--", "--lr", "0.001", "a b"]
    words = words_of(run, Asked(None, {"module": "pkg.train", "on_resume": ["-r", "a b"]}, {}, []))
    assert words == ["-mpkg.train", "--on-resume=-r 'a b'"]


def test_hyperparameters_with_the_name_of_an_option_have_a_place_of_their_own() -> None:
    words = words_of(run, Asked("my.py", {"hang_timeout": 9}, {"tags": (1,), "nproc": 3}, []))
    assert words == ["my.py", "hang_timeout=9", "tags=[1]", "nproc=3"]


@pytest.mark.parametrize(
    ("what", "keywords", "own", "args", "message"),
    [
        ("my.py", {"json": True}, {}, [], "`json` is an option of the command line alone"),
        ("my.py", {"cpu": "yes"}, {}, [], "`cpu` is True or False, not 'yes'"),
        ("my.py", {"nproc": True}, {}, [], "`nproc` cannot be True"),
        ("my.py", {"epochs": 1}, {"epochs": 2}, [], "`epochs` is given as a keyword and in `hyper"),
        ("my.py", {"a=b": 1}, {}, [], "`a=b` cannot be the name of a hyperparameter"),
        ("my.py", {}, {"--cpu": 1}, [], "`--cpu` cannot be the name"),
        ("my.py", {"x": "\0"}, {}, [], "it has a null character"),
        ("my.py", {"group": "g"}, {}, [], "`group` is an option of the launcher and a hyperparam"),
        ("my.py", {}, {}, ["-x"], "script_args are for scripts, and my.py is a recipe"),
        ("script.py", {"lr": 1}, {}, [], "`lr` is no option, and script.py is a script"),
        ("script.py", {}, {"lr": 1}, [], "`lr` is no option, and script.py is a script"),
        ("none.py", {}, {}, [], "there is no recipe `none.py`"),
        (None, {}, {}, [], "name a recipe or a script, or give module="),
        ("my.py", {"module": "script"}, {}, [], "one of them"),
        (7, {}, {}, [], "named by its path, not 7"),
    ],
)
def test_what_no_command_can_be_told_is_refused(
    what: Any, keywords: dict[str, Any], own: dict[str, Any], args: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        words_of(run, Asked(what, keywords, own, args))


@pytest.mark.parametrize("args", ["--lr 1", [None], [["-x"]]])
def test_words_for_a_script_that_are_none_are_refused(args: Any) -> None:
    with pytest.raises(BadInput, match="script_args"):
        words_for_script(args)
