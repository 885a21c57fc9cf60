"""What `launcher watch` shows of runs, alive or over: read from their files, again and again.

Reads what is new since the last look and asks nothing of the processes that train.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from launcher.files import read_json
from launcher.masks import clean_log
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.run.listing import RunSummary, age, number, summary, word
from launcher.run.rows import metrics_in
from launcher.times import slow

_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {"running": "cyan", "completed": "green", "stopped": "yellow", "new": "dim"}
_MOST_LINES = 20_000  # of metrics.jsonl at once: of more, every so-many-th is read
_LOG_LINES, _LOG_BYTES = 3, 8192
_MOST_CURVES = 6
_LATE_S = 30.0  # a note that is older says nothing of now
_NAMES = 16  # columns of what a line is about


@dataclass
class Curves:
    """The numbers of one metrics.jsonl, read as it grows."""

    path: Path
    points: dict[str, list[float]] = field(default_factory=dict)  # "train loss": in order of steps
    train: dict[str, Any] = field(default_factory=dict)  # the newest row
    test: dict[str, Any] = field(default_factory=dict)
    _read: int = 0  # bytes
    _file: int = 0  # its inode: a run that goes on writes another, with what it kept

    def look(self) -> None:
        """Read what has been added; from the start where the file is another one."""
        with suppress(OSError), self.path.open("rb") as file:
            inode = self.path.stat().st_ino
            size = file.seek(0, 2)
            if inode != self._file or size < self._read:
                self.points, self.train, self.test, self._read = {}, {}, {}, 0
                self._file = inode
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]  # a last line may be half written
            if whole:
                self._read += len(whole) + 1
                self._take(whole.split(b"\n"))

    def _take(self, lines: Sequence[bytes]) -> None:
        every = -(-len(lines) // _MOST_LINES)
        for at, line in enumerate(lines):
            if at % every == 0 or at == len(lines) - 1 or b'"test"' in line:
                with suppress(ValueError):
                    self._add(json.loads(line))

    def _add(self, row: Any) -> None:
        if not isinstance(row, dict):
            return
        split = "test" if row.get("split") == "test" else "train"
        if split == "test":
            self.test = row
        else:
            self.train = row
        for name in ("loss", "accuracy", *metrics_in(row)):
            if (value := number(row.get(name))) is not None:
                self.points.setdefault(f"{split} {name}", []).append(value)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return values as a line of blocks, the last of each part of them."""
    if not values:
        return ""
    width = min(width, len(values))
    shown = [values[(at + 1) * len(values) // width - 1] for at in range(width)]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def page(
    runs: Sequence[tuple[Path, Curves]], jobs: Mapping[Path, str], width: int, height: int = 0
) -> Group:
    """Return one page about runs, `width` columns wide; curves are read up to now.

    `jobs` says what SLURM knows of a run. Where all there is to say does not fit into a `height`
    of lines, each run gets its first few.
    """
    blocks = []
    for path, curves in runs:
        curves.look()
        blocks.append(_lines(path, curves, jobs.get(path), width))
    if height and sum(len(lines) + 1 for lines in blocks) - 1 > height:
        most = max(1, height // len(blocks) - 1)
        blocks = [lines[:most] for lines in blocks]
    page = [line for lines in blocks for line in (*lines, Text())][:-1]
    for line in page:
        line.truncate(width, overflow="ellipsis")
    return Group(*page)


def _lines(path: Path, curves: Curves, job: str | None, width: int) -> list[Text]:
    """Return what there is to say of one run; a line is cut at the page's width."""
    run = summary(path)
    lines = [_title(run)]
    lines.append(_line("job", job or ""))
    lines.append(_line("progress", _progress(run, curves, width)))
    names = sorted(curves.points, key=lambda name: name.startswith("test"))
    for name in names[:_MOST_CURVES]:
        values = curves.points[name]
        room = max(8, width - _NAMES - 14)
        lines.append(_line(name, f"{_short(name, values[-1]):<12} {sparkline(values, room)}"))
    lines.append(_line("speed", _speed(curves.train)))
    lines.append(_line("time", _time(run, curves.train)))
    lines += _places(RunDir(path), run)
    lines += [_line("slow", one.words) for one in slow.read(RunDir(path))]
    if run.error:
        lines.append(_line("error", run.error.partition("\n")[0]))
    lines += [_line("log" if not at else "", text) for at, text in enumerate(_last_words(path))]
    return [line for line in lines if len(line.plain) > _NAMES]


def _title(run: RunSummary) -> Text:
    size = f"{run.world_size} process{'es' if run.world_size != 1 else ''}"
    line = Text(f"{word(run.path.name)}  ", style="bold", no_wrap=True)
    line.append(run.state, style=_COLOURS.get(run.state, "red"))
    told = f"  {run.recipe}, {size}, begun {age(time.time() - run.created)} ago"
    return line.append(told, style="dim")


def _line(name: str, told: str) -> Text:
    label = name if len(name) < _NAMES else name[: _NAMES - 2] + "…"
    line = Text(f"{label:<{_NAMES}}", style="dim", no_wrap=True)
    return line.append(Text(told, style="not dim")) if told else line


def _progress(run: RunSummary, curves: Curves, width: int) -> str:
    """Return the step, a bar, and how long it still takes, as far as reports know."""
    step, length = run.step, number(curves.train.get("steps_in_all"))
    marks = [mark.read(RunDir(run.path).mark(rank)) for rank in range(run.world_size or 1)]
    if run.state == "running":
        step = max([step, *(found.steps for found in marks if found)])
    told = f"step {step:,}"
    if not length:
        return f"{told}, {run.epochs} epochs"
    share = min(1.0, step / length)
    room = max(5, min(30, width - 60))
    bar = "█" * round(share * room) + "░" * (room - round(share * room))
    return f"{told}/{int(length):,} {bar} {100 * share:.0f}%{_eta(run, curves.train)}"


def _eta(run: RunSummary, row: Mapping[str, Any]) -> str:
    left, when = number(row.get("eta_seconds")), number(row.get("time"))
    if run.state != "running" or left is None or when is None:
        return ""
    return f"  ETA {age(max(0.0, left - (time.time() - when)))}"


def _speed(row: Mapping[str, Any]) -> str:
    speed, rate = number(row.get("samples_per_second")), number(row.get("learning_rate"))
    norm, memory = number(row.get("gradient_norm")), number(row.get("gpu_memory"))
    told = [f"{speed:,.0f} samples/s"] if speed is not None else []
    told += [f"lr {rate:.4g}"] if rate is not None else []
    told += [f"gradient norm {norm:.3g}"] if norm is not None else []
    told += [f"{memory / 1e9:.1f} GB of GPU memory"] if memory is not None else []
    return ", ".join(told)


def _time(run: RunSummary, row: Mapping[str, Any]) -> str:
    """Return what the time goes into: all of it at the end, what data take while it runs."""
    shares = (read_json(RunDir(run.path).result) or {}).get("time_shares")
    if isinstance(shares, dict):
        parts = [(what, number(share)) for what, share in shares.items()]
        return ", ".join(f"{100 * share:.0f}% {what}" for what, share in parts if share)
    waited = number(row.get("data_wait"))
    return "" if waited is None else f"{100 * waited:.0f}% waiting for data"


def _places(run: RunDir, told: RunSummary) -> list[Text]:
    """Return where each rank is and who is behind, and what GPUs do, while a run is alive."""
    if told.state != "running":
        return []
    notes = [read_json(run.node_note(node)) or {} for node in range(_nodes(told))]
    steps = _noted(notes)
    for rank in range(told.world_size or 1):
        if found := mark.read(run.mark(rank)):
            steps[rank] = max(found.steps, steps.get(rank, 0))
    if not steps:
        return []
    last, first = min(steps, key=lambda rank: steps[rank]), max(steps.values())
    behind = first - steps[last]
    each = " ".join(f"{rank}:{step:,}" for rank, step in sorted(steps.items()))
    lines = [_line("ranks", each)]
    if behind > 1:
        lines.append(_line("behind", f"rank {last}, by {behind} steps"))
    return lines + [_line("gpus", gpus) for note in notes if (gpus := _gpus(note))]


def _nodes(told: RunSummary) -> int:
    count = number(told.config.get("nodes"))
    return max(1, int(count or 1))


def _noted(notes: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return the steps that nodes have noted of their ranks."""
    steps: dict[int, int] = {}
    for note in notes:
        ranks = note.get("ranks")
        for rank, step in ranks.items() if isinstance(ranks, dict) else ():
            if rank.isdigit() and isinstance(step, int):
                steps[int(rank)] = step
    return steps


def _gpus(note: Mapping[str, Any]) -> str:
    gpus, when = note.get("gpus"), number(note.get("time")) or 0
    if not isinstance(gpus, list) or time.time() - when > _LATE_S:
        return ""
    told = [
        f"{at}: {gpu.get('use')}% {gpu.get('memory_gb')}/{gpu.get('total_gb')} GB"
        for at, gpu in enumerate(gpus)
        if isinstance(gpu, dict)
    ]
    return f"{note.get('host', '')} {', '.join(told)}" if told else ""


def _last_words(path: Path) -> list[str]:
    """Return the last lines that rank 0 said."""
    with suppress(OSError), RunDir(path).log(0).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
        text = clean_log(file.read().decode("utf-8", "replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip(" -\r")]
        return [line for line in lines if line.isprintable()][-_LOG_LINES:]
    return []


def _short(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{100 * value:.2f}%"
    return f"{value:.4g}" if math.isfinite(value) else str(value)
