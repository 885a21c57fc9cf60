"""Hyperparameters of a recipe: described, read from `key=value`, checked against their types."""

import ast
import dataclasses
import inspect
import io
import itertools
import json
import re
import shlex
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from launcher.errors import RecipeError, did_you_mean
from launcher.masks import shown_value
from launcher.recipe.base import Recipe
from launcher.recipe.groups import GROUPS, Length
from launcher.recipe.values import alternatives, convert, is_expressible

# What people call hyperparameters that every recipe has, or many have.
_SHORT = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "mbs": "micro_batch_size",
    "wd": "weight_decay",
    "mom": "momentum",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "workers": "num_workers",
    "precision": "mixed_precision",
    "amp": "mixed_precision",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "ema": "ema_decay",
    "grad_clip": "clip_norm",
    "clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "random_seed": "seed",
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
    """Return every hyperparameter of a recipe, a line each, for people: first its own."""
    rows = {
        h.name: (h.name, h.type, shown(shown_value(h.name, h.default)), h.meaning)
        for h in describe(recipe_type)
    }
    widths = [max(len(row[column]) for row in rows.values()) for column in range(3)]
    sections = {"Its own": [*rows]}
    for group in GROUPS:
        title, names = str(group.__doc__).rstrip("."), [f.name for f in dataclasses.fields(group)]
        sections[title] = [name for name in names if name in rows]
        sections["Its own"] = [name for name in sections["Its own"] if name not in names]
    return "\n\n".join(
        "\n".join([f"{title}:", *(_aligned(rows[name], widths) for name in names)])
        for title, names in sections.items()
        if names
    )


def _aligned(row: Iterable[str], widths: Iterable[int]) -> str:
    *cells, meaning = row
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(["", *padded, meaning]).rstrip()


def shown(default: Any) -> str:
    """Return a default as it is given on the command line."""
    if isinstance(default, tuple | list):
        parts = [shown(part) for part in default]
        plain = all(parts) and not set("".join(parts)) & set(",[]()")
        return ",".join(parts) if plain else json.dumps(default, default=str)
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def configure(recipe_type: type[Recipe], name: str, values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from hyperparameters, given as text (`key=value`) or as JSON values.

    Raises RecipeError for an unknown key, a wrong type or a value out of range.
    """
    hints = _hyperparameter_types(recipe_type)
    _refuse_two_lengths(recipe_type, name)
    typed = {}
    for key, value in values.items():
        typed[key] = _typed(key, _hint(key, name, hints), value)
    words = [key for key, value in values.items() if isinstance(value, str)]
    typed |= one_length(key for key in words if typed[key] is not None)
    try:
        return recipe_type(**typed)
    except (AssertionError, TypeError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise RecipeError(f"recipe `{name}` refuses its hyperparameters: {why}") from error


def one_length(given: Iterable[str]) -> dict[str, None]:
    """Return what else holds where a run's length is given by these hyperparameters.

    Raises RecipeError where it is given twice.
    """
    lengths = {"epochs", "steps"}.intersection(given)
    if len(lengths) > 1:
        raise RecipeError(
            "`epochs` and `steps` are both given, and each says how long the run is",
            hint="give one of them",
        )
    return {"steps": None} if "epochs" in lengths else {}


def _refuse_two_lengths(recipe_type: type[Recipe], name: str) -> None:
    others = [one for one in recipe_type.__mro__ if one is not Length]
    own = {field for one in others for field in inspect.get_annotations(one)}
    fields = {field.name: field for field in dataclasses.fields(recipe_type)}
    if {"epochs", "steps"} <= own and _default(fields["steps"]) is not None:
        raise RecipeError(
            f"recipe `{name}` sets both `epochs` and `steps`, each of which says how long it runs",
            hint="leave one of them out of its class, and of those it inherits from",
        )


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return the hyperparameter that somebody calls by another name, None where it is not known."""
    key = name.lstrip("-").replace("-", "_").lower()
    return next((one for one in (key, _SHORT.get(key)) if one in {*known}), None)


def grid(recipe_type: type[Recipe], name: str, axes: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Give each combination of the values that are listed for some hyperparameters.

    The last one moves fastest. Raises RecipeError for one that the recipe does not have.
    """
    hints = _hyperparameter_types(recipe_type)
    values = [alternatives(_hint(key, name, hints), text) for key, text in axes.items()]
    for point in itertools.product(*values):
        yield dict(zip(axes, point, strict=True))


def _hint(key: str, name: str, hints: Mapping[str, Any]) -> Any:
    """Return the type of a hyperparameter; raises RecipeError for one that is not there."""
    if key in hints:
        return hints[key]
    found = meant(key, hints)
    guess = f"did you mean `{found}`? " if found else did_you_mean(key, hints)
    raise RecipeError(
        f"recipe `{name}` has no hyperparameter `{key}`",
        hint=f"{guess}`launcher recipes show {shlex.quote(name)}` lists them",
    )


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
        if not is_expressible(hints[name]):
            raise RecipeError(
                f"hyperparameter `{name}` cannot be of type {_type_name(hints[name])}",
                hint="bool, int, float, str, Path and Literal can be given as text, also several "
                "in a tuple or list, or with `| None`",
            )
    return {name: hints[name] for name in fields}


def _typed(key: str, hint: Any, value: Any) -> Any:
    try:
        return convert(hint, value)
    except ValueError as error:
        raise RecipeError(
            f"`{key}` must be {_type_name(hint)}, not `{shown_value(key, value)}`"
        ) from error


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
