"""The commands about a recipe that start nothing: list, show and copy them, debug one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from launcher.cli.answers import JSON, is_asked, tell
from launcher.cli.options import INIT_FROM
from launcher.cli.say import say
from launcher.cli.words import TakesHyperparameters
from launcher.errors import BadInput
from launcher.files import make_folders, remove_empty
from launcher.launch.replay import Plan, make_together, plan, scratch, spec_of
from launcher.launch.resume import check_is_run, recipe_of, refuse_script, where_it_began
from launcher.processes import shown
from launcher.recipe.file import bundled, find, load, one_line, outline
from launcher.recipe.hyperparameters import configure, split_overrides, table
from launcher.run.directory import RunDir
from launcher.run.listing import rows_of
from launcher.run.rows import finite
from launcher.run.weights import weights_of


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


@click.command(cls=TakesHyperparameters)
@click.argument("what", metavar="RECIPE|RUN_DIR")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--steps", type=click.IntRange(1), help="Batches of RECIPE. [default: 3]")
@INIT_FROM
@click.option("--step", type=click.IntRange(0), help="Make this step of RUN_DIR again.")
@click.option("--nproc", type=click.IntRange(1), help="By so many. [default: as the run had it]")
@click.option("--rank", type=click.IntRange(0), help="Who gets the terminal. [default: 0]")
@click.option("--rows", is_flag=True, help="List the samples of the step, the worst first.")
@JSON
def debug(
    what: str,
    words: tuple[str, ...],
    steps: int | None,
    init_from: Path | None,
    step: int | None,
    nproc: int | None,
    rank: int | None,
    rows: bool,
) -> None:
    """Train a few batches of RECIPE in this process, on the CPU, and test a few.

    breakpoint() and debuggers work, tracebacks are whole, anomaly detection is on, and nothing
    is written.

    With RUN_DIR and --step N: go to step N as the run did, stop before it in the debugger, and make
    it again. Steps count from 0; without a terminal it only says what it came to.
    """
    if _is_run(what) or (step is not None and Path(what).is_dir()):
        given = {"KEY=VALUE": words, "--steps": steps, "--init-from": init_from}
        if others := [name for name, value in given.items() if value]:
            raise BadInput(f"{others[0]} is for a recipe, and `{what}` is a run")
        _debug_step(RunDir(Path(what).absolute()), step, nproc, rank, rows=rows)
        return
    given = {"--step": step, "--nproc": nproc, "--rank": rank, "--rows": rows or None}
    for name, value in given.items():
        if value is not None:
            hint = "`launcher debug RUN_DIR --step N` makes a step of a run again"
            raise BadInput(f"{name} is for a run, and `{what}` is none", hint=hint)
    _debug_recipe(what, words, steps or 3, init_from)


def _is_run(what: str) -> bool:
    return RunDir(Path(what)).config.is_file()


def _debug_recipe(name: str, words: tuple[str, ...], steps: int, init_from: Path | None) -> None:
    file = find(name)
    configure(outline(file), name, split_overrides(words))  # what is wrong is told at once
    weights = weights_of(init_from) if init_from else None
    recipe_type = load(file)
    from launcher.train.script import debug as debug_in_process  # noqa: PLC0415  # the wall: torch only here

    made = configure(recipe_type, name, split_overrides(words))
    told = debug_in_process(made, steps, weights)
    tell(**{"error": None, "hint": None} | {name: finite(value) for name, value in told.items()})


def _debug_step(
    run: RunDir, step: int | None, nproc: int | None, rank: int | None, *, rows: bool
) -> None:
    """Make a step of a run again, and say what it came to."""
    check_is_run(run)
    refuse_script(run, "step to be made again")
    if step is None:
        hint = f"`launcher debug {shown(run.path)} --step 0` makes the first step again"
        raise BadInput(f"`{shown(run.path)}` is a run: which step of it?", hint=hint)
    found = plan(run, step, nproc)
    if (rank or 0) >= found.nodes.nproc:
        raise BadInput(f"--rank {rank} is not one of 0 to {found.nodes.nproc - 1}")
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not is_asked()
    say(found.words)
    with where_it_began(run):
        if found.nodes.nproc > 1:
            told = make_together(found, rank=rank or 0, terminal=terminal, rows=rows)
        else:
            told = _make_alone(found, terminal=terminal, rows=rows)
    if not told:
        say("left the debugger; nothing was written")
        return
    tell(error=None, hint=None, **told)
    say("\n".join(_words_of(told, run)))


def _make_alone(found: Plan, *, terminal: bool, rows: bool) -> dict[str, Any]:
    from launcher.replay.process import make_alone  # noqa: PLC0415  # the wall, as above

    with scratch() as folder:
        told = spec_of(found, folder.path, terminal=terminal, rows=rows)
        return make_alone(told, recipe_of(found.run).source)


def _words_of(told: dict[str, Any], run: RunDir) -> Iterator[str]:
    loss, norm, report = told["loss"], told["gradient_norm"], told["report"]
    more = "" if norm is None else f", gradient norm {norm:.9g}"
    yield f"step {told['step']}: loss {loss:.9f}{more}"
    if report is None:
        return
    ours = {name: report[name] for name in ("loss", "gradient_norm")}
    rows = [row for row in rows_of(run) if row.get("split") == "train"]
    row = next((row for row in rows if row.get("step") == report["step"]), None)
    if row is None:
        yield f"report after it: loss {report['loss']:.9f}"
        return
    theirs = {name: row.get(name) for name in ours}
    how = "to the last bit as in metrics.jsonl" if ours == theirs else f"there it is {theirs}"
    yield f"report after it: loss {report['loss']:.9f}; {how}"
