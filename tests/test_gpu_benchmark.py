"""The parts of the GPU's benchmark that need no GPU, and that its contenders train."""

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
import work
from torch import nn
from training import PROJECT, command

from launcher.model.peaks import peak_tflops


@pytest.mark.parametrize(
    ("intervals", "length"),
    [
        ([], 0),
        ([(1, 2), (3, 5)], 3),
        ([(3, 5), (1, 4)], 4),  # out of order, overlapping
        ([(0, 10), (2, 3), (9, 11)], 11),  # one inside of another
        ([(0, 1), (1, 2), (0, 1)], 2),
    ],
)
def test_time_that_intervals_share_counts_once(
    intervals: list[tuple[float, float]], length: float
) -> None:
    assert gpu.covered(intervals) == length


def test_a_step_counts_the_products_of_both_passes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    first, second = 2 * 4 * 6 * 5, 2 * 4 * 5 * 2  # forward, of 4 samples
    expected = 2 * first + 3 * second  # nobody asks for the gradient of the input
    assert gpu.flops_of_step(model, 4, (1, 2, 3)) == expected


def test_the_network_for_gpus_is_a_resnet18() -> None:
    model = work.model("resnet")
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert gpu.flops_of_step(model, 1, (3, 32, 32)) == pytest.approx(3 * 1.11e9, rel=0.01)


def test_images_made_for_gpus_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SHAPE", (3, 32, 32))
    images, labels = work.synthetic(0, 20)
    assert (images.shape, images.dtype, labels.dtype) == ((20, 3, 32, 32), torch.uint8, torch.int64)
    assert torch.equal(images, work.synthetic(0, 20)[0])
    assert not torch.equal(images, work.synthetic(20, 20)[0])


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(device: str, peak: float | None) -> None:
    assert peak_tflops(device) == peak


def event(name: str, category: str, start: float, length: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": length}


def test_a_trace_tells_when_no_kernel_runs_and_how_often_the_host_waits(tmp_path: Path) -> None:
    events = [
        event("ProfilerStep#5", "user_annotation", 100, 50),
        event("ProfilerStep#6", "user_annotation", 150, 50),
        event("ProfilerStep#5", "gpu_user_annotation", 100, 90),  # the device's is no other step
        event("gemm", "kernel", 120, 20),
        event("relu", "kernel", 130, 20),  # beside it, on another stream
        event("gemm", "kernel", 200, 20),  # the device is behind the host
        event("Memcpy HtoD", "gpu_memcpy", 160, 10),
        event("cudaStreamSynchronize", "cuda_runtime", 110, 5),
        event("cudaMemcpyAsync", "cuda_runtime", 155, 1),
        event("cudaDeviceSynchronize", "cuda_runtime", 201, 5),  # the profiler's own, at the end
        {"ph": "i", "name": "an instant has no length", "ts": 3},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    assert gpu.read_trace(trace) == gpu.Trace(idle=0.5, waits=0.5)


def test_the_table_shows_what_is_known() -> None:
    steps = {"loop": 0.002, "launcher": 0.004, "launcher bf16": 0.001}
    traces = dict.fromkeys(steps, gpu.Trace(0.25, 0))
    _, *rows = gpu.table("mlp", steps, traces, peak=1).splitlines()
    assert [" ".join(row.split()) for row in rows] == [
        "loop 32,000.00 2.00 1.00 25.00 0.00 10.27",
        "launcher 16,000.00 4.00 2.00 25.00 0.00 5.13",
        "launcher bf16 64,000.00 1.00 0.50 4.00 25.00 0.00 20.54",
    ]
    assert gpu.table("mlp", steps, traces, peak=None).splitlines()[1].endswith(" 0.00")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loop", "accelerate", "launcher"])
def test_contenders_train_without_a_gpu_too_and_leave_a_trace(name: str, tmp_path: Path) -> None:
    work.make_images(tmp_path)
    [peer] = [one for one in gpu.contenders("small") if one.name == name]
    trace = tmp_path / "trace.json"
    assert gpu.traced(peer, "small", tmp_path, trace) == gpu.Trace(idle=1, waits=0)
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"ProfilerStep#72", "ProfilerStep#91"} <= names


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so(tmp_path: Path) -> None:
    script = PROJECT / "tests" / "benchmarks" / "gpu.py"
    done = command(sys.executable, script, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "this benchmark needs a CUDA GPU, and torch finds none here\n"
