"""Values of hyperparameters: from text or JSON to the annotated type.

Text is read as it stands on a command line (`0.1`, `1,2,3`, `true`, `none`), and where that does
not give the type, as Python or JSON would (`[0.9, 0.999]`, `(64, 64)`, `1e3`, `null`).
"""

import ast
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

# What a hyperparameter may be made of, and the text or JSON values it is converted from.
_FROM: Mapping[Any, tuple[type, ...]] = {
    bool: (str, bool),
    int: (str, int),
    float: (str, int, float),
    str: (str,),
    Path: (str, Path),
}
_EXACT = 2**53  # whole floats below it are what was written
_PARSERS: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)


def is_expressible(hint: Any) -> bool:
    """Whether text and JSON can express all values of a type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, tuple, list):
        parts = (a for a in typing.get_args(hint) if a not in (types.NoneType, Ellipsis))
        return all(map(is_expressible, parts))
    return origin is Literal or hint in _FROM


def convert(hint: Any, value: Any) -> Any:
    """Convert text or a JSON value to the annotated type; raises ValueError."""
    for form in _forms(value):
        with suppress(ValueError, OverflowError):
            return _as_it_stands(hint, form)
    raise ValueError(value)


def alternatives(hint: Any, text: str) -> list[Any]:
    """Return the values that text lists for one hyperparameter: `1,2`, `[1, 2]`, `(1,2),(3,4)`."""
    values = _split(text)
    if len(values) > 1 or not _is_bracketed(text):
        return list(values)
    if _takes_lists(hint):
        with suppress(ValueError):
            convert(hint, text)
            return [text]
    return next(_lists(text), [text])


def is_seconds(text: str) -> bool:
    """Whether text is a time in seconds, such as 10s or 0.5s."""
    number = text.removesuffix("s")
    return number != text and re.fullmatch(r"\d+(\.\d+)?", number) is not None and float(number) > 0


def _forms(value: Any) -> Iterator[Any]:
    """Give a value as it stands, then what else it may mean."""
    yield value
    parsed = [*_parsed(value)] if isinstance(value, str) else [value]
    yield from parsed
    for number in parsed:
        if isinstance(number, float) and number.is_integer() and abs(number) < _EXACT:
            yield int(number)


def _parsed(text: str) -> Iterator[Any]:
    for parse in _PARSERS:
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            yield parse(text.strip())


def _as_it_stands(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value)
    if origin is Literal:
        return _choice(arguments, value)
    if origin in (tuple, list):
        return _several(hint, value)
    if not isinstance(value, _FROM[hint]) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(value)
    return _truth(value) if hint is bool else hint(value)


def _one_of(arguments: tuple[Any, ...], value: Any) -> Any:
    """Convert to the first type that takes a value as it stands, else to the first at all."""
    if types.NoneType in arguments and _is_none(value):
        return None
    for take in (_as_it_stands, convert):
        for argument in arguments:
            if argument is not types.NoneType:
                with suppress(ValueError, OverflowError):
                    return take(argument, value)
    raise ValueError(value)


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if str(choice) == str(value) or (choice is None and _is_none(value)):
            return choice
    for choice in choices:
        with suppress(ValueError):
            if type(choice) in _FROM and convert(type(choice), value) == choice:
                return choice
    raise ValueError(value)


def _several(hint: Any, value: Any) -> Any:
    """Convert the parts of a tuple or list."""
    for parts in _lists(value) if isinstance(value, str) else [value]:
        if isinstance(parts, tuple | list):
            with suppress(ValueError):
                return typing.get_origin(hint)(_parts(hint, parts))
    raise ValueError(value)


def _parts(hint: Any, parts: tuple[Any, ...] | list[Any]) -> list[Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list or Ellipsis in arguments:  # of any length
        arguments = arguments[:1] * len(parts)
    return [convert(argument, part) for argument, part in zip(arguments, parts, strict=True)]


def _lists(text: str) -> Iterator[list[Any]]:
    """Give what text may list: `1,2,3`; in brackets what Python, JSON or a shell makes of it."""
    if not _is_bracketed(text):
        yield text.split(",") if text else []
        return
    yield from (list(parsed) for parsed in _parsed(text) if isinstance(parsed, tuple | list))
    words = text.strip()[1:-1]
    if not set(words) & set("[]()\"'"):
        yield [word.strip() for word in words.split(",")]


def _is_bracketed(text: str) -> bool:
    whole = text.strip()
    return whole[:1] + whole[1:][-1:] in ("[]", "()")


def _split(text: str) -> list[str]:
    """Split text at its commas, but for those in brackets."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or (depth and letter in "\"'"):
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter in "[(") - (letter in ")]")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _takes_lists(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(map(_takes_lists, typing.get_args(hint)))
    return typing.get_origin(hint) in (tuple, list)


def _is_none(value: Any) -> bool:
    return value is None or str(value).lower() in ("none", "null")


def _truth(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]
