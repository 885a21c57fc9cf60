"""Stage 6: where the host waits for the device, how long it idles, and what a checkpoint blocks."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from check import PROJECT, Note

sys.path[:0] = [str(PROJECT / "tests" / "benchmarks")]
TRACED = {"mlp": ["launcher", "launcher graphs", "launcher all graphs"], "resnet": ["launcher all"]}


def main(cpu: bool, folder: Path, note: Note) -> None:
    checkpoints(cpu, folder, note)
    import gpu
    from speed import PEERS

    env = os.environ | {"SPEED_DATA": str(folder)}
    subprocess.run([sys.executable, str(PEERS / "work.py")], env=env, check=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.parent / "work-5" / "compiled")
    for what in [] if cpu else TRACED:
        for peer in (peer for peer in gpu.contenders(what) if peer.name in TRACED[what]):
            trace = gpu.traced(peer, what, folder, folder / f"{what}-{peer.name}.json")
            told = f"idle {100 * trace.idle:.0f} %, {trace.waits:.2f} waits a step"
            note(**{f"{what}, {peer.name}": told})


def checkpoints(cpu: bool, folder: Path, note: Note) -> None:
    """Time what a save of 2 GB blocks: the copy to host memory, the first and the later ones."""
    from launcher.data.device import on_host, reserve

    gigabytes = 0.05 if cpu else 2
    count = int(gigabytes * 1e9 / 4 / 100)
    device = "cpu" if cpu else "cuda"
    state = {f"p{number}": torch.rand(count, device=device) for number in range(100)}
    bound = torch.empty(count, pin_memory=not cpu)

    def seconds(do: object) -> float:
        if not cpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        do()  # type: ignore[operator]
        if not cpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def to_pinned() -> None:
        for tensor in state.values():
            bound.copy_(tensor, non_blocking=True)

    seconds(to_pinned)
    began = time.perf_counter()
    reserve(state)
    seconds(lambda: [torch.ones(100, device=device) for _ in range(100)])
    note(a_step_beside_pinning_s=round(time.perf_counter() - began, 4))
    for thread in threading.enumerate():
        if thread.name == "pinned memory":
            thread.join()
    note(pinned_in_s=round(time.perf_counter() - began, 3))
    note(
        copy_to_pinned_s=round(seconds(to_pinned), 4),
        first_save_blocks_s=round(seconds(lambda: on_host(state)), 4),
        later_saves_block_s=[round(seconds(lambda: on_host(state)), 4) for _ in range(3)],
        pageable_s=round(seconds(lambda: [t.to("cpu", copy=True) for t in state.values()]), 4),
    )
