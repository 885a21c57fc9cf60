"""Which GPUs the processes of this machine may use, and which cores are next to each. No torch.

CUDA's own rules for CUDA_VISIBLE_DEVICES, and ROCm's for its variables, are applied to what the
machine has: as its management library says, which sees containers and WSL as CUDA does, else as
device files say.
"""

import ctypes
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SHARED = "LAUNCHER_SHARED_GPU"  # environment: more processes than GPUs, for tests of this project
_ROOT = Path("/")
_LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")


def gpus() -> int:
    """Return how many GPUs processes may use here: NVIDIA's, else AMD's.

    Where the machine hides what it has, what CUDA_VISIBLE_DEVICES names is believed.
    """
    return len(visible(os.environ.get("CUDA_VISIBLE_DEVICES"), _nvidia())) or _visible_amd()


def shared() -> bool:
    """Whether processes may share a GPU: for tests where there is one; slow, and over gloo."""
    return os.environ.get(SHARED) == "1"


def visible(named: str | None, there: int | None) -> list[str]:
    """Return the GPUs that a variable leaves of those that are `there`; None: nobody knows.

    CUDA takes indices or UUIDs, not both, ignores all that follows an entry that is none, takes
    none at all where an index comes twice, and shows a process one MIG instance only (CUDA C++
    Programming Guide, "CUDA environment variables"). SLURM's `NoDevFiles` is no entry.
    """
    if named is None:
        return [str(index) for index in range(there or 0)]
    words = [word.strip() for word in named.split(",")]
    if words[0].startswith("MIG-"):
        return words[:1]
    if words[0].startswith("GPU-"):
        return _unless_twice(_while_valid(words, r"GPU-.*", there))
    indices = [str(int(word)) for word in _while_valid(words, r"\d+", None)]
    at = next((n for n, word in enumerate(indices) if there and int(word) >= there), len(indices))
    return _unless_twice(indices[:at]) if there != 0 else []


def _while_valid(words: Sequence[str], form: str, most: int | None) -> list[str]:
    at = next((n for n, word in enumerate(words) if not re.fullmatch(form, word)), len(words))
    return list(words[:at][:most])


def _unless_twice(words: list[str]) -> list[str]:
    return words if len(set(words)) == len(words) else []


def _nvidia() -> int | None:
    """Return how many NVIDIA GPUs are here; None where neither library nor files say."""
    for name in _LIBRARIES:
        with suppress(OSError, AttributeError):
            library, count = ctypes.CDLL(name), ctypes.c_uint(0)
            if library.nvmlInit_v2() == 0:
                found = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
                library.nvmlShutdown()
                if found == 0:
                    return count.value
    return len([f for f in (_ROOT / "dev").glob("nvidia[0-9]*") if os.access(f, os.W_OK)]) or None


def _visible_amd() -> int:
    """Return how many AMD GPUs ROCm would use: nodes that compute, whose device is ours to open."""
    there = 0
    for file in sorted((_ROOT / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        with suppress(OSError, ValueError):
            facts = dict(line.split() for line in file.read_text().splitlines())
            render = _ROOT / f"dev/dri/renderD{facts.get('drm_render_minor', '')}"
            there += int(facts.get("simd_count", 0)) > 0 and os.access(render, os.W_OK)
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        there = len(visible(os.environ.get(name), there)) if there else 0
    return there


def stay_near(local_rank: int, threads: int) -> None:
    """Keep this process, before it has threads, on the cores next to its GPU.

    Nothing is done where that is not known for certain, or leaves fewer cores than `threads`.
    """
    with suppress(OSError, ValueError, AttributeError):
        mine = os.sched_getaffinity(0)
        near = _cores_near(local_rank) & mine
        if near != mine and len(near) >= max(threads, 1):
            os.sched_setaffinity(0, near)


def _cores_near(local_rank: int) -> set[int]:
    """Return the cores of the NUMA node at the GPU of a rank, empty where it is not known.

    CUDA numbers GPUs by speed, so by their place on the bus only where all are alike or it is told.
    """
    places = sorted((_ROOT / "proc/driver/nvidia/gpus").glob("*/information"))
    facts = [_facts(place) for place in places]
    alike = len({fact.get("Model") for fact in facts}) == 1
    by_place = alike or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    named = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), len(places))
    if not by_place or local_rank >= len(named) or len(places) != _nvidia():
        return set()
    name = named[local_rank]
    ids = [str(index) for index in range(len(facts))]
    if name.startswith("GPU-"):
        ids = [fact.get("GPU UUID", "")[: len(name)] for fact in facts]
    place = places[ids.index(name)].parent.name
    told = (_ROOT / "sys/bus/pci/devices" / place.lower() / "local_cpulist").read_text().strip()
    return {core for part in told.split(",") for core in _range(part)}


def _facts(file: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in file.read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _range(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
