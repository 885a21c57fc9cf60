"""One HTML page about one or several runs: curves, hyperparameters, results, versions.

The page holds all it needs and asks for nothing. What comes from a run is escaped: by Jinja in
the page, by `html.escape` in charts, where plotly reads tags. A content security policy lets no
script run but the two that are named in it.
"""

import base64
import hashlib
import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from launcher import __version__
from launcher.run.listing import RunSummary, differing, number, word
from launcher.run.rows import metrics_in

Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]  # step, value

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
# Okabe and Ito's colours, which the colour-blind can tell apart; more runs share a scale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_MOST_POINTS = 2000  # of one curve: more than a chart has pixels


@dataclass(frozen=True)
class Chart:
    """One field of metrics.jsonl against the step."""

    field: str
    title: str
    form: str  # of a value, in d3's language
    axis: Mapping[str, Any]


CHARTS = (
    Chart("loss", "Loss", ".4g", {}),
    Chart("accuracy", "Accuracy", ".2%", {"tickformat": ".0%"}),
    Chart("learning_rate", "Learning rate", ".4g", {"rangemode": "tozero"}),
    Chart("samples_per_second", "Throughput, samples/s", ",.0f", {"rangemode": "tozero"}),
    Chart("gradient_norm", "Gradient norm", ".4g", {"rangemode": "tozero"}),
)


def page(shown: Sequence[tuple[RunSummary, Rows]], now: float) -> str:
    """Return the page about runs and their rows, written at `now` (seconds since 1970)."""
    runs = [run for run, _ in shown]
    names = labels(runs)
    colours = palette(len(runs))
    charts = [*CHARTS[:2], *map(_of_metric, metric_names(shown)), *CHARTS[2:]]
    figures = [f for chart in charts if (f := figure(chart, shown, names, colours))]
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
            }
            for index, (run, label, colour) in enumerate(zip(runs, names, colours, strict=True))
        ],
        figures=figures,
        thinned=any(len(rows) > _MOST_POINTS for _, rows in shown),
        results=results(runs),
        differing=comparison(parameters, differing(parameters)),
        hyperparameters=comparison(parameters, dict.fromkeys(n for p in parameters for n in p)),
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


def metric_names(shown: Sequence[tuple[RunSummary, Rows]]) -> list[str]:
    """Return the metrics that recipes have named, in the order in which they first come."""
    return list(
        dict.fromkeys(name for _, rows in shown for row in rows for name in metrics_in(row))
    )


def _of_metric(name: str) -> Chart:
    return Chart(name, word(name), ".4g", {})


def palette(count: int) -> list[str]:
    """Return a colour for each run."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return list(sample_colorscale("Viridis", [0.92 * n / (count - 1) for n in range(count)]))


def figure(
    chart: Chart,
    shown: Sequence[tuple[RunSummary, Rows]],
    names: Sequence[str],
    colours: Sequence[str],
) -> dict[str, Any] | None:
    """Return a chart as plotly draws it, None where no run has its field."""
    traces = []
    for index, ((_, rows), name, colour) in enumerate(zip(shown, names, colours, strict=True)):
        for split in ("train", "test"):
            points = thinned(_points(rows, split, chart.field))
            label = f"{name}, {split}" if len(shown) > 1 else split
            if points:
                traces.append(
                    _trace(points, chart, split=split, name=label, colour=colour, run=index)
                )
    if not traces:
        return None
    wide = len(traces) > len({trace["meta"] for trace in traces})  # some run has both splits
    for trace in traces:
        trace["opacity"] = 0.5 if wide and trace["line"]["width"] < 2 else 1
    return {"title": chart.title, "wide": wide, "data": traces, "layout": _layout(chart)}


def thinned(points: Points) -> Points:
    """Return at most about _MOST_POINTS points: the lowest and the highest of each stretch."""
    if len(points) <= _MOST_POINTS:
        return points
    stretch = -(-2 * len(points) // _MOST_POINTS)
    kept: Points = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


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


def _points(rows: Rows, split: str, field: str) -> Points:
    those = (row for row in rows if row.get("split") == split)
    found = ((number(row.get("step")), number(row.get(field))) for row in those)
    return [(step, value) for step, value in found if step is not None and value is not None]


def _trace(
    points: Points, chart: Chart, *, split: str, name: str, colour: str, run: int
) -> dict[str, Any]:
    """Return one curve: training thin and pale, testing strong, with dots where they fit."""
    train = split == "train"
    return {
        "x": [step for step, _ in points],
        "y": [value for _, value in points],
        "name": html.escape(name),
        "mode": "lines+markers"
        if len(points) == 1 or (not train and len(points) <= 60)
        else "lines",
        "line": {"color": colour, "width": 1.2 if train else 2.2},
        "marker": {"color": colour, "size": 5},
        "hovertemplate": f"%{{y:{chart.form}}}",
        "meta": run,
    }


def _layout(chart: Chart) -> dict[str, Any]:
    lines = {"gridcolor": "#e8e8e8", "linecolor": "#888888", "zeroline": False, "ticks": "outside"}
    lines |= {"tickcolor": "#888888", "ticklen": 4, "automargin": True}
    return {
        "height": 300,
        "margin": {"l": 50, "r": 12, "t": 8, "b": 44},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#333333"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "showlegend": False,
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "step", "standoff": 8},
            "showgrid": False,
            "rangemode": "tozero",
            **lines,
        },
        "yaxis": {**lines, **chart.axis},
    }


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
