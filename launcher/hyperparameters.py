"""Hyperparameters of a recipe: described, read from `key=value`, checked against their types."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from launcher.errors import RecipeError, did_you_mean
from launcher.recipe import Recipe

# What a hyperparameter may be made of, and the text or JSON values it is converted from.
_FROM: Mapping[Any, tuple[type, ...]] = {
    bool: (str, bool),
    int: (str, int),
    float: (str, int, float),
    str: (str,),
    Path: (str, Path),
}


class Hyperparameter(NamedTuple):
    """One field of a recipe, as `launcher recipes show` prints it."""

    name: str
    type: str
    default: Any
    meaning: str


def describe(recipe_type: type[Recipe]) -> list[Hyperparameter]:
    """Return every hyperparameter of a recipe with type, default and meaning."""
    hints = _hyperparameter_types(recipe_type)
    meanings: dict[str, str] = {}
    for ancestor in reversed(recipe_type.__mro__[:-1]):
        meanings |= _comments_behind_fields(ancestor)
    return [
        Hyperparameter(
            field.name, _type_name(hints[field.name]), _default(field), meanings.get(field.name, "")
        )
        for field in dataclasses.fields(recipe_type)
        if field.name in hints
    ]


def table(recipe_type: type[Recipe]) -> str:
    """Return every hyperparameter of a recipe, a line each, for people."""
    rows = [(h.name, h.type, shown(h.default), h.meaning) for h in describe(recipe_type)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {default:<{widths[2]}}  {meaning}".rstrip()
        for name, kind, default, meaning in rows
    )


def shown(default: Any) -> str:
    """Return a default as it is given on the command line."""
    if isinstance(default, tuple | list):
        return ",".join(map(shown, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def configure(recipe_type: type[Recipe], name: str, values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from hyperparameters, given as text (`key=value`) or as JSON values.

    Raises RecipeError for an unknown key, a wrong type or a value out of range.
    """
    hints = _hyperparameter_types(recipe_type)
    typed = {}
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(
                f"recipe `{name}` has no hyperparameter `{key}`",
                hint=f"{did_you_mean(key, hints)}`launcher recipes show {name}` lists them",
            )
        typed[key] = _typed(key, hints[key], value)
    try:
        return recipe_type(**typed)
    except (AssertionError, TypeError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise RecipeError(f"recipe `{name}` refuses its hyperparameters: {why}") from error


def split_overrides(words: Iterable[str]) -> dict[str, str]:
    """Turn `key=value` words into a dictionary; raises RecipeError for any other word."""
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"`{word}` is not of the form key=value",
                hint="hyperparameters follow the recipe, like `epochs=10 learning_rate=3e-4`",
            )
        if key in overrides:
            raise RecipeError(f"hyperparameter `{key}` is given twice")
        overrides[key] = value
    return overrides


def _hyperparameter_types(recipe_type: type[Recipe]) -> dict[str, Any]:
    """Return the type of each hyperparameter by name.

    Raises RecipeError for a type that text and JSON cannot express, and for the name of a method.
    """
    try:
        hints = typing.get_type_hints(recipe_type)
    except (AttributeError, NameError, SyntaxError, TypeError) as error:
        raise RecipeError(f"a type in `{recipe_type.__name__}` is unknown: {error}") from error
    fields = [field.name for field in dataclasses.fields(recipe_type) if field.init]
    for name in fields:
        if callable(getattr(Recipe, name, None)):
            raise RecipeError(
                f"hyperparameter `{name}` has the name of a recipe's method",
                hint=f"call it something else, like `{name}_name`",
            )
        if not _is_expressible(hints[name]):
            raise RecipeError(
                f"hyperparameter `{name}` cannot be of type {_type_name(hints[name])}",
                hint="bool, int, float, str, Path and Literal can be given as text, also several "
                "in a tuple or list, or with `| None`",
            )
    return {name: hints[name] for name in fields}


def _is_expressible(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, tuple, list):
        parts = (a for a in typing.get_args(hint) if a not in (types.NoneType, Ellipsis))
        return all(_is_expressible(part) for part in parts)
    return origin is Literal or hint in _FROM


def _typed(key: str, hint: Any, value: Any) -> Any:
    try:
        return _convert(hint, value)
    except (ValueError, OverflowError) as error:
        raise RecipeError(f"`{key}` must be {_type_name(hint)}, not `{value}`") from error


def _convert(hint: Any, value: Any) -> Any:
    """Convert text or a JSON value to the annotated type; raises ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value)
    if origin is Literal:
        return _convert_literal(arguments, value)
    if origin in (tuple, list):
        return origin(_convert_parts(hint, value))
    if not isinstance(value, _FROM[hint]) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(value)
    return _convert_bool(value) if hint is bool else hint(value)


def _convert_parts(hint: Any, value: Any) -> list[Any]:
    """Convert the parts of a tuple or list; as text they are `1,2,3`."""
    arguments = typing.get_args(hint)
    if isinstance(value, str):
        value = value.split(",") if value else []
    if not isinstance(value, tuple | list):
        raise ValueError(value)  # noqa: TRY004  # like every value of a wrong type
    if typing.get_origin(hint) is list or Ellipsis in arguments:  # of any length
        arguments = arguments[:1] * len(value)
    return [_convert(argument, part) for argument, part in zip(arguments, value, strict=True)]


def _convert_union(arguments: tuple[Any, ...], value: Any) -> Any:
    if types.NoneType in arguments and (value is None or str(value).lower() == "none"):
        return None
    for argument in (a for a in arguments if a is not types.NoneType):
        try:
            return _convert(argument, value)
        except ValueError:
            continue
    raise ValueError(value)


def _convert_literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise ValueError(value)


def _convert_bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(f"{choice}" for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in typing.get_args(hint))
    if hint is types.NoneType:
        return "none"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)" if field.default is dataclasses.MISSING else field.default


def _comments_behind_fields(cls: type) -> dict[str, str]:
    """Read `name: type = default  # meaning` from the source of a class."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    comments = {
        token.start[0]: re.sub(r"^#+:?\s*", "", token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(statement.target): comments[statement.end_lineno]
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and statement.end_lineno in comments
    }
