"""One HTML page about one or several runs: curves, hyperparameters, results, versions.

The page holds all it needs and asks for nothing. What comes from a run is escaped: by Jinja in
the page, by `html.escape` in charts, where plotly reads tags. A content security policy lets no
script run but the two that are named in it.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from launcher import __version__
from launcher.report.curves import Rows, charts_of, curves_of, figure, outcome, parallel
from launcher.run.directory import RunDir
from launcher.run.listing import RunSummary, differing, word
from launcher.times import notes as times

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
# Okabe and Ito's colours, which the colour-blind can tell apart; more runs share a scale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_MANY = 7  # runs: more are no columns of a table, and get into the order of what they differ in


def page(shown: Sequence[tuple[RunSummary, Rows]], now: float) -> str:
    """Return the page about runs and their rows, written at `now` (seconds since 1970)."""
    shown = in_order(shown)
    runs = [run for run, _ in shown]
    names = labels(runs)
    colours = palette(len(runs))
    curves = [curves_of(rows) for _, rows in shown]
    figures = [f for chart in charts_of(curves) if (f := figure(chart, curves, names, colours))]
    apart = columns(runs)
    if len(runs) > 2 and len(apart) > 1:
        figures.append(parallel(apart, names, colours))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    plotly, draw = get_plotlyjs(), _TEMPLATE.with_name("page.js").read_text(encoding="utf-8")
    parameters = [run.hyperparameters for run in runs]
    return template.render(
        title=" and ".join(dict.fromkeys(run.recipe for run in runs)),
        runs=[
            {
                "index": index,
                "label": label,
                "colour": colour,
                "summary": run,
                "name": word(run.path.name),
                "folder": word(run.path),
                "time": times.said(RunDir(run.path), alive=run.state == "running"),
            }
            for index, (run, label, colour) in enumerate(zip(runs, names, colours, strict=True))
        ],
        figures=figures,
        thinned=any(f["thinned"] for f in figures),
        results=results(runs),
        apart=list(apart),
        differs={n: [word(r.hyperparameters.get(n, "-")) for r in runs] for n in [*apart][:-1]},
        told={"runs": names, "colours": colours, "columns": apart},
        many=len(runs) > _MANY,
        differing=comparison(parameters, differing(parameters)),
        hyperparameters=_facts(parameters, dict.fromkeys(n for p in parameters for n in p)),
        machines=comparison(machines := [machine(run) for run in runs], machines[0]),
        commands=[_command(run) for run in runs],
        plotly=plotly,
        draw=draw,
        hashes=[_hash(plotly), _hash(draw)],
        written=_moment(now),
        version=__version__,
    )


def labels(runs: Sequence[RunSummary]) -> list[str]:
    """Name each run: by the hyperparameters it differs in where that is short, else its folder."""
    names = differing([run.hyperparameters for run in runs])
    told = [
        ", ".join(f"{n} {word(run.hyperparameters.get(n, '-'))}" for n in names) for run in runs
    ]
    if names and len(set(told)) == len(runs) and max(map(len, told)) <= 40:
        return told
    folders = [word(run.path.name) for run in runs]
    return folders if len(set(folders)) == len(runs) else [word(run.path) for run in runs]


def in_order(shown: Sequence[tuple[RunSummary, Rows]]) -> list[tuple[RunSummary, Rows]]:
    """Return few runs as they are given, and many by what they differ in: r2 before r10."""
    if len(shown) <= _MANY:
        return list(shown)
    named = zip(labels([run for run, _ in shown]), shown, strict=True)
    return [pair for _, pair in sorted(named, key=lambda one: _natural(one[0]))]


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Return a key by which numbers in texts count as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(0, float(p), "") if at % 2 else (1, 0.0, p) for at, p in enumerate(parts)]


def columns(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Return for each hyperparameter that runs differ in, and for what came of it, their values.

    {} for one run.
    """
    if len(runs) < 2:
        return {}
    parameters = [run.hyperparameters for run in runs]
    name, values = outcome(runs)
    apart = {one: [told.get(one) for told in parameters] for one in differing(parameters)}
    return apart | {name: values}


def palette(count: int) -> list[str]:
    """Return a colour for each run."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return list(sample_colorscale("Viridis", [0.15 + 0.77 * n / (count - 1) for n in range(count)]))


def results(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Return how the runs ended: a heading, and a cell for each run."""
    return {
        "State": [run.state for run in runs],
        "Epochs": [_of(run.epochs, run, "epochs") for run in runs],
        "Steps": [_of(run.step, run, "steps") for run in runs],
        "Train loss": _cells((run.train_loss for run in runs), ".4g"),
        "Test loss": _cells((run.test_loss for run in runs), ".4g"),
        "best": _cells((run.best_test_loss for run in runs), ".4g"),
        "Accuracy": _cells((run.test_accuracy for run in runs), ".2%"),
        "best ": _cells((run.best_test_accuracy for run in runs), ".2%"),
        **{
            f"Test {word(name)}": _cells((run.metrics.get(name) for run in runs), ".4g")
            for name in dict.fromkeys(name for run in runs for name in run.metrics)
        },
        **{
            f"Best {word(name)}": _cells((run.best_metric.get(name) for run in runs), ".4g")
            for name in dict.fromkeys(name for run in runs for name in run.best_metric)
        },
        "Seconds": _cells((run.seconds for run in runs), ",.1f"),
        "Samples/s": _cells((run.samples_per_second for run in runs), ",.0f"),
        "Processes": _cells((run.world_size for run in runs), "d"),
    }


def _of(done: int, run: RunSummary, unit: str) -> str:
    """Return how much is done, and of how much where that is how the run's length is given."""
    asked = run.hyperparameters
    counts = unit == ("steps" if asked.get("steps") else "epochs")
    return f"{done:,}" + (f" of {word(asked.get(unit, '?'))}" if counts else "")


def machine(run: RunSummary) -> dict[str, Any]:
    """Return where a run ran and what with."""
    config = run.config
    git, versions = config.get("git"), config.get("versions")
    commit = "none" if git is None else "?"
    if isinstance(git, Mapping) and "commit" in git:
        commit = word(git["commit"])[:12] + (", with changes" if git.get("dirty") else "")
    return {
        "created": _moment(run.created),
        "host": config.get("host", "?"),
        "nodes": config.get("nodes", "?"),
        "folder": config.get("folder", "?"),
        "git commit": commit,
        **(versions if isinstance(versions, Mapping) else {}),
    }


def comparison(
    those: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> list[tuple[str, list[str]]]:
    """Return for each name its value in each, or one value where it is the same in all."""
    lines = [(word(name), [word(one.get(name, "-")) for one in those]) for name in names]
    return [(name, cells[:1] if len(set(cells)) == 1 else cells) for name, cells in lines]


def _facts(those: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return a comparison; of many runs what is the same in all, for the rest stands elsewhere."""
    lines = comparison(those, names)
    return [line for line in lines if len(line[1]) == 1] if len(those) > _MANY else lines


def _cells(values: Iterable[float | None], form: str) -> list[str]:
    return ["-" if value is None else format(value, form) for value in values]


def _command(run: RunSummary) -> str:
    told = run.config.get("command")
    return shlex.join(map(word, told)) if isinstance(told, list) else word(told or "?")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _hash(script: str) -> str:
    """Name a script for the content security policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
