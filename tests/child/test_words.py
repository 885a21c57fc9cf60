"""The arguments of a call as the words of a command, and back."""

from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from launcher.child.words import text_of, words_of
from launcher.cli.run import run
from launcher.cli.slurm import submit
from launcher.errors import BadInput
from launcher.recipe.values import convert


class Colour(Enum):
    RED = "red"
    BOTH = ("red", 2)


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
    assert words_of(command, "my.py", keywords, {}, []) == words


def test_words_for_a_script_come_last() -> None:
    words = words_of(run, "-my.py", {"nproc": 1}, {}, ["--lr", 1e-3, Path("a b")])
    assert words == [str(Path.cwd() / "-my.py"), "--nproc=1", "--", "--lr", "0.001", "a b"]


def test_hyperparameters_with_the_name_of_an_option_have_a_place_of_their_own() -> None:
    assert words_of(run, "my.py", {"group": "g"}, {"tags": (1,)}, [])[1:] == [
        "--group=g",
        "tags=[1]",
    ]


@pytest.mark.parametrize(
    ("keywords", "own", "args", "message"),
    [
        ({"json": True}, {}, [], "`json` is an option of the command line alone"),
        ({"cpu": "yes"}, {}, [], "`cpu` is True or False, not 'yes'"),
        ({"nproc": True}, {}, [], "`nproc` cannot be True"),
        ({"epochs": 1}, {"epochs": 2}, [], "`epochs` is given as a keyword and in `hyper"),
        ({"a=b": 1}, {}, [], "`a=b` cannot be the name of a hyperparameter"),
        ({}, {"--cpu": 1}, [], "`--cpu` cannot be the name"),
        ({"x": "\0"}, {}, [], "it has a null character"),
        ({}, {}, "--lr 1", "script_args is a list of words"),
        ({}, {}, [None], "`script_args` cannot be None"),
    ],
)
def test_what_no_command_can_be_told_is_refused(
    keywords: dict[str, Any], own: dict[str, Any], args: Any, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        words_of(run, "my.py", keywords, own, args)
