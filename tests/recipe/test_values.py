"""Values as a command line, Python and JSON write them: the same, or refused."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.recipe.hyperparameters import shown
from launcher.recipe.values import alternatives, convert

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text("aB3 _-./='\"\n\\é中🙂,[]()#")
TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, FINITE),
    (int | None, st.none() | st.integers()),
    (float | None, st.none() | FINITE),
    (int | float, st.integers() | FINITE),
    (Literal[True, 3, 0.5] | None, st.sampled_from([True, 3, 0.5, None])),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (tuple[float, float], st.tuples(FINITE, FINITE)),
    (tuple[bool, ...], st.lists(st.booleans()).map(tuple)),
    (list[str], st.lists(TEXT)),
    (tuple[str, int | None], st.tuples(TEXT, st.none() | st.integers())),
    (list[tuple[int, float]], st.lists(st.tuples(st.integers(), FINITE))),
    (tuple[list[str], ...], st.lists(st.lists(TEXT)).map(tuple)),
    (list[int] | None, st.none() | st.lists(st.integers())),
]
VALUES = st.sampled_from(TYPED).flatmap(lambda row: st.tuples(st.just(row[0]), row[1]))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of the same types all the way down."""
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other and type(one) is type(other))


@pytest.mark.slow
@pytest.mark.parametrize("write", [repr, json.dumps, shown])
@given(VALUES)
@settings(deadline=None)
def test_any_value_is_read_as_it_is_written(write: Any, typed: tuple[Any, Any]) -> None:
    hint, value = typed
    assert same(convert(hint, write(value)), value)


@given(st.lists(st.sampled_from([(64, 64), (1,), (), (3, 4, 5)]), min_size=1))
def test_a_grid_lists_lists(points: list[tuple[int, ...]]) -> None:
    for text in (",".join(map(repr, points)), ",".join(map(json.dumps, points)), repr(points)):
        found = alternatives(tuple[int, ...], text)
        assert [convert(tuple[int, ...], one) for one in found] == points


@given(st.text("0123456789.,-+einfaxtrue []()'\"{}:"), st.sampled_from([hint for hint, _ in TYPED]))
@settings(deadline=None)
def test_any_text_is_a_value_or_a_value_error(text: str, hint: Any) -> None:
    for one in [text, *alternatives(hint, text)]:
        try:
            convert(hint, one)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "64.0", 64),
        (int, "1e3", 1000),
        (int, "1_000", 1000),
        (int, "0x40", 64),
        (int, "-0.0", 0),
        (float, "1", 1.0),
        (bool, "True", True),
        (bool, "false", False),
        (int | None, "None", None),
        (int | None, "null", None),
        (int | None, "64.0", 64),
        (int | float, "64.0", 64.0),
        (int | float, "1e3", 1000.0),
        (int | str, "1e3", "1e3"),
        (str | None, "null", None),
        (str, "[1, 2]", "[1, 2]"),
        (str, "true", "true"),
        (Path, "(x)", Path("(x)")),
        (Literal["no", "bf16"], "no", "no"),
        (Literal["no", "bf16"], '"no"', "no"),
        (Literal[64, 128], "64.0", 64),
        (Literal[True, "auto"], "true", True),
        (tuple[float, float], "[0.9, 0.999]", (0.9, 0.999)),
        (tuple[float, float], "(0.9,0.999)", (0.9, 0.999)),
        (tuple[float, float], " 0.9, 0.999 ", (0.9, 0.999)),
        (tuple[float, float] | None, "[0.9, 0.999]", (0.9, 0.999)),
        (tuple[float, float] | None, "null", None),
        (tuple[int, ...], "(64, 64)", (64, 64)),
        (tuple[int, ...], "(64,)", (64,)),
        (tuple[int, ...], "(64)", (64,)),
        (tuple[int, ...], "64,", (64,)),
        (tuple[int, ...], "[64.0, 1e2]", (64, 100)),
        (tuple[int, ...], "[]", ()),
        (list[bool], "[true, False]", [True, False]),
        (list[str], "[a, b c]", ["a", "b c"]),
        (list[str], "['a', \"b,c\"]", ["a", "b,c"]),
        (list[str], "[1, 2]", ["1", "2"]),
        (list[int | None], "[1, null, None]", [1, None, None]),
        (list[tuple[int, int]], "[(1, 2), [3, 4]]", [(1, 2), (3, 4)]),
        (list[tuple[int, int]], "(1, 2), (3, 4)", [(1, 2), (3, 4)]),
    ],
)
def test_a_value_may_have_the_form_of_python_or_json(hint: Any, text: str, value: Any) -> None:
    assert same(convert(hint, text), value)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "64.5"),
        (int, "1e400"),
        (int, "1e20"),  # no float is exact there
        (int, "True"),
        (int, "[64]"),
        (int, "null"),
        (bool, "1.0"),
        (bool, "2"),
        (float, "true"),
        (tuple[float, float], "[0.9]"),
        (tuple[float, float], "[0.9, 0.99"),
        (tuple[int, ...], "[1.5]"),
        (list[str], "[a, 'b']"),
        (list[str], "[[a], b]"),
        (list[int], "{1: 2}"),
        (int, "[" * 100_000),
    ],
)
def test_what_has_no_such_value_is_refused(hint: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text[:99])):
        convert(hint, text)


@pytest.mark.parametrize(
    ("hint", "text", "values"),
    [
        (float, "0.1,0.01", ["0.1", "0.01"]),
        (float, "[0.1, 0.01]", [0.1, 0.01]),
        (float, "(0.1, 0.01)", [0.1, 0.01]),
        (str, "[sgd, adamw]", ["sgd", "adamw"]),
        (str, "['sgd', 'adamw']", ["sgd", "adamw"]),
        (str, "it's,so", ["it's", "so"]),
        (tuple[int, ...], "64,32", ["64", "32"]),
        (tuple[int, ...], "[64,32]", ["[64,32]"]),
        (tuple[int, ...], "[64,32],[16]", ["[64,32]", "[16]"]),
        (tuple[float, float], "(0.9,0.999),(0.8,0.99)", ["(0.9,0.999)", "(0.8,0.99)"]),
        (tuple[float, float], "[[0.9, 0.999], [0.8, 0.99]]", [[0.9, 0.999], [0.8, 0.99]]),
        (list[str], "['a,b','(c'],[d]", ["['a,b','(c']", "[d]"]),
        (int | None, "none,3", ["none", "3"]),
    ],
)
def test_a_grid_lists_values_of_any_form(hint: Any, text: str, values: list[Any]) -> None:
    assert alternatives(hint, text) == values
