"""The command `launcher recipes`: list, show and copy them."""

from pathlib import Path

import click

from launcher.cli.say import say
from launcher.errors import BadInput
from launcher.files import make_folders, remove_empty
from launcher.processes import shown
from launcher.recipe.file import bundled, find, one_line, outline
from launcher.recipe.hyperparameters import table


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the bundled recipes, show one, or copy one to edit."""
    if ctx.invoked_subcommand is None:
        files = [find(path.stem) for path in bundled()]
        width = max(len(file.name) for file in files)
        for file in files:
            say(f"{file.name:<{width}}  {one_line(file)}")


@recipes.command("show")
@click.argument("recipe")
def show(recipe: str) -> None:
    """Print every hyperparameter of RECIPE with type, default and meaning."""
    file = find(recipe)
    hyperparameters = table(outline(file))
    say(f"{file.name}: {one_line(file)}\n{file.path}\n\n{hyperparameters}")


@recipes.command("copy")
@click.argument("recipe")
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def copy(recipe: str, target: Path) -> None:
    """Copy RECIPE to FILE, for you to edit."""
    file = find(recipe)
    made: list[Path] = []
    try:
        made = make_folders(target.parent)
        with target.open("x", encoding="utf-8", newline="") as copied:
            copied.write(file.source)
    except FileExistsError as error:
        hint = "give another name; nothing was overwritten"
        raise BadInput(f"`{target}` exists", hint=hint) from error
    except OSError as error:
        remove_empty(made)
        raise BadInput(f"`{target}` cannot be written: {error.strerror}") from error
    say(f"copied; train it with: launcher run {shown(target)}")
