"""A command line from the arguments of a call: options, hyperparameters, words for a script."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import click

from launcher.errors import BadInput

_NOT_HERE = {"json", "help", "follow", "dry_run"}  # they are about what a console shows


def words_of(
    command: click.Command,
    what: str | os.PathLike[str] | None,
    keywords: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    script_args: Iterable[Any],
) -> list[str]:
    """Return the words of a command: an option by each keyword that is one, else key=value.

    `what` is a recipe or a script. Raises BadInput for a value that no word can express.
    """
    if twice := keywords.keys() & hyperparameters.keys():
        raise BadInput(f"`{min(twice)}` is given as a keyword and in `hyperparameters`")
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    told: list[str] = []
    for name, value in keywords.items():
        if name in _NOT_HERE:
            raise BadInput(f"`{name}` is an option of the command line alone")
        if name in options:
            told += _option(options[name], value)
    own = {name: value for name, value in keywords.items() if name not in options}
    for name, value in (own | dict(hyperparameters)).items():
        if not name.isidentifier():
            raise BadInput(f"`{name}` cannot be the name of a hyperparameter")
        told.append(f"{name}={text_of(name, value)}")
    words = [*([] if what is None else [_path(what)]), *told, *_for_script(script_args)]
    if odd := next((word for word in words if "\0" in word), None):
        raise BadInput(f"no command can be given {odd!r}: it has a null character")
    return words


def text_of(name: str, value: Any) -> str:
    """Return the value of a hyperparameter as text that is read back as that value."""
    plain = _plain(name, value)
    if isinstance(plain, list):
        return json.dumps(plain, ensure_ascii=False)
    if plain is None or isinstance(plain, bool):
        return str(plain).lower()
    return str(plain)


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON has it; raises BadInput for one that a hyperparameter cannot have."""
    if isinstance(value, Enum):
        return _plain(name, value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(name, part) for part in value]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(name, value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadInput(
        f"`{name}` cannot be given as {type(value).__name__}",
        hint="bool, int, float, str, Path, an Enum of them, and lists and tuples can",
    )


def _option(option: click.Option, value: Any) -> list[str]:
    """Return an option as words, [] where it is left as it is."""
    name, spelled = option.name, max(option.opts, key=len)
    if option.is_flag:
        if not isinstance(value, bool | None):
            raise BadInput(f"`{name}` is True or False, not {value!r}")
        return [spelled] if value else []
    values = _several(value) if option.multiple else [value]
    return [_joined(spelled, _word(name, one)) for one in values if one is not None]


def _joined(option: str, value: str) -> str:
    """Return an option with its value in one word, so that a value may begin with a dash."""
    return f"{option}={value}" if option.startswith("--") else f"{option}{value}"


def _several(value: Any) -> Sequence[Any]:
    """Return the values of an option that may be repeated; a mapping is key=value each."""
    if isinstance(value, Mapping):
        return [f"{key}={_listed(key, one)}" for key, one in value.items()]
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _listed(key: str, value: Any) -> str:
    """Return values for a grid, or one value of sbatch's."""
    values = value if isinstance(value, list | tuple) else [value]
    return ",".join(text_of(key, one) for one in values)


def _word(name: str | None, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str | os.PathLike):
        raise BadInput(f"`{name}` cannot be {value!r}")
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _path(what: str | os.PathLike[str]) -> str:
    """Return a name or a path so that it is not taken for an option, or for key=value."""
    path = os.fspath(what)
    if not isinstance(path, str) or not path:
        raise BadInput(f"a recipe or a script is named by its path, not {what!r}")
    return str(Path.cwd() / path) if path.startswith("-") else path


def _for_script(words: Iterable[Any]) -> list[str]:
    if isinstance(words, str | bytes):
        hint = "give them one by one: script_args=['--lr', '1e-3']"
        raise BadInput("script_args is a list of words, not one text", hint=hint)
    told = [_word("script_args", word) for word in words]
    return ["--", *told] if told else []
