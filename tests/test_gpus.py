"""GPUs are counted as CUDA and ROCm count them, and processes stay on the cores next to theirs."""

import os
from pathlib import Path

import pytest

from launcher import gpus
from launcher.gpus import stay_near, visible

ALL = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine that has nothing so far, and no management library."""
    monkeypatch.setattr(gpus, "_ROOT", tmp_path)
    monkeypatch.setattr(gpus, "_LIBRARIES", ("libnosuch.so",))
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("named", "there", "found"),
    [
        (None, 4, ["0", "1", "2", "3"]),
        (None, None, []),
        ("", 4, []),
        ("2,0", 4, ["2", "0"]),
        (" 1 , 3 ", 4, ["1", "3"]),
        ("0,7,1", 4, ["0"]),  # all after an entry that is none is ignored
        ("0,-1,1", 4, ["0"]),
        ("-1", 4, []),
        ("0,0", 4, []),  # CUDA then finds none at all
        ("0,1", None, ["0", "1"]),  # a container that hides what the machine has
        ("0,1", 0, []),
        ("NoDevFiles", 4, []),  # SLURM's
        ("none", 4, []),
        ("all", 4, []),  # the container runtime's word, in the wrong variable
        ("GPU-8932f937, GPU-12", None, ["GPU-8932f937", "GPU-12"]),
        ("GPU-8932f937,1", 4, ["GPU-8932f937"]),
        ("0,GPU-8932f937", 4, ["0"]),
        ("MIG-a,MIG-b", 1, ["MIG-a"]),  # a process sees one
        ("MIG-GPU-a/1/0", 1, ["MIG-GPU-a/1/0"]),
        ("01", 4, ["1"]),
    ],
)
def test_what_a_variable_leaves_is_what_cuda_would_take(
    named: str | None, there: int | None, found: list[str]
) -> None:
    assert visible(named, there) == found


def test_device_files_that_may_be_opened_are_counted(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        put(machine / "dev" / name)
    assert gpus.gpus() == 2
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name == "nvidia1")
    assert gpus.gpus() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert gpus.gpus() == 0


def amd(machine: Path, count: int) -> None:
    nodes = machine / "sys/class/kfd/kfd/topology/nodes"
    put(nodes / "0" / "properties", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
    for number in range(1, count + 1):
        told = f"cpu_cores_count 0\nsimd_count 416\ndrm_render_minor {127 + number}\n"
        put(nodes / str(number) / "properties", told)
        put(machine / f"dev/dri/renderD{127 + number}")


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 4),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "1,2,3", "HIP_VISIBLE_DEVICES": "0,1,5"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "GPU-abc"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1),  # HIP hears it, too
        ({"HIP_VISIBLE_DEVICES": "-1"}, 0),
    ],
)
def test_amd_gpus_are_counted_under_the_variables_of_rocm(
    variables: dict[str, str], count: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amd(machine, 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "CUDA_VISIBLE_DEVICES" in variables:
        # What is named without a machine that says otherwise is believed; here AMD's files do.
        monkeypatch.setattr(gpus, "_nvidia", lambda: 0)
    assert gpus.gpus() == count


def test_an_amd_gpu_of_somebody_else_s_group_is_not_counted(machine: Path) -> None:
    amd(machine, 2)
    (machine / "dev/dri/renderD129").unlink()
    assert gpus.gpus() == 1


def nvidia(machine: Path, monkeypatch: pytest.MonkeyPatch, models: list[str]) -> list[set[int]]:
    """GPUs on two NUMA nodes, the cores of this process; returns what it stays on, in order."""
    monkeypatch.setattr(gpus, "_nvidia", lambda: len(models))
    for number, model in enumerate(models):
        place = f"0000:{number + 1:02x}:00.0"
        told = f"Model: \t {model}\nGPU UUID: \t GPU-{number}aaa\nDevice Minor: \t {number}\n"
        put(machine / "proc/driver/nvidia/gpus" / place / "information", told)
        cores = "0-3,8" if number < len(models) / 2 else "4-7"
        put(machine / "sys/bus/pci/devices" / place / "local_cpulist", cores + "\n")
    stayed: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: stayed.append(cores))
    return stayed


NODE_0, NODE_1 = {0, 1, 2, 3, 8}, {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("variables", "local_rank", "cores"),
    [
        ({}, 0, [NODE_0]),
        ({}, 3, [NODE_1]),
        ({"CUDA_VISIBLE_DEVICES": "3,0"}, 0, [NODE_1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a,GPU-2"}, 1, [NODE_1]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1, []),  # beyond the GPUs
        ({"CUDA_VISIBLE_DEVICES": "MIG-a"}, 0, []),  # whose it is, is not known
    ],
)
def test_a_process_stays_next_to_its_own_gpu(
    variables: dict[str, str],
    local_rank: int,
    cores: list[set[int]],
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stayed = nvidia(machine, monkeypatch, ["A"] * 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stay_near(local_rank, threads=2)
    assert stayed == cores


def test_a_process_that_needs_more_threads_than_cores_are_near_stays_where_it_is(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stayed = nvidia(machine, monkeypatch, ["A"] * 2)
    stay_near(0, threads=6)
    assert stayed == []


def test_gpus_that_differ_have_a_known_place_only_in_the_order_of_the_bus(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stayed = nvidia(machine, monkeypatch, ["A", "B"])
    stay_near(1, threads=1)
    assert stayed == []
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    stay_near(1, threads=1)
    assert stayed == [NODE_1]


def test_without_a_gpu_a_process_stays_where_it_is(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stayed = nvidia(machine, monkeypatch, [])
    stay_near(0, threads=1)
    assert stayed == []
