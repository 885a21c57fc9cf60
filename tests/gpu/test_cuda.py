"""What training on a CUDA GPU promises: `pytest -m gpu` where there is one."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training import RECIPES, Run, launcher, many_runs, started, wait_for

from launcher.data.device import on_host, set_arithmetic
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.recipe.totals import Totals
from launcher.run import mark
from launcher.train import exchange, loops
from launcher.train.prepare import prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no CUDA device: run `uv run pytest -m gpu` where nvidia-smi shows one",
    ),
]
CURVE = RECIPES / "curve.py"
SHORT: dict[str, Any] = {"recipe": "curve", "epochs": 2}
DROPOUT = {**SHORT, "dropout": 0.3, "log_every": 100}
CASES: list[dict[str, Any]] = [
    {"name": "plain", **SHORT},
    {"name": "again", **SHORT},
    {"name": "on-device", **SHORT, "data_on_device": True},
    {"name": "fused", **SHORT, "fused_optimizer": True},
    {"name": "graphs", **SHORT, "cuda_graphs": True},
    {"name": "dropout", **DROPOUT},
    {"name": "dropout-again", **DROPOUT},
    {"name": "dropout-graphs", **DROPOUT, "cuda_graphs": True},
    {"name": "norm", **SHORT, "norm": True},
    {"name": "norm-graphs", **SHORT, "norm": True, "cuda_graphs": True},
    {"name": "adamw-graphs", **SHORT, "optimizer_name": "adamw", "cuda_graphs": True},
    {"name": "adamw", **SHORT, "optimizer_name": "adamw"},
    {"name": "clipped", **SHORT, "clip_norm": 0.2},
    {"name": "clipped-graphs", **SHORT, "clip_norm": 0.2, "cuda_graphs": True, "schedule": True},
    {"name": "averaged", **SHORT, "ema_decay": 0.9},
    {"name": "bf16", **SHORT, "mixed_precision": "bf16"},
    {"name": "layout", **SHORT, "convolve": True, "channels_last": True},
    {"name": "convolved", **SHORT, "convolve": True},
    {"name": "compiled", **SHORT, "compile": True},
    {"name": "compiled-graphs", **SHORT, "compile": True, "cuda_graphs": True},
]
FEW = {"plain", "clipped", "averaged", "adamw", "convolved"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """All cases, trained on the GPU in one process."""
    folder = tmp_path_factory.mktemp("cuda")
    many_runs(folder, 1, CASES, cpu=False)
    return {case["name"]: Run(folder / case["name"]) for case in CASES}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Some of them, on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    cases = [case for case in CASES if case["name"] in FEW]
    many_runs(folder, 1, cases)
    return {case["name"]: Run(folder / case["name"]) for case in cases}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("again", "plain"),
        ("on-device", "plain"),
        ("graphs", "plain"),
        ("dropout-again", "dropout"),
        ("dropout-graphs", "dropout"),
        ("norm-graphs", "norm"),
        ("adamw-graphs", "adamw"),
        ("compiled-graphs", "compiled"),
    ],
)
def test_these_are_the_same_run_to_the_bit(runs: dict[str, Run], name: str, other: str) -> None:
    assert runs[name].weight_bytes == runs[other].weight_bytes
    assert [row["loss"] for row in runs[name].rows] == [row["loss"] for row in runs[other].rows]


@pytest.mark.parametrize(("name", "other", "most"), [
    ("fused", "plain", 1e-5),
    ("layout", "convolved", 1e-4),
    ("compiled", "plain", 1e-4),
    ("bf16", "plain", 0.1),
])  # fmt: skip
def test_these_are_the_same_run_up_to_rounding(
    runs: dict[str, Run], name: str, other: str, most: float
) -> None:
    assert runs[name].farthest(runs[other]) < most
    assert runs[name].result["test_samples"] == runs[other].result["test_samples"]


@pytest.mark.parametrize("name", sorted(FEW))
def test_a_gpu_gives_the_numbers_of_a_cpu(
    runs: dict[str, Run], on_cpu: dict[str, Run], name: str
) -> None:
    assert runs[name].farthest(on_cpu[name]) < (1e-3 if name == "adamw" else 1e-4)
    for mine, theirs in zip(runs[name].rows, on_cpu[name].rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert mine["samples"] == theirs["samples"]


def losses_of_steps(monkeypatch: pytest.MonkeyPatch, **words: Any) -> list[float]:
    """The loss of each step of an epoch with dropout and one report."""
    seen: list[float] = []

    def keep(totals: Totals, *_: Any) -> None:
        seen[:] = totals.losses or seen  # the test after them has none

    monkeypatch.setattr(exchange, "check_finite", keep)
    values = {"dropout": 0.3, "log_every": 100, "epochs": 1, **words}
    recipe = configure(load(find(str(CURVE))), "curve", values)
    training = prepare(recipe, Context(), StopRequest())
    loops.train_loop(training, None)
    assert bool(training.graphs) == bool(words.get("cuda_graphs"))
    return seen


def test_each_replayed_step_has_the_loss_of_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = losses_of_steps(monkeypatch)
    assert len(set(plain)) == 20
    assert losses_of_steps(monkeypatch, cuda_graphs=True) == plain


def test_a_step_that_waits_for_the_gpu_is_not_recorded(tmp_path: Path) -> None:
    # A process of its own: CUDA's generators do not get over it.
    text = CURVE.read_text().replace("return x\n", "return x * float(x.new_ones(()).item())\n", 1)
    (tmp_path / "waits.py").write_text(text)
    words = ["run", "waits.py", "cuda_graphs=true", "--tracking", "disabled"]
    done = launcher(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "`train_step` cannot be recorded for cuda_graphs" in done.stderr


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_float32_unless_asked_otherwise(tf32: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 64, 32, 32, generator=generator, dtype=torch.float64)
    kernel = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float64)
    exact = torch.nn.functional.conv2d(images, kernel)
    product = images.flatten(0, 2) @ kernel.flatten(1)[:32]
    try:
        set_arithmetic(tf32=tf32, deterministic=False)
        there = torch.nn.functional.conv2d(images.float().cuda(), kernel.float().cuda())
        product_there = images.flatten(0, 2).float().cuda() @ kernel.flatten(1)[:32].float().cuda()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    for right, got in ((exact, there), (product, product_there)):
        off = float((got.cpu().double() - right).norm() / right.norm())
        assert (off > 3e-5) == tf32, off


def test_a_copy_to_the_host_is_whole_and_stays_as_it_was() -> None:
    large, turned = torch.arange(1_000_000, device="cuda"), torch.rand(3, 5, device="cuda").t()
    expected = [large.cpu(), turned.cpu()]
    kept = on_host({"a": large, "b": [turned]})
    large.zero_()  # as the next step would
    torch.cuda.synchronize()
    assert torch.equal(kept["a"], expected[0])
    assert torch.equal(kept["b"][0], expected[1])
    assert not kept["a"].is_cuda


WORDS = ["epochs=3", "samples=397", "checkpoint_every=3", "log_every=4", "dropout=0.2"]


@pytest.mark.parametrize(
    "words",
    [
        ["augment=true", "schedule=true"],
        ["optimizer_name=adamw", "norm=true", "data_on_device=true", "fused_optimizer=true"],
        ["convolve=true", "deterministic=true", "ema_decay=0.9"],
        ["cuda_graphs=true", "clip_norm=1"],
    ],
    ids=["sgd", "adamw", "convolved", "graphs"],
)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, words: list[str]
) -> None:
    words = ["run", str(CURVE), *WORDS, *words, "--nproc", "1", "--tracking", "disabled"]
    done = launcher(*words, "--run-dir", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    slow = ("step_s=0.05", "test_s=0.3")  # a step that is replayed is not slow, its tests are
    with started(*words, *slow, "--run-dir", "r", cwd=tmp_path) as process:
        wait_for(partial(_in_step, tmp_path / "r", 10))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    done = launcher("resume", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing from step" in done.stdout
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes


def _in_step(run: Path, step: int) -> bool:
    found = mark.read(run / "logs" / "rank-0.mark")
    return found is not None and found.steps >= step


def test_a_model_that_does_not_fit_is_told_with_the_way_out(tmp_path: Path) -> None:
    text = CURVE.read_text().replace(
        "        time.sleep(self.step_s",
        "        if x.is_cuda and self.training:\n            x.new_empty(1 << 42)\n"
        "        time.sleep(self.step_s",
    )
    (tmp_path / "greedy.py").write_text(text)
    done = launcher("run", "greedy.py", "--tracking", "disabled", cwd=tmp_path)
    assert done.returncode == 1
    assert "OutOfMemoryError" in done.stderr
    assert "micro_batch_size" in done.stderr
