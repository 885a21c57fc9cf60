"""Metrics of a recipe's own: exact for any number of processes, over a kill, wherever told."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import PROJECT, RECIPES, Run, launcher, many_runs

from launcher.errors import LauncherError, RecipeError, TrainingFailed
from launcher.train.measures import numbers

pytestmark = [pytest.mark.slow, pytest.mark.warm]

CASES: list[dict[str, Any]] = [
    {"name": "plain", "recipe": "counted"},
    {"name": "micro", "recipe": "counted", "micro_batch_size": 3},
    # a last batch of one sample and tests of one: there are ranks that see nothing
    {"name": "few", "recipe": "counted", "batch_size": 2, "samples": 13, "test_samples": 1},
    {"name": "bold", "recipe": "counted", "sanity_test": False},
    {"name": "loaded", "recipe": "sampled", "num_workers": 2, "epochs": 1},
    {"name": "loaded-bold", "recipe": "sampled", "num_workers": 2, "epochs": 1}
    | {"sanity_test": False},
    {"name": "stale", "recipe": "counted", "learning_rate": 0.0, "epochs": 9, "patience": 2},
    {"name": "chosen", "recipe": "counted", "learning_rate": 2.0, "epochs": 5, "keep_last": 1}
    | {"best_by": "-error"},
]
# At the rate of the last one rounding grows.
OWN = [case["name"] for case in CASES[:-1] if case["recipe"] == "counted"]
NAMES = ("top2", "miou", "spread", "error")
OF_ROWS = ("median", "weighted")  # of rows that tests keep


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made = {world: tmp_path_factory.mktemp(f"world-{world}") for world in (1, 2, 3)}
    for world, folder in made.items():
        many_runs(folder, world, CASES)
    return made


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", OWN)
def test_metrics_of_sums_are_those_of_one_process(
    folders: dict[int, Path], world: int, name: str
) -> None:
    expected, got = Run(folders[1] / name).rows, Run(folders[world] / name).rows
    assert [row["split"] for row in got] == [row["split"] for row in expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert [mine[n] for n in NAMES] == pytest.approx([theirs[n] for n in NAMES], abs=1e-12)
        assert mine["samples"] == theirs["samples"]
        assert mine.keys() == theirs.keys()
        for metric in OF_ROWS if mine["split"] == "test" else ():  # they tell of the order
            assert mine[metric] == pytest.approx(theirs[metric], abs=1e-12)
    for metric in (*NAMES, *OF_ROWS):
        assert Run(folders[world] / name).result[f"test_{metric}"] == pytest.approx(
            Run(folders[1] / name).result[f"test_{metric}"], abs=1e-12
        )


def test_a_metric_is_what_the_data_say(folders: dict[int, Path]) -> None:
    run = Run(folders[3] / "plain")
    x = torch.randn(38, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tests = [row for row in run.rows if row["split"] == "test"]
    assert [row["spread"] for row in tests] == pytest.approx([float(x.sum())] * 2, abs=1e-12)
    trained = [row["spread"] for row in run.rows if row["split"] == "train"]
    x = torch.randn(101, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sum(trained) == pytest.approx(2 * float(x.sum()), abs=1e-12)
    assert all(row["error"] == math.sqrt(row["loss"]) for row in run.rows)


@pytest.mark.parametrize(("with_it", "without"), [("plain", "bold"), ("loaded", "loaded-bold")])
def test_a_sanity_test_changes_no_number(
    folders: dict[int, Path], with_it: str, without: str
) -> None:
    for folder in folders.values():
        one, other = Run(folder / with_it), Run(folder / without)
        assert one.weight_bytes == other.weight_bytes
        assert [row["loss"] for row in one.rows] == [row["loss"] for row in other.rows]


def test_patience_ends_a_run_which_is_then_completed(folders: dict[int, Path]) -> None:
    for folder in folders.values():
        run = Run(folder / "stale")
        assert sum(row["split"] == "test" for row in run.rows) == 3
        result = run.result
        assert (result["state"], result["epoch"], result["out_of_patience"]) == ("completed", 3, 2)
        assert "no better -loss in 2 tests" in result["why"]
        assert "after step 11" in result["why"]
        said = launcher("resume", run.path, cwd=folder)
        assert said.returncode == 0, said.stderr
        assert f"completed: {result['why']}" in said.stdout
        assert Run(folder / "plain").result["why"] is None


def test_the_best_is_kept_by_the_metric_that_best_by_names(folders: dict[int, Path]) -> None:
    for folder in folders.values():
        run = Run(folder / "chosen")
        tests = [row for row in run.rows if row["split"] == "test"]
        best = min(tests, key=lambda row: row["error"])
        kept = sorted(int(path.name[5:13]) for path in (run.path / "checkpoints").glob("step-*"))
        assert kept == sorted({best["step"], 55})
    said = launcher("checkpoints", run.path, cwd=folder)
    assert f"step {best['step']:>8}" in said.stdout
    assert f"error {best['error']}" in said.stdout


@pytest.mark.parametrize(
    ("recipe", "name", "near"),
    [("digits", "acuracy", "accuracy"), (RECIPES / "counted.py", "-mediam", "median")],
)
def test_a_metric_that_is_not_there_is_known_before_the_first_step(
    tmp_path: Path, recipe: str, name: str, near: str
) -> None:
    """One that `test_metrics` would make, too: it is tried on the rows of one batch."""
    done = launcher("run", recipe, f"best_by={name}", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert f"did you mean `{near}`?" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_after_a_test_the_recipe_leaves_files_of_its_own(
    folders: dict[int, Path], world: int
) -> None:
    run = Run(folders[world] / "plain")
    made = sorted(path.name for path in (run.path / "after_test").iterdir())
    assert made == ["step-11", "step-22"]
    for row in (row for row in run.rows if row["split"] == "test"):
        step, miou, told = (
            (run.path / f"after_test/step-{row['step']}/told.txt").read_text().split()
        )
        assert (int(step), float(miou)) == (row["step"], row["miou"])
        assert int(told) in range(4)


@pytest.mark.parametrize("method", ["after_test", "test_metrics"])
def test_what_runs_on_one_process_alone_may_not_talk_to_others(tmp_path: Path, method: str) -> None:
    words = ["epochs=1", f"talks={method}", "--nproc", 2, "--run-dir", "r"]
    done = launcher("run", RECIPES / "counted.py", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert f"`{method}` talks to other processes" in done.stderr
    if method == "after_test":
        assert [row["split"] for row in Run(tmp_path / "r").rows][-1] == "test"
        assert not any((tmp_path / "r" / "after_test").iterdir())


def test_what_test_metrics_makes_of_a_few_rows_is_no_end_of_a_run(tmp_path: Path) -> None:
    words = [RECIPES / "counted.py", "epochs=1", "--run-dir", "r"]
    done = launcher("run", *words, "least=38", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = "WARNING: `test_metrics` fails on the first 7 of 38 test samples: ValueError: these are"
    assert told in done.stdout
    assert Run(tmp_path / "r").result["test_median"]


def test_sums_since_the_last_report_survive_a_kill_and_another_world(tmp_path: Path) -> None:
    words = ["checkpoint_every=3", "keep_last=99", "epochs=1"]
    recipe = RECIPES / "counted.py"
    done = launcher("run", recipe, "--nproc", 2, *words, "--run-dir", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "miou: " in done.stdout
    assert "lr: 0.1" in done.stdout
    whole = Run(tmp_path / "whole")
    for world in (2, 3):  # as if it had been killed after step 6, of which the report is of 4
        shutil.copytree(whole.path, tmp_path / f"killed-{world}")
        killed = Run(tmp_path / f"killed-{world}")
        (killed.path / "result.json").unlink()
        for path in (killed.path / "checkpoints").glob("step-*"):
            if path.name[:13] > "step-00000006":
                shutil.rmtree(path)
        done = launcher("resume", killed.path, "--nproc", world, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "continuing from step 6" in done.stdout
        for mine, theirs in zip(killed.rows, whole.rows, strict=True):
            assert [mine[n] for n in NAMES] == pytest.approx([theirs[n] for n in NAMES], abs=1e-12)
    assert Run(tmp_path / "killed-2").weight_bytes == whole.weight_bytes
    tested = launcher("test", "whole", "--nproc", 3, "--json", cwd=tmp_path)
    assert json.loads(tested.stdout)["test_miou"] == pytest.approx(
        whole.result["test_miou"], abs=1e-12
    )
    assert (
        f"miou {whole.result['test_miou']:.6}"[:10]
        in launcher("test", "whole", cwd=tmp_path).stdout
    )
    keep_rows(tmp_path)
    listed = launcher("runs", ".", cwd=tmp_path).stdout
    assert "test miou" in listed.splitlines()[0]
    assert f"{whole.result['test_miou']:.4f}" in listed
    [facts, *_] = json.loads(launcher("checkpoints", "whole", "--json", cwd=tmp_path).stdout)[::-1]
    assert facts["test_miou"] == whole.result["test_miou"]
    assert launcher("report", "whole", cwd=tmp_path).returncode == 0
    page = (whole.path / "report.html").read_text()
    assert "<h3>miou</h3>" in page
    assert "<th>Test miou</th>" in page


def keep_rows(folder: Path) -> None:
    """Keep what a test keeps in a file, of another test set, on two processes."""
    words = ["whole", "test_samples=23", "--nproc", 2, "--keep", "rows.safetensors"]
    done = launcher("test", *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_samples"] == 23
    rows = load_file(folder / "rows.safetensors")
    x = torch.randn(23, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(rows["x"], x)
    labels = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    assert rows["parts.offsets"].tolist() == [0, *labels.cumsum(0).tolist()]
    parts = [row[:label] for row, label in zip(x, labels.tolist(), strict=True)]
    assert torch.equal(rows["parts.values"], torch.cat(parts))
    for refused, why in (
        (words, "rows.safetensors` exists"),
        (["whole", "learning_rate=1"], "a test cannot change `learning_rate`"),
        (["whole", "hidden=8"], "`model` reads it"),
    ):
        done = launcher("test", *refused, cwd=folder)
        assert done.returncode == 2
        assert why in done.stderr


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "`metrics` returned NoneType, not a dict of numbers"),
        ({"loss": 1.0}, "each report has one of its own"),
        ({"correct": 1.0}, "each report has one of its own"),
        ({"": 1.0}, "names a metric ''"),
        ({"-mae": 1.0}, "names a metric '-mae'"),
        ({"a\n": 1.0}, "names a metric"),
        ({3: 1.0}, "names a metric 3"),
        ({"a": torch.ones(2)}, "the metric `a` of `metrics` is no number"),
        ({"a": "much"}, "the metric `a` of `metrics` is no number"),
    ],
)
@pytest.mark.parametrize(("begun", "kind"), [(False, RecipeError), (True, TrainingFailed)])
def test_what_is_no_metric_is_refused_in_words(
    made: Any, words: str, begun: bool, kind: type[LauncherError]
) -> None:
    with pytest.raises(LauncherError, match=words) as caught:
        numbers(made, "metrics", begun=begun)
    assert type(caught.value) is kind


def test_anything_that_is_one_number_is_a_metric() -> None:
    made = {
        "tensor": torch.tensor([3]),
        "array": np.ones(1),
        "flag": True,
        "none": float("nan"),
        "whole": 7,
    }
    found = numbers(made, "metrics", begun=True)
    assert [found[n] for n in ("tensor", "flag", "whole", "array")] == [3.0, 1.0, 7.0, 1.0]
    assert math.isnan(found["none"])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_reports_by_the_clock_are_of_any_steps_and_change_no_weights(
    world: int, tmp_path: Path
) -> None:
    words = ["run", "digits", "steps=600", "batch_size=1", "--nproc", world]
    for name, every in (("clock", "0.02s"), ("count", 100)):
        done = launcher(*words, f"log_every={every}", "--run-dir", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    clock, count = Run(tmp_path / "clock"), Run(tmp_path / "count")
    reports = [row for row in clock.rows if row["split"] == "train"]
    assert len({row["step"] for row in reports} - {row["step"] for row in count.rows}) >= 1
    assert sum(row["samples"] for row in reports) == 600
    assert all(
        torch.equal(a, b)
        for a, b in zip(clock.weights.values(), count.weights.values(), strict=True)
    )


@pytest.mark.parametrize("more", [[], ["shard=true", "micro_batch_size=7"]])
def test_operations_are_counted_and_nothing_of_a_run_is_touched(
    more: list[str], tmp_path: Path
) -> None:
    words = ["run", RECIPES / "curve.py", "--nproc", 2, "epochs=1", "samples=197", "dropout=0.2"]
    words += ["augment=true", "hidden=16", "log_every=1", "num_workers=1", *more]
    peak = ["--peak-tflops", 0.5]
    for name, asked in (("counted", peak), ("plain", [])):
        done = launcher(*words, *asked, "--run-dir", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    counted, plain = Run(tmp_path / "counted"), Run(tmp_path / "plain")
    assert counted.weight_bytes == plain.weight_bytes
    assert all(row["tflops"] is row["mfu"] is None for row in plain.rows)
    first, *rows = [row for row in counted.rows if row["split"] == "train"]
    assert first["tflops"] is None
    # A product forward, and two backward, but for the first layer, whose input needs no gradient.
    flops = 2 * (2 * 784 * 16 + 3 * (16 * 16 + 16 * 10))
    for row in rows:
        assert row["tflops"] == pytest.approx(flops * row["samples_per_second"] / 2 / 1e12)
        assert row["mfu"] == pytest.approx(row["tflops"] / 0.5)


STEP = """
    def train_step(self, model, batch, loss_fn):
        from launcher import StepSums

        x, y = batch
        loss = loss_fn(model(x), y) * len(x)
        assert loss.item() > 0
        return StepSums(loss, len(x))

"""


def test_a_step_that_needs_values_has_no_operations_counted_and_says_so(tmp_path: Path) -> None:
    source = (PROJECT / "recipes" / "digits.py").read_text()
    head, model, rest = source.partition("    def model(self)")
    (tmp_path / "own.py").write_text(head + STEP + model + rest)
    done = launcher("run", "own.py", "peak_tflops=1", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FLOP/s are not known: DataDependentOutputException") == 1
    assert all(row["mfu"] is None for row in Run(tmp_path / "r").rows)
