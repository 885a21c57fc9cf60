"""A command line from the arguments of a call: options, hyperparameters, words for a script."""

import ast
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import click

from launcher.cli.scripts import OF_SCRIPTS
from launcher.errors import BadInput
from launcher.recipe.file import RecipeFile, find, is_script
from launcher.script.script import file_of_module

_NOT_HERE = {"json", "help", "follow", "dry_run"}  # they are about what a console shows


class Asked(NamedTuple):
    """What a program has asked for."""

    what: str | os.PathLike[str] | None  # a recipe or a script; None: the module of a keyword
    keywords: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]  # more of them
    script_args: Sequence[str]

    @property
    def named(self) -> str:
        """The path or name of the recipe or script."""
        module = self.keywords.get("module")
        if (module is None) == (self.what is None):
            raise BadInput("name a recipe or a script, or give module=: one of them")
        return str(file_of_module(module)) if module else _path(self.what)

    @property
    def name(self) -> str:
        """What its runs are called."""
        module = self.keywords.get("module")
        return str(module).rpartition(".")[2] if module else Path(self.named).stem


def words_of(command: click.Command, asked: Asked) -> list[str]:
    """Return the words of a command: an option by each keyword that is one, else key=value.

    The file of a recipe or script is read, and not run. Raises BadInput for what is none, and for
    a value that no word can express.
    """
    file = find(asked.named)
    script = is_script(file)
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    if not script:  # a recipe has hyperparameters of those names
        options = {n: one for n, one in options.items() if n not in OF_SCRIPTS or n == "module"}
    told: list[str] = []
    for name, value in asked.keywords.items():
        if name in _NOT_HERE:
            raise BadInput(f"`{name}` is an option of the command line alone")
        if name in options:
            told += _option(options[name], value)
    given = {name: value for name, value in asked.keywords.items() if name not in options}
    if script:
        _refuse_hyperparameters([*given, *asked.hyperparameters], file)
    else:
        _refuse_clash(asked, options.keys() & asked.keywords.keys(), file)
        told += [_pair(*pair) for pair in (given | dict(asked.hyperparameters)).items()]
    own = [] if asked.what is None else [_path(asked.what)]
    after = ["--", *asked.script_args] if asked.script_args else []
    words = [*own, *told, *after]
    if odd := next((word for word in words if "\0" in word), None):
        raise BadInput(f"no command can be given {odd!r}: it has a null character")
    return words


def _refuse_hyperparameters(names: Sequence[str], file: RecipeFile) -> None:
    if names:
        raise BadInput(
            f"`{names[0]}` is no option, and {file.path.name} is a script",
            hint="what is the script's own goes into script_args: script_args=['--lr', '1e-3']",
        )


def _refuse_clash(asked: Asked, options: Iterable[str], file: RecipeFile) -> None:
    """Raise BadInput where it is not clear what is meant, or nobody would hear it."""
    if asked.script_args:
        raise BadInput(f"script_args are for scripts, and {file.path.name} is a recipe")
    if twice := asked.keywords.keys() & asked.hyperparameters.keys():
        raise BadInput(f"`{min(twice)}` is given as a keyword and in `hyperparameters`")
    fields = {
        node.target.id
        for node in ast.walk(ast.parse(file.source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    if both := fields.intersection(options):
        name = min(both)
        raise BadInput(
            f"`{name}` is an option of the launcher and a hyperparameter of {file.path.name}",
            hint=f"the hyperparameter is given as hyperparameters={{'{name}': ...}}",
        )


def _pair(name: str, value: Any) -> str:
    if not name.isidentifier():
        raise BadInput(f"`{name}` cannot be the name of a hyperparameter")
    return f"{name}={text_of(name, value)}"


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
    if name == "on_resume" and isinstance(value, list | tuple):
        value = shlex.join(_word(name, one) for one in value)
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


def _path(what: Any) -> str:
    """Return a name or a path so that it is not taken for an option, or for key=value."""
    path = os.fspath(what) if isinstance(what, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise BadInput(f"a recipe or a script is named by its path, not {what!r}")
    return str(Path.cwd() / path) if path.startswith("-") else path


def words_for_script(words: Iterable[Any]) -> list[str]:
    """Return the words for a script as text; raises BadInput for what are none."""
    if isinstance(words, str | bytes):
        hint = "give them one by one: script_args=['--lr', '1e-3']"
        raise BadInput("script_args is a list of words, not one text", hint=hint)
    return [_word("script_args", word) for word in words]
