"""What is not for everybody's eyes, and what a terminal must not act upon."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_SECRETS = ("token", "secret", "password", "key")
_MASK = "***"
# Texts that turn the direction of writing can make a line read as another.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def is_secret(name: str, value: Any) -> bool:
    """Whether a hyperparameter is to be shown as ***: by its name, and never where it is a number.

    Its name is, or ends in, `_token`, `_secret`, `_password` or `_key`.
    """
    if isinstance(value, list | tuple):
        return any(is_secret(name, part) for part in value)
    is_number = value is None or isinstance(value, bool | int | float)
    return name.lower().rpartition("_")[2] in _SECRETS and not is_number and value != ""


def masked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters as they may be shown."""
    return {name: shown_value(name, value) for name, value in parameters.items()}


def shown_value(name: str, value: Any) -> Any:
    """Return the value of a hyperparameter as it may be shown."""
    return _MASK if is_secret(name, value) else value


def masked_words(words: Iterable[str], parameters: Mapping[str, Any]) -> list[str]:
    """Return a command line as it may be shown; whether a value is text, `parameters` tell."""
    pairs = [(word, *word.partition("=")) for word in words]
    return [
        f"{name}={_MASK}"
        if equals and is_secret(name.replace("-", "_"), parameters.get(name, value))
        else word
        for word, name, equals, value in pairs
    ]


def masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json, or a session in one, as it may be shown."""
    parameters, command = config.get("hyperparameters"), config.get("command")
    parameters = parameters if isinstance(parameters, dict) else {}
    shown = dict(config) | ({"hyperparameters": masked(parameters)} if parameters else {})
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        shown["command"] = _masked_options(masked_words(command, parameters))
    script = config.get("script")
    if isinstance(script, dict) and isinstance(script.get("args"), list):
        words = [str(word) for word in script["args"]]
        shown["script"] = script | {"args": _masked_options(masked_words(words, {}))}
    if isinstance(changes := config.get("changes"), dict):
        shown["changes"] = {name: shown_value(name, both) for name, both in changes.items()}
    sessions = config.get("resumed")
    if isinstance(sessions, list):
        shown["resumed"] = [
            masked_config(one) if isinstance(one, dict) else one for one in sessions
        ]
    if isinstance(first := config.get("first_session"), dict):
        shown["first_session"] = masked_config(first)
    return shown


def _masked_options(words: Iterable[str]) -> list[str]:
    """Return a command line with what follows options like `--api-key` as it may be shown."""
    shown, secret = [], False
    for word in words:
        shown.append(_MASK if secret and not word.startswith("-") else word)
        secret = word.startswith("-") and is_secret(word.replace("-", "_"), word)
    return shown


def clean(text: str) -> str:
    """Return a text that a terminal only shows: what it would act upon is written as \\x1b.

    For whatever comes out of files and programs. Lines and tabs stay.
    """
    return "".join(char if _is_harmless(char) else _written(char) for char in text)


def clean_log(text: str) -> str:
    """Return a log with the colours and the progress bars that are usual in one, and no more."""
    parts = _COLOUR.split(text)
    lines = ["\r".join(map(clean, part.split("\r"))) for part in parts[::2]]
    colours = [*parts[1::2], ""]
    return "".join(line + colour for line, colour in zip(lines, colours, strict=True))


def _is_harmless(char: str) -> bool:
    if char.isprintable() or char in "\n\t":
        return True
    return unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") and char not in _TURNS


def _written(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
