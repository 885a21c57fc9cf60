"""The charts of a page about runs, as plotly draws them: curves, and parallel coordinates."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.run.listing import RunSummary, number, word
from launcher.run.rows import FIELDS

Rows = Iterable[Mapping[str, Any]]
Numbers = npt.NDArray[np.float64]
Points = Numbers  # (points, 4): step, value, and samples and seconds so far, NaN: not known
Curves = Mapping[tuple[str, str], Points]  # by split and field

_MOST_POINTS = 2000  # of one curve: more than a chart has pixels
_LEAST_POINTS = 300  # of one curve, of however many: the page stays small
_ALL_POINTS = 16_000  # of one field, of all runs
_AT_ONCE = 1000  # rows
_CLEAR = "rgba(0,0,0,0)"
_LINES = {"zeroline": False, "ticks": "outside", "ticklen": 4, "automargin": True}


@dataclass(frozen=True)
class Chart:
    """One field of metrics.jsonl against the step."""

    field: str
    title: str
    form: str  # of a value, in d3's language
    axis: Mapping[str, Any]


_SHARE = {"tickformat": ".0%", "rangemode": "tozero"}
CHARTS = (
    Chart("loss", "Loss", ".4g", {}),
    Chart("accuracy", "Accuracy", ".2%", {"tickformat": ".0%"}),
    Chart("learning_rate", "Learning rate", ".4g", {"rangemode": "tozero"}),
    Chart("samples_per_second", "Throughput, samples/s", ",.0f", {"rangemode": "tozero"}),
    Chart("gradient_norm", "Gradient norm", ".4g", {"rangemode": "tozero"}),
    Chart("step_time", "Seconds a step", ".4g", {"rangemode": "tozero"}),
    Chart("data_wait", "Share of time waiting for data", ".1%", _SHARE),
    Chart("tflops", "TFLOP/s a device", ".4g", {"rangemode": "tozero"}),
    Chart("mfu", "MFU, share of the peak", ".1%", _SHARE),
    Chart("gpu_memory", "GPU memory, bytes", ".4s", {"rangemode": "tozero"}),
)
_SHOWN = [chart.field for chart in CHARTS]


def curves_of(rows: Rows) -> Curves:
    """Return the points of all curves of a run: there may be a million rows, taken by columns."""
    parts: dict[tuple[str, str], list[Points]] = defaultdict(list)
    told = (row for row in rows if row.get("split") in ("train", "test"))
    samples, began = 0.0, np.nan
    while some := list(islice(told, _AT_ONCE)):
        steps, times, sizes = (_column(some, name) for name in ("step", "time", "samples"))
        ours, known = ~np.isnan(steps), ~np.isnan(times)
        tests = np.array([row["split"] == "test" for row in some])
        so_far = samples + np.nancumsum(np.where(ours & ~tests, sizes, 0))
        samples = float(so_far[-1])
        if np.isnan(began) and (ours & known).any():
            began = times[ours & known][0]
        so_far[so_far == 0] = np.nan
        along = steps, so_far, np.round(times - began, 1)
        for name in dict.fromkeys(chain.from_iterable(dict.fromkeys(map(tuple, some)))):
            if name in _SHOWN or name not in FIELDS:
                _take(_column(some, name), name, along, tests, parts)
    return {what: np.concatenate(several) for what, several in parts.items()}


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Numbers:
    return _numbers([row.get(name) for row in rows])


def _take(
    values: Numbers,
    name: str,
    along: tuple[Numbers, Numbers, Numbers],
    tests: npt.NDArray[np.bool_],
    parts: dict[tuple[str, str], list[Points]],
) -> None:
    """Add the points of a field in some rows, of which `along` has steps, samples and seconds."""
    steps, samples, seconds = along
    known = ~np.isnan(values) & ~np.isnan(steps)
    for split, those in (("train", known & ~tests), ("test", known & tests)):
        if those.any():
            points = np.column_stack((steps, values, samples, seconds))
            parts[split, name].append(points[those])


def _numbers(values: Sequence[Any]) -> Numbers:
    """Return numbers that were read from a file, NaN for anything else."""
    if {*map(type, values)} <= {int, float, NoneType}:
        with suppress(OverflowError):
            found = np.array(values, dtype=np.float64)
            found[np.abs(found) >= 1e300] = np.nan
            return found
    known = map(number, values)
    return np.array([np.nan if one is None else one for one in known], dtype=np.float64)


def charts_of(curves: Sequence[Curves]) -> list[Chart]:
    """Return all charts: a recipe's own metrics come behind loss and accuracy."""
    own = dict.fromkeys(name for one in curves for _, name in one if name not in _SHOWN)
    return [*CHARTS[:2], *(Chart(name, word(name), ".4g", {}) for name in own), *CHARTS[2:]]


def figure(
    chart: Chart, curves: Sequence[Curves], names: Sequence[str], colours: Sequence[str]
) -> dict[str, Any] | None:
    """Return a chart as plotly draws it, None where no run has its field.

    `along` has what else may be its x, for each curve: samples and seconds.
    """
    most = min(_MOST_POINTS, max(_LEAST_POINTS, _ALL_POINTS // len(curves)))
    traces, along, all_of_them = [], [], True
    for index, (mine, name, colour) in enumerate(zip(curves, names, colours, strict=True)):
        for split in ("train", "test"):
            every = mine.get((split, chart.field), np.empty((0, 4)))
            points = thinned(every, most)
            all_of_them &= len(points) == len(every)
            label = f"{name}, {split}" if len(curves) > 1 else split
            if len(points):
                traces.append(
                    _trace(points, chart, split=split, name=label, colour=colour, run=index)
                )
                along.append({"samples": _plain(points[:, 2]), "seconds": _plain(points[:, 3])})
    if not traces:
        return None
    wide = len(traces) > len({trace["meta"] for trace in traces})  # some run has both splits
    for trace in traces:
        trace["opacity"] = 0.5 if wide and trace["line"]["width"] < 2 else 1
    layout = _layout(chart, many=len(curves) > 3)
    told = {"title": chart.title, "wide": wide, "along": along, "thinned": not all_of_them}
    return told | {"data": traces, "layout": layout}


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """Return at most about so many points: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // most)
    kept = set[int]()
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch, 1]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    return points[sorted(kept)]


def _plain(column: Numbers) -> list[float | None]:
    """Return numbers as JSON has them: whole ones short, None for those that are not known."""
    known = (None if math.isnan(one) else one for one in column.tolist())
    return [int(one) if one is not None and one.is_integer() else one for one in known]


def _trace(
    points: Points, chart: Chart, *, split: str, name: str, colour: str, run: int
) -> dict[str, Any]:
    """Return one curve: training thin and pale, testing strong, with dots where they fit."""
    train = split == "train"
    dots = len(points) == 1 or (not train and len(points) <= 60)
    return {
        "x": _plain(points[:, 0]),
        "y": _plain(points[:, 1]),
        "name": html.escape(name),
        "mode": "lines+markers" if dots else "lines",
        "line": {"color": colour, "width": 1.2 if train else 2.2},
        "marker": {"color": colour, "size": 5},
        "hovertemplate": f"%{{y:{chart.form}}}",
        "meta": run,
    }


def _layout(chart: Chart, *, many: bool) -> dict[str, Any]:
    step = {"text": "step", "standoff": 8}
    return {
        "height": 300,
        "margin": {"l": 50, "r": 12, "t": 8, "b": 44},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "showlegend": False,
        "hovermode": "closest" if many else "x unified",  # a list of many would hide the chart
        "xaxis": {"title": step, "showgrid": False, "rangemode": "tozero", **_LINES},
        "yaxis": {**_LINES, **chart.axis},
    }


def parallel(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str], colours: Sequence[str]
) -> dict[str, Any]:
    """Return a line for each run across what runs differ in and what came of it.

    `columns` has for each axis the value of each run; numbers stand at their place between the
    least and the largest, words in their order.
    """
    axes = [_axis(values) for values in columns.values()]
    traces = [
        {
            "x": list(range(len(axes))),
            "y": [places[run] for places, _ in axes],
            "text": [html.escape(f"{k} {word(v[run])}") for k, v in columns.items()],
            "name": html.escape(name),
            "mode": "lines+markers",
            "line": {"color": colour, "width": 1.6},
            "marker": {"color": colour, "size": 5},
            "hovertemplate": "%{text}",
            "meta": run,
            "opacity": 1,
        }
        for run, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]
    said = [
        {"x": at, "y": y, "text": html.escape(text), "showarrow": False, "xshift": 4}
        | {"xanchor": "left", "font": {"size": 10}}
        for at, (_, ticks) in enumerate(axes)
        for y, text in ticks
    ]
    layout = _layout(CHARTS[0], many=True) | {"annotations": said}
    layout["xaxis"] = {
        **_LINES,
        "showgrid": True,
        "tickvals": list(range(len(axes))),
        "ticktext": [html.escape(word(name)) for name in columns],
        "range": [-0.1, len(axes) - 0.6],
    }
    layout["yaxis"] = {"visible": False, "range": [-0.08, 1.08]}
    title = "What differs, and what came of it"
    told = {"title": title, "wide": True, "along": None, "thinned": False}
    return told | {"data": traces, "layout": layout}


def _axis(values: Sequence[Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Return the place of each value between 0 and 1, and what is written at some places."""
    numbers = [number(value) for value in values]
    known = [one for one in numbers if one is not None]
    if known and all(
        (one is None) == (value is None) for one, value in zip(numbers, values, strict=True)
    ):
        least, width = min(known), (max(known) - min(known)) or 1.0
        places = [None if one is None else (one - least) / width for one in numbers]
        ends = sorted({least, max(known)})
        return places, [((one - least) / width, f"{one:.4g}") for one in ends]
    words = sorted({word(value) for value in values})
    place = {one: at / max(len(words) - 1, 1) for at, one in enumerate(words)}
    return [place[word(value)] for value in values], [(y, one) for one, y in place.items()]


def outcome(runs: Sequence[RunSummary]) -> tuple[str, list[float | None]]:
    """Return what runs are best compared by: its name, and its value in each run's best test."""
    named = next((name for run in runs for name in run.best_metric), None)
    if named:
        return f"best {word(named)}", [run.best_metric.get(named) for run in runs]
    if any(run.best_test_accuracy is not None for run in runs):
        return "best accuracy", [run.best_test_accuracy for run in runs]
    return "best test loss", [run.best_test_loss for run in runs]
