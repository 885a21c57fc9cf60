"""The page about runs: what it says, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from click.testing import CliRunner, Result
from made_runs import ROWS, made, row

from launcher.cli.main import main
from launcher.report.curves import CHARTS, curves_of, figure, parallel, thinned
from launcher.report.page import in_order, labels, page, palette
from launcher.run.listing import RunSummary, rows_of, summary
from launcher.times import notes

NEWER = {"learning_rate": 0.1, "samples_per_second": 90.0, "gradient_norm": 1.5}
NEWER |= {"step_time": 0.5, "data_wait": 0.25, "gpu_memory": 1e9, "tflops": 0.5, "mfu": 0.5}
NEWER_ROWS = [one | NEWER if one["split"] == "train" else one for one in ROWS]
EVIL = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)


def read(*runs: Any) -> list[tuple[RunSummary, list[dict[str, Any]]]]:
    return [(summary(run.path), list(rows_of(run))) for run in runs]


def reported(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)], catch_exceptions=False)


def figures_of(text: str) -> list[dict[str, Any]]:
    found = re.search(
        r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL
    )
    assert found
    return list(json.loads(found[1]))


class Tags(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str, css_class: str = "") -> int:
        return sum(
            name == tag and css_class in (attributes.get("class") or "")
            for name, attributes in self.found
        )


def dom(page_file: Path, scratch: Path) -> tuple[str, set[str]]:
    """The page as a browser has made it, and what the browser asked the network for."""
    browser = shutil.which("chromium")
    if not browser:
        pytest.skip("needs a browser: apt-get install chromium")
    log = scratch / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # What anybody asks for is not to be found, but noted.
    flags += ["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
    flags += [f"--user-data-dir={scratch / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browser, *flags, "--dump-dom", page_file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # A page from a file has the origin "null"; what the browser asks for by itself has none.
    pages = r'"initiator":"null".{0,400}?"url":"(\w+:[^"]*)"'
    asked = re.findall(pages, log.read_text(errors="replace"))
    return done.stdout, set(asked)


@pytest.mark.floors
def test_the_page_of_a_run_has_its_numbers(tmp_path: Path) -> None:
    run = made(tmp_path / "r", NEWER_ROWS, {"state": "failed", "error": "it broke"})
    text = page(read(run), 1e9)
    assert [f["title"] for f in figures_of(text)] == [chart.title for chart in CHARTS]
    loss = figures_of(text)[0]["data"]
    assert [(trace["x"], trace["y"]) for trace in loss] == [
        ([5, 10, 13], [2.0, 1.0, 0.25]),
        ([5, 10], [0.5, 0.75]),
    ]
    for words in ("failed", "it broke", "2 of 4", "90.00%", "2001-09-09 01:46 UTC"):
        assert words in text, words


def test_the_page_of_a_run_says_where_the_time_of_its_starts_went(tmp_path: Path) -> None:
    run = made(tmp_path / "r", ROWS)
    assert "Where the time went" not in page(read(run), 0)
    notes.append(run, "start", time=1000.0, in_job=False)
    notes.append(run, "begin", spent={"starting": 5.0}, steps=0, step=0)
    told = {"starting": 5.0, "training": 15.0}
    notes.append(run, "end", spent=told, steps=3, how="completed")
    words = "time of 1 start, 20.0 s: 75% training that was kept, 25% starting"
    assert f'<p class="soft">{words}</p>' in page(read(run), 0)


def test_a_chart_that_no_run_has_rows_for_is_left_out(tmp_path: Path) -> None:
    old = made(tmp_path / "old", ROWS)
    new = made(tmp_path / "new", [row("train", 0, 1, 1.0) | NEWER])
    assert [f["title"] for f in figures_of(page(read(old), 1e9))] == ["Loss", "Accuracy"]
    both = figures_of(page(read(old, new), 1e9))
    assert [len(f["data"]) for f in both] == [3, 3, *[1] * 8]
    empty = page(read(made(tmp_path / "empty")), 1e9)
    assert not figures_of(empty)
    assert "Nothing has been reported yet" in empty


@pytest.mark.floors
def test_plotly_knows_every_property_of_a_chart(tmp_path: Path) -> None:
    [(_, rows)] = read(made(tmp_path / "r", NEWER_ROWS))
    drawn = [figure(chart, [curves_of(rows)], ["r"], ["#000000"]) for chart in CHARTS]
    columns: dict[str, list[Any]] = {"lr": [0.1, 0.2, None], "what": ["a", None, "b"]}
    columns["best"] = [1, 1, 1]
    drawn.append(parallel(columns, list("rst"), ["#000000"] * 3))
    for one in drawn:
        assert one
        go.Figure(data=one["data"], layout=one["layout"])  # raises ValueError


def test_what_differs_is_shown_apart_from_what_is_the_same(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / str(lr), ROWS, hyperparameters={"learning_rate": lr, "seed": 7})
        for lr in (0.1, 0.2)
    ]
    text = page(read(*runs), 1e9)
    apart, _, folded = text.partition("<details>")
    assert "<td>0.1</td><td>0.2</td>" in apart
    assert "seed" not in apart
    assert '<th>seed</th><td colspan="2">7</td>' in folded
    assert labels([run for run, _ in read(*runs)]) == ["learning_rate 0.1", "learning_rate 0.2"]
    assert labels([run for run, _ in read(runs[0], runs[0])]) == [str(runs[0].path)] * 2


@pytest.mark.floors
def test_every_run_has_a_colour_of_its_own() -> None:
    for count in (1, 7, 8, 40):
        assert len(set(palette(count))) == count


def test_a_long_curve_keeps_its_ends_of_range() -> None:
    points = np.array([(float(step), float(step % 7)) for step in range(100_000)])
    points[54_321] = (54_321.0, 99.0)
    kept = thinned(points).tolist()
    assert len(kept) <= 2002
    assert [54_321.0, 99.0] in kept
    assert kept == sorted(kept)
    assert thinned(points[:50]) is not points
    assert (thinned(points[:50]) == points[:50]).all()


def test_odd_rows_are_left_out_of_curves_and_the_others_stay_in_order() -> None:
    rows: list[dict[str, Any]] = [row("train", 0, step, float(step)) for step in range(1, 8)]
    rows[1] |= {"own": 5}
    rows[2] |= {"loss": float("nan"), "own": True}
    rows[3] |= {"loss": 10**400, "time": None, "samples": "many"}
    rows[4] |= {"step": "five"}
    rows[5] |= {"split": ["train"]}
    rows[6] |= {"loss": 1e300}
    curves = curves_of([*rows, row("train", 0, 9, 9.0) | {"time": 9.0}])
    assert curves["train", "loss"][:, 0].tolist() == [1, 2, 9]
    assert curves["train", "own"][:, :2].tolist() == [[2, 5]]


def test_nothing_that_comes_from_a_run_is_markup(tmp_path: Path) -> None:
    runs = [evil(tmp_path / f"<b>{at}", at) for at in range(2)]
    text = page(read(*runs), 1e9)
    assert "owned" in text
    assert EVIL not in text
    assert "<img" not in text.replace("&lt;img", "")[: text.index('id="figures"')]
    for trace in figures_of(text)[0]["data"]:
        assert "<" not in trace["name"]


def evil(path: Path, at: int) -> Any:
    parameters = {EVIL: EVIL, "rate": f"{at}{EVIL}"}
    facts: dict[str, Any] = dict.fromkeys(("host", "folder", "nodes"), EVIL)
    facts |= {"command": [EVIL], "versions": {EVIL: EVIL}, "git": {"commit": EVIL}}
    result = {"state": "failed", "error": EVIL}
    return made(path, ROWS, result, recipe=EVIL, hyperparameters=parameters, **facts)


@pytest.mark.slow
def test_a_browser_draws_the_curves_and_asks_for_nothing(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / str(lr), NEWER_ROWS, hyperparameters={"learning_rate": lr})
        for lr in (0.1, 0.2)
    ]
    target = tmp_path / "page.html"
    assert reported(*(run.path for run in runs), "--output", target).exit_code == 0
    drawn, asked = dom(target, tmp_path)
    tags = Tags(drawn)
    # Two runs: curves of training and testing in two charts, of training alone in the others.
    assert tags.count("g", "trace scatter") == 2 * (2 + 2) + 8 * 2
    curves = [a["d"] or "" for _, a in tags.found if a.get("class") == "js-line"]
    assert len(curves) == 24
    assert all(re.match(r"M[\d.]+,[\d.]+L", curve) for curve in curves)
    assert "90.00%" in drawn
    assert not [a for _, a in tags.found if {"src", "href", "xlink:href"} & set(a)]
    assert not asked


@pytest.mark.slow
def test_what_a_page_asks_for_would_be_seen(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("<img src='http://example.org/pixel'>")
    assert dom(target, tmp_path)[1] == {"http://example.org/pixel"}


@pytest.mark.slow
def test_a_browser_runs_nothing_that_comes_from_a_run(tmp_path: Path) -> None:
    run = evil(tmp_path / "evil", 0)
    target = tmp_path / "page.html"
    assert reported(run.path, "--output", target).exit_code == 0
    drawn, asked = dom(target, tmp_path)
    tags = Tags(drawn)
    assert tags.count("g", "trace scatter") == 4
    assert (tags.count("script"), tags.count("img")) == (4, 0)
    title = re.search(r"<title>(.*?)</title>", drawn)
    assert title
    assert title[1].startswith("&lt;/script&gt;")
    assert not asked


def test_the_page_goes_where_it_is_looked_for(tmp_path: Path, monkeypatch: Any) -> None:
    one, two = made(tmp_path / "one", ROWS), made(tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    assert reported("one").stdout == "one/report.html\n"
    assert reported("one", one.path, f"{one.path}/").stdout == "one/report.html\n"
    both = reported("one", "two")
    assert both.stdout == "report.html\n"
    assert "two has reported nothing yet (new)" in both.stderr
    assert reported("two", "--output", "new/x.html").stdout == "new/x.html\n"
    for file in ("one/report.html", "report.html", "new/x.html"):
        assert (tmp_path / file).read_text().endswith("</html>")
    assert two.path.is_dir()


@pytest.mark.parametrize("case", ["missing", "empty", "torn", "target"])
def test_a_mistake_is_one_error_with_a_hint(tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    torn = made(tmp_path / "torn").path
    (torn / "config.json").write_text("{")
    good = made(tmp_path / "good", ROWS).path
    (tmp_path / "file").touch()
    words = [good, "--output", tmp_path / "file" / "x"] if case == "target" else [tmp_path / case]
    done = reported(*words)
    assert done.exit_code == 2
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("hint: ") == (case != "torn")
    assert not done.stdout


# Does what a hand would do; says in the title what it led to.
BY_HAND = """
const input = (id, value) => {
  one(id)[typeof value === "boolean" ? "checked" : "value"] = value;
  one(id).dispatchEvent(new Event("input"));
};
const order = (selector) => every(selector).map((row) => row.dataset.row).join("");
const trace = (at) => charts[0].data[at];
const said = {};
input("against", "samples");
said.samples = [...trace(0).x];
input("against", "seconds");
said.seconds = [...trace(0).x];
input("smooth", 0.5);
said.smooth = [...trace(0).y];
input("smooth", 0);
said.plain = [...trace(0).y];
input("log", true);
said.log = charts.map((chart) => chart.layout.yaxis.type || "linear");
input("colour", "learning_rate");
said.colours = [0, 2, 4].map((at) => trace(at).line.color);
const head = every("table.runs thead th").find((one) => one.textContent === "learning_rate");
const other = every("table.runs thead th").find((one) => one.textContent === "Train loss");
if (head) head.click();
said.ascending = [order("table.runs tbody tr"), order("li[data-row]")];
other.click();
other.click();
said.descending = [order("table.runs tbody tr"), order("li[data-row]")];
show(1, false);
const gone = (chart) => chart.data.filter((one) => one.visible === false);
said.visible = charts.map((chart) => gone(chart).map((one) => one.meta));
point(0);
said.lit = [charts[0].data.map((one) => one.opacity), every(".lit").length];
point(null);
said.dark = [trace(0).opacity, every(".lit").length];
document.title = JSON.stringify(said);
"""


@pytest.mark.slow
def test_what_a_hand_does_to_the_page_is_done_to_all_charts(tmp_path: Path) -> None:
    timed = [one | {"samples": 10, "time": 1e9 + 2 * at} for at, one in enumerate(ROWS)]
    rates = [0.1, 0.2, 0.4, 1, 2, 3, 4, 10]
    runs = [
        made(
            tmp_path / f"r{at}",
            [one | {"loss": one["loss"] + at} for one in timed],
            hyperparameters={"learning_rate": rate},
        )
        for at, rate in enumerate(reversed(rates))
    ]
    target = tmp_path / "page.html"
    assert reported(*(run.path for run in runs), "--output", target).exit_code == 0
    text = re.sub('script-src[^"]*', "script-src 'unsafe-inline'", target.read_text())
    target.write_text(text.replace("</body>", f"<script>{BY_HAND}</script></body>"))
    title = re.search(r"<title>(.*?)</title>", dom(target, tmp_path)[0])
    assert title
    said = json.loads(title[1].replace("&lt;", "<"))
    # The run with the smallest rate, which was given last, comes first.
    assert said["samples"] == [10, 20, 30]
    assert said["seconds"] == [0, 4, 8]
    losses = said["plain"]
    assert losses == [9, 8, 7.25]
    assert said["smooth"] == pytest.approx([9, (9 + 2 * 8) / 3, (9 + 2 * 8 + 4 * 7.25) / 7])
    assert said["log"] == ["log", "log", "linear"]  # not what differs
    assert len(set(said["colours"])) == 3
    assert said["ascending"] == ["01234567"] * 2
    assert said["descending"] == ["01234567"] * 2  # the smallest rate has the largest loss
    assert said["visible"] == [[1, 1], [1, 1], [1]]
    opacities, rows = said["lit"]
    assert opacities == [1, 1, *[0.12] * 14]
    assert rows == 2  # in the table and in the legend
    assert said["dark"] == [0.5, 0]


def test_many_runs_are_in_the_order_of_what_they_differ_in(tmp_path: Path) -> None:
    rates = ["1e-2", 0.1, 9, 10, 11, 100, 200, 1000]
    runs = [
        made(tmp_path / str(at), ROWS, hyperparameters={"learning_rate": rate, "seed": 3})
        for at, rate in enumerate(sorted(rates, key=str))
    ]
    text = page(read(*runs), 1e9)
    shown = re.findall(r'<li data-row="\d+">.*?learning_rate (\S+?)</label>', text)
    assert shown == [str(rate) for rate in rates]
    assert "<th>seed</th>" in text
    assert "<th>learning_rate</th>" in text.partition("<h2>Results</h2>")[2].partition("<tbody>")[0]
    few = [made(tmp_path / name, ROWS) for name in ("r10", "r2")]
    assert [run.path.name for run, _ in in_order(read(*few))] == ["r10", "r2"]


def test_what_differs_is_drawn_for_three_runs_or_more(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / str(at), ROWS, hyperparameters={"learning_rate": at / 10, "what": what})
        for at, what in enumerate("aab")
    ]
    last = figures_of(page(read(*runs), 1e9))[-1]
    assert last["title"] == "What differs, and what came of it"
    assert [trace["y"] for trace in last["data"]] == [[0, 0, 0], [0.5, 0, 0], [1, 1, 0]]
    assert last["layout"]["xaxis"]["ticktext"] == ["learning_rate", "what", "best accuracy"]
    assert "What differs" not in page(read(*runs[:2]), 1e9)
