"""What people train, written as users would: the same at 1, 2 and 3 processes and after a kill.

One set of processes trains all workloads of a world size. A kill leaves the checkpoint before it,
and rows of metrics.jsonl behind it: such run directories are made of whole runs here, and go on in
another set of processes; `test_kill.py` has real kills.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from training import CLOCKED, PROJECT, Run, many_runs

from launcher.run.checkpoint_files import all_of

WORKLOADS = Path(__file__).parent / "workloads"
# A recipe and its hyperparameters by name: sizes that no world size divides.
Cases = dict[str, tuple[Path, Mapping[str, Any]]]
CASES: Cases = {
    "segmentation": (WORKLOADS / "segmentation.py", {}),
    "tabular": (WORKLOADS / "tabular.py", {}),
    "weighted": (WORKLOADS / "weighted.py", {}),
    "fold 0": (WORKLOADS / "folds.py", {}),
    "fold 2": (WORKLOADS / "folds.py", {"fold": 2}),
    "simclr": (WORKLOADS / "simclr.py", {}),
    "cutmix": (WORKLOADS / "cutmix.py", {}),
    "detection": (WORKLOADS / "detection.py", {}),
    "predictions": (WORKLOADS / "predictions.py", {}),
    "bert": (WORKLOADS / "bert.py", {}),
    "shards": (WORKLOADS / "shards.py", {"data": "../shards"}),
    "mnist": (WORKLOADS / "mnist.py", {}),
    "frozen": (WORKLOADS / "frozen.py", {}),
    "gan": (WORKLOADS / "gan.py", {}),
    "muon": (WORKLOADS / "muon.py", {}),
    "gpt": (
        PROJECT / "recipes" / "gpt.py",
        {
            "digits": 1,
            "test_additions": 17,
            "batch_size": 10,
            "dim": 16,
            "heads": 2,
            "layers": 1,
            "steps": 13,
            "test_every": 5,
            "log_every": 2,
        },
    ),
}
# What cannot be equal for all world sizes: batch norm sees a shard, dropout draws for a rank.
NOISY: Cases = {"cutmix, batch norm and dropout": (WORKLOADS / "cutmix.py", {"batch_norm": True})}
LEARNED = {  # the least that each reaches in its few steps, by a metric of its own
    "segmentation": ("miou", 0.3),
    "tabular": ("r2", 0.0),
    "weighted": ("balanced", 0.5),
    "fold 0": ("accuracy", 0.5),
    "predictions": ("auroc", 0.6),
}
pytestmark = [pytest.mark.slow, pytest.mark.warm, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("workloads")
    write_shards(made / "shards")
    yield made
    trained.cache_clear()


def write_shards(folder: Path) -> None:
    """Write lines of points into shards of unequal lengths, two parts of them."""
    folder.mkdir()
    random = Random(0)
    for part, sizes in (("train", (13, 11, 14, 9, 12)), ("test", (5, 7, 4, 3))):
        for number, size in enumerate(sizes):
            points = [[round(random.gauss(0, 1), 3) for _ in range(3)] for _ in range(size)]
            lines = [json.dumps({"x": x, "y": int(x[0] > x[1])}) for x in points]
            (folder / f"{part}-{number}.jsonl").write_text("\n".join(lines) + "\n")


@cache
def trained(folder: Path, processes: int) -> Path:
    """Train all of it; at 3 processes what was killed at 1, too."""
    place = folder / str(processes)
    place.mkdir()
    cases = [case(name) for name in CASES | NOISY]
    if processes == 3:
        for name in CASES:
            killed(trained(folder, 1) / name, place / f"{name} of 1")
            cases.append(case(name) | {"name": f"{name} of 1"})
    many_runs(place, processes, cases, timeout_s=1200)
    return place


def case(name: str) -> dict[str, Any]:
    path, values = (CASES | NOISY)[name]
    kept = {"checkpoint_every": 3, "keep_last": 99}
    return {"name": name, "recipe": str(path.with_suffix("")), **kept, **values}


def killed(whole: Path, place: Path) -> None:
    """Make what a kill in the middle of a run would have left of it."""
    shutil.copytree(whole, place)
    found = all_of(place / "checkpoints")
    assert len(found) > 2, "a run of so few checkpoints is not killed in its middle"
    for checkpoint in found[len(found) // 2 :]:
        shutil.rmtree(checkpoint.path)
    for name in ("result.json", "model.safetensors", "model-plain.safetensors"):
        (place / name).unlink(missing_ok=True)


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in Run(run).rows]


def compare(one: Path, other: Path) -> None:
    ours, theirs = rows(one), rows(other)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for key, value in mine.items():
            if isinstance(value, float):
                assert its[key] == pytest.approx(value, rel=1e-5, abs=1e-6), (key, mine, its)
            else:
                assert its[key] == value, (key, mine, its)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_workload_has_the_numbers_of_one_process(folder: Path, name: str, processes: int) -> None:
    compare(trained(folder, 1) / name, trained(folder, processes) / name)


@pytest.mark.parametrize("name", CASES)
def test_a_workload_that_was_killed_goes_on_with_more_processes(folder: Path, name: str) -> None:
    compare(trained(folder, 1) / name, trained(folder, 3) / f"{name} of 1")


@pytest.mark.parametrize("name", LEARNED)
def test_a_workload_learns(folder: Path, name: str) -> None:
    metric, least = LEARNED[name]
    tests = [row for row in Run(trained(folder, 1) / name).rows if row["split"] == "test"]
    assert tests[-1][metric] >= least


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Path:
    """What was killed at 2 processes and went on, in processes that have not seen its beginning."""
    place = folder / "resumed"
    place.mkdir()
    for name in [*CASES, *NOISY]:
        killed(trained(folder, 2) / name, place / name)
    many_runs(place, 2, [case(name) for name in [*CASES, *NOISY]], timeout_s=1200)
    return place


@pytest.mark.parametrize("name", [*CASES, *NOISY])
def test_a_workload_that_was_killed_ends_as_if_it_had_not_been(
    folder: Path, resumed: Path, name: str
) -> None:
    whole, again = trained(folder, 2) / name, resumed / name
    assert Run(again).weight_bytes == Run(whole).weight_bytes
    assert rows(again) == rows(whole)
