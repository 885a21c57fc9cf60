"""The commands that look at runs: list them and their checkpoints, compare, put into one page."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from launcher.cli.options import Finite
from launcher.cli.say import say
from launcher.errors import BadInput, RunDirError
from launcher.files import write_text
from launcher.launch.resume import check_is_run
from launcher.processes import shown
from launcher.remote import place as places
from launcher.report.compare import Comparison, Difference, compare
from launcher.run.best import in_facts, name_of
from launcher.run.checkpoint_files import all_of, problem
from launcher.run.directory import RunDir
from launcher.run.listing import RunSummary, age, differences, find_runs, rows_of, summary, word
from launcher.run.rows import finite

_GENERATOR = b'content="launcher report"'  # in the head of each page that is written
_FOLDER = click.Path(path_type=Path, file_okay=False)
_COLOURS = {"running": "cyan", "completed": "green", "stopped": "yellow", "new": "dim"}


@click.command()
@click.argument("folder", type=_FOLDER, default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER: state, step, metrics, age, and what they differ in.

    Newest first. FOLDER is `runs` where none is named, and is looked through four levels deep.
    Hyperparameters are compared among the runs of one recipe.
    """
    if not os.path.isdir(folder):  # noqa: PTH112  # `is_dir` raises for what no name can be
        raise BadInput(
            f"there is no folder `{folder}`", hint="name the folder that holds run directories"
        )
    found = _summaries(folder)
    differ, now = differences(found), time.time()
    if as_json:
        say(json.dumps([_raw(*pair, now) for pair in zip(found, differ, strict=True)]))
    elif found:
        names = [
            list(dict.fromkeys(name for told in several for name in told))
            for several in ([r.metrics for r in found], [r.best_metric for r in found])
        ]
        lines = [_cells(*pair, names, folder, now) for pair in zip(found, differ, strict=True)]
        _print_table(lines)
    else:
        say(f"no runs in `{folder}`")
    for path, place in places.below(folder).items():
        if next(find_runs(path), None) is None:
            say(f"{shown(path)} is at {place.host}: `launcher pull` brings what it tells", err=True)


@click.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page. [default: report.html in the one RUN_DIR, else in the current folder]",
)
def report(run_dirs: tuple[Path, ...], output: Path | None) -> None:
    """Write one HTML page that shows RUN_DIR, or compares several.

    Curves, hyperparameters, results and versions. The page needs no network and no other file.
    """
    from launcher.report.page import page  # noqa: PLC0415  # plotly and Jinja, only here

    folders = list(dict.fromkeys(path.absolute() for path in run_dirs))
    for folder in folders:
        check_is_run(RunDir(folder))
    told = [(summary(folder), rows_of(RunDir(folder))) for folder in folders]
    target = output or (run_dirs[0] if len(folders) == 1 else Path()) / "report.html"
    try:
        _refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page(told, time.time()))
    except OSError as error:
        raise BadInput(
            f"`{target}` cannot be written: {error.strerror}", hint="name another with --output"
        ) from error
    say(target)
    for run, _ in told:
        if not any(rows_of(RunDir(run.path))):
            say(f"hint: {run.path.name} has reported nothing yet ({run.state})", err=True)


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def checkpoints(run_dir: Path, as_json: bool) -> None:
    """List the checkpoints of RUN_DIR: step, epoch, test result, size, and validity."""
    folder = RunDir(run_dir.absolute())
    check_is_run(folder)
    found = [(c, problem(c)) for c in all_of(folder.checkpoints)]
    best_by = folder.read_config()["hyperparameters"].get("best_by")
    if as_json:
        rows = [
            {"step": c.step, "epoch": c.epoch, "size": c.size, "valid": not wrong, **c.facts}
            for c, wrong in found
        ]
        say(json.dumps(rows))
        return
    for c, wrong in found:
        tested = _tested(in_facts(c.facts), best_by)
        size = f"{c.size / 1e6:.1f} MB"
        say(f"step {c.step:>8}  epoch {c.epoch:>4}  {tested}{size}  {wrong or 'valid'}")
    if not found:
        say("no checkpoints")


@click.command()
@click.argument("a", metavar="RUN_DIR", type=_FOLDER)
@click.argument("b", metavar="RUN_DIR", type=_FOLDER)
@click.option(
    "--tolerance",
    type=Finite(0),
    default=1e-5,
    show_default=True,
    help="Relative difference that still counts as equal; 0: to the bit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, tolerance: float, as_json: bool) -> None:
    """Compare two runs: the first report that differs, and all that they differ in.

    Times and rates are not compared. Exit code 0: equal within the tolerance; 1: not, or one has
    reports that the other lacks; 2: they could not be compared.
    """
    try:
        for folder in (a, b):
            check_is_run(RunDir(folder))
        found = compare(RunDir(a), RunDir(b), tolerance)
    except RunDirError as error:
        raise BadInput(error.message, hint=error.hint) from error
    if as_json:
        say(json.dumps(_told(found, tolerance)))
    else:
        _say_difference(found, tolerance)
    ctx.exit(0 if found.equal else 1)


def _say_difference(found: Comparison, tolerance: float) -> None:
    if found.first is None:
        say(f"equal to the bit: {found.reports} reports")
    else:
        say(f"first difference: {_words(found.first)}")
        if found.first_beyond:
            say(f"first beyond {tolerance:g}: {_words(found.first_beyond)}")
        elif found.largest:
            say(f"equal within {tolerance:g}: {found.reports} reports")
            say(f"largest difference: {_words(found.largest)}")
    for count, which in zip(found.only, ("first", "second"), strict=True):
        if count:
            say(f"only in the {which}: {count} reports")
    for subject, values in found.differ_in.items():
        say(f"differs in {subject}:")
        for name, (ours, theirs) in values.items():
            say(f"  {word(name)}: {word(ours)} | {word(theirs)}")


def _words(found: Difference) -> str:
    apart = "" if math.isinf(found.relative) else f" ({found.relative:.1e} relative)"
    ours, theirs = map(word, found.values)
    return f"step {found.step}, {found.split} {word(found.name)}: {ours} | {theirs}{apart}"


def _told(found: Comparison, tolerance: float) -> dict[str, Any]:
    """Return a comparison as JSON has it; null is a difference that is no number."""
    named = {"first": found.first, "first_beyond": found.first_beyond, "largest": found.largest}
    numbers = {
        name: one and one._asdict() | {"relative": finite(one.relative)}
        for name, one in named.items()
    }
    shared = {"equal": found.equal, "tolerance": tolerance, "reports": found.reports}
    return shared | {"only": found.only} | numbers | {"differ_in": found.differ_in}


def _refuse_foreign(target: Path) -> None:
    """Raise BadInput where a file is there that is no page of ours: only those are renewed."""
    if target.is_file():
        with target.open("rb") as file:
            if _GENERATOR in file.read(1000):
                return
    if target.exists():
        hint = "name another with --output; nothing was overwritten"
        raise BadInput(f"`{target}` exists, and is no page of `launcher report`", hint=hint)


def _summaries(folder: Path) -> list[RunSummary]:
    """Return the runs in a folder, newest first; says what looks like one and is none."""
    found, odd = [], []
    for path in find_runs(folder):
        try:
            found.append(summary(path))
        except (RunDirError, OSError):
            odd.append(path)
    if odd:
        say(
            f"left out, for their config.json is no run's: {', '.join(map(word, odd[:3]))}"
            + (f" and {len(odd) - 3} more" if odd[3:] else ""),
            err=True,
        )
    return sorted(found, key=lambda run: run.created, reverse=True)


def _raw(run: RunSummary, differs: dict[str, Any], now: float) -> dict[str, Any]:
    values = asdict(run) | {"path": str(run.path), "name": run.path.name}
    del values["config"]
    return values | {"age": now - run.created, "differs": differs}


def _cells(
    run: RunSummary, differs: dict[str, Any], own: Sequence[list[str]], folder: Path, now: float
) -> dict[str, str]:
    """Return a line of the table, by heading; `own` are names of metrics, and of best ones."""
    metrics, best = own
    name = run.path.absolute().name if run.path == folder else run.path.relative_to(folder)
    epochs, steps = (run.hyperparameters.get(unit) for unit in ("epochs", "steps"))
    whole = str(run.epochs)
    return {
        "run": word(name),
        "state": run.state,
        "recipe": run.recipe,
        "processes": word(run.world_size or "-"),
        "epoch": "-"
        if run.kind == "script"
        else whole
        if steps
        else f"{whole}/{word(epochs or '?')}",
        "step": f"{run.step}/{word(steps)}" if steps else str(run.step),
        "train loss": _loss(run.train_loss),
        "test loss": _loss(run.test_loss),
        "best loss": _loss(run.best_test_loss),
        "accuracy": _percent(run.test_accuracy),
        "best": _percent(run.best_test_accuracy),
        **{f"test {word(name)}": _loss(run.metrics.get(name)) for name in metrics},
        **{f"best {word(name)}": _loss(run.best_metric.get(name)) for name in best},
        "age": age(now - run.created),
        "differs in": " ".join(f"{word(k)}={word(v)}" for k, v in differs.items()),
    }


def _print_table(lines: list[dict[str, str]]) -> None:
    """Print aligned columns, as wide as they need to be; colours and bold on a terminal only."""
    from rich.console import Console  # noqa: PLC0415  # --json and --help need none
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    words = ("run", "state", "recipe", "differs in")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in lines[0]:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for line in lines:
        colour = _COLOURS.get(line["state"], "red")
        cells = {heading: Text(text) for heading, text in line.items()}
        cells["state"].stylize(colour)
        table.add_row(*cells.values())
    width = 1 + sum(2 + max(map(len, (h, *(line[h] for line in lines)))) for h in lines[0])
    Console(width=2 * width, highlight=False).print(table)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 1e4 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _tested(test: Mapping[str, Any], best_by: str | None) -> str:
    """Return what a checkpoint's test found: accuracy, and the metric that the best is known by."""
    if test.get("loss") is None:
        return "not tested, "
    name = name_of(best_by, test)
    own = "" if name in ("loss", "accuracy") else f"{name} {test.get(name)}, "
    return accuracy_words({"test_accuracy": test.get("accuracy")}) + own


def accuracy_words(facts: Mapping[str, Any]) -> str:
    """Return `test accuracy 98.10%, `, or nothing where there is none."""
    accuracy = facts.get("test_accuracy")
    return "" if accuracy is None else f"test accuracy {100 * accuracy:.2f}%, "
