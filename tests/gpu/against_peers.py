"""Stage 5: what a step costs, against a loop by hand and Accelerate, a few contenders in turns."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from check import PROJECT, Note

sys.path[:0] = [str(PROJECT / "tests" / "benchmarks")]
# name, contenders of benchmarks/gpu.py
WORK = {
    "mlp": ["loop", "accelerate", "launcher", "launcher graphs", "launcher compile graphs"],
    "resnet": ["loop all", "launcher all"],
}
ROUNDS = int(os.environ.get("CHECK_ROUNDS", "2"))
ONLY = os.environ.get("CHECK_WORK", ",".join(WORK)).split(",")


def main(cpu: bool, folder: Path, note: Note) -> None:
    import gpu
    import work
    from speed import ON_CPU, PEERS

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # one for all contenders
    env = os.environ | {"SPEED_DATA": str(folder)}
    subprocess.run([sys.executable, str(PEERS / "work.py")], env=env, check=True)
    where = {**ON_CPU, "CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    for what in ["mlp"] if cpu else ONLY:
        everyone = [peer for peer in gpu.contenders(what) if peer.name in WORK[what]]
        steps: dict[str, list[float]] = {peer.name: [] for peer in everyone}
        for _ in range(1 if cpu else ROUNDS):
            for peer in everyone:
                row = gpu.measured(peer, what, folder, where)
                steps[peer.name].append(row["median ms"])
                print(what, peer.name, row, flush=True)
        found = {name: statistics.median(several) for name, several in steps.items()}
        batch = work.SIZES[what].batch
        first = next(iter(found.values()))
        for name, ms in found.items():
            told = f"{ms:.3f} ms, {1e3 * batch / ms:,.0f} samples/s, x loop {first / ms:.2f}"
            note(**{f"{what}, {name}": told})
