"""What commands take for scripts: which file is one, its options, and words that are wrong."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from launcher.cli.options import Finite
from launcher.errors import BadInput, LauncherError
from launcher.recipe.file import MAIN, RecipeFile, find, is_script
from launcher.script.script import Script, file_of_module
from launcher.script.script import words as split_words

_SIGNALS = ("TERM", "USR1", "USR2", "INT", "HUP")
OF_SCRIPTS = ("module", "progress", "on_resume", "stop_signal", "grace", "hang_timeout")
_OPTIONS = (
    click.option("-m", "module", metavar="MODULE", help="A module instead, as of `python -m`."),
    click.option(
        "--progress",
        type=click.Path(),
        metavar="FOLDER|FILE",
        help="Where a script saves: a restart is worth it when the newest file there has changed.",
    ),
    click.option(
        "--on-resume",
        metavar="WORDS",
        help="Arguments that a script gets at later starts, once --progress holds something.",
    ),
    click.option(
        "--stop-signal",
        type=click.Choice(_SIGNALS, case_sensitive=False),
        help="What asks a script to stop. [default: TERM]",
    ),
    click.option(
        "--grace",
        type=Finite(0),
        metavar="SECONDS",
        help="What a script gets to stop. [default: what SLURM leaves, else all it takes]",
    ),
    click.option(
        "--hang-timeout",
        type=Finite(0, min_open=True),
        metavar="SECONDS",
        help="End a script when no log and nothing under --progress grows for so long.",
    ),
)


def with_script_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for scripts; `what` takes them together."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def script_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a command's options that are for scripts."""
    return {name: options[name] for name in OF_SCRIPTS}


class What(NamedTuple):
    """What a command was asked to run."""

    file: RecipeFile
    word: str  # as it was named
    words: tuple[str, ...]  # behind it, and before `--`
    script: Script | None  # None: it is a recipe


def what(
    named: str | None,
    words: tuple[str, ...],
    passed: Sequence[str],
    nproc: int | None,
    options: Mapping[str, Any],
) -> What:
    """Return the recipe or script that is `named`, or the module in `options`.

    Raises BadInput for options of scripts with a recipe, and words before `--` with a script.
    """
    module = options["module"]
    if module:
        words = words if named is None else (named, *words)
        named = str(file_of_module(module))
    if named is None:
        raise click.UsageError("Missing argument 'RECIPE' (or SCRIPT, or -m MODULE).")
    file = find(named)
    if not is_script(file):
        given = [name for name, value in options.items() if value is not None and name != "module"]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise BadInput(f"{option} is for scripts, and {file.path.name} is a recipe")
        return What(file, named, words, None)
    if words:
        raise _not_ours(words[0], words, f"-m {module}" if module else named)
    path = Path(named, MAIN) if Path(named).is_dir() else Path(named)
    script = Script(
        file=None if module else str(path.absolute()),
        word=None if module else named,
        module=module,
        args=list(passed),
        nproc=nproc,
        progress=options["progress"],
        on_resume=split_words(options["on_resume"]),
        stop_signal=options["stop_signal"] or "TERM",
        grace=options["grace"],
        hang_timeout=options["hang_timeout"],
    )
    name = module.rpartition(".")[2] if module else file.name
    # Byte by byte, whatever its encoding.
    source = file.path.read_bytes().decode(errors="surrogateescape")
    return What(file._replace(name=name, source=source), named, (), script)


def refuse_for_script(what: What, **options: object) -> None:
    """Raise BadInput where an option was given that only a recipe can follow."""
    if what.script:
        for name, value in options.items():
            if value:
                option = f"--{name.replace('_', '-')}"
                raise BadInput(
                    f"{option} is for recipes, and {what.file.path.name} is a script",
                    hint="what follows -- is the script's own",
                )


def refuse_words(words: Sequence[str]) -> None:
    """Raise BadInput where something is said to a script that goes on."""
    if words:
        hint = "`launcher run` starts it with others"
        raise BadInput(f"`{words[0]}`: a script goes on with the arguments it had", hint=hint)


def refuse_option_of_script(option: str, args: Sequence[str]) -> None:
    """Raise BadInput for an option that is none of ours where a script is named beside it."""
    named = [f"-m {args[at + 1]}" for at, word in enumerate(args[:-1]) if word == "-m"]
    for word in [] if named else args:
        with suppress(LauncherError):
            if not word.startswith("-") and is_script(find(word)):
                named.append(word)
    if named:
        at = [word.startswith(option) for word in args].index(True)
        raise _not_ours(args[at], args[at:], named[0])


def _not_ours(word: str, rest: Sequence[str], named: str) -> BadInput:
    return BadInput(
        f"`{word}` is none of the launcher's words for a script",
        hint=f"what follows -- is the program's: launcher run {named} -- {shlex.join(rest)}",
    )
