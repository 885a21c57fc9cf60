"""Commands whose words are hyperparameters: `key=value` behind a recipe or a run directory."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import click

from launcher.cli.answers import Answers
from launcher.cli.scripts import refuse_option_of_script
from launcher.errors import BadInput, LauncherError, nearest
from launcher.recipe.base import Recipe
from launcher.recipe.file import find, outline
from launcher.recipe.hyperparameters import describe, meant
from launcher.run.directory import RunDir

GIVEN = f"{__name__}.given"  # in `Context.meta`: all words, for the same command elsewhere


class TakesHyperparameters(Answers):
    """Says how a hyperparameter is given that was given as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; raises BadInput with the form that was meant."""
        given = list(args)  # click takes words away
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            refuse_option_of_script(error.option_name, given)
            _refuse_option(error, given)
            raise


class PassesOn(TakesHyperparameters):
    """Leaves what comes after `--` in `Context.args`, for another program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what comes before `--`."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[GIVEN] = list(args)
        super().parse_args(ctx, args[:at])
        ctx.args = args[at + 1 :]
        return ctx.args


def _refuse_option(error: click.NoSuchOption, args: Sequence[str]) -> None:
    """Raise BadInput where an option that is none has the name of a hyperparameter."""
    at = [word.startswith(error.option_name) for word in args].index(True)
    option, _, value = args[at].partition("=")
    known = _hyperparameters(word for word in args if word[:1] != "-" and "=" not in word)
    found = meant(option, known)
    if found is None and not error.possibilities:
        found = nearest(option.lstrip("-").replace("-", "_"), known)
    if found:
        following = [word for word in args[at + 1 :][:1] if word[:1] != "-" and "=" not in word]
        given = next(map(shlex.quote, [value] if value else following), "...")
        raise BadInput(
            f"there is no option {option}",
            hint=f"hyperparameters are given as key=value: {found}={given}",
        ) from error


def _hyperparameters(words: Iterable[str]) -> list[str]:
    """Return the hyperparameters of the first recipe or run that is named, else those of all."""
    for word in words:
        with suppress(LauncherError, KeyError):
            if Path(word).is_dir():
                return list(RunDir(Path(word)).read_config()["hyperparameters"])
            return [one.name for one in describe(outline(find(word)))]
    return list(Recipe.__dataclass_fields__)
