"""Commands whose words are hyperparameters (`key=value`), or go to a program or another host."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from launcher.cli.answers import Answers
from launcher.cli.scripts import refuse_option_of_script
from launcher.errors import BadInput, LauncherError, nearest
from launcher.recipe.base import Recipe
from launcher.recipe.file import find, outline
from launcher.recipe.hyperparameters import describe, meant
from launcher.run.directory import RunDir

GIVEN = f"{__name__}.given"  # in `Context.meta`: all words, for the same command elsewhere
_NAMED = f"{__name__}.named"  # and which of them name runs, by position


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


class _Word(str):
    """A word that is told from others of the same letters: `--rank 0` from a run's name."""

    __slots__ = ()


class OrThere(click.Command):
    """A command that runs here or there; its only argument names a run, or several."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and keep the words."""
        words = [_Word(word) for word in (str(self.name), *args)]
        rest = super().parse_args(ctx, args)
        found, _, _ = self.make_parser(ctx).parse_args(args=list(words[1:]))
        # Where none is named click has a value of its own for that.
        given = [found["run_dir"]] if "run_dir" in found else ctx.params["which"] and found["which"]
        ctx.meta[GIVEN] = words
        ctx.meta[_NAMED] = [
            at for at, word in enumerate(words) if any(word is one for one in given)
        ]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command here or there."""
        from launcher.remote import place as places  # noqa: PLC0415  # these commands alone

        if (code := places.run_there(ctx.meta[GIVEN], ctx.meta[_NAMED])) is not None:
            ctx.exit(code)
        return super().invoke(ctx)


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
