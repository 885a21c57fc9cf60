"""What a user pays for the launcher: against the limit of the machine, and against its peers.

    uv run python tests/benchmarks/speed.py [--rounds 3] [--only NAME,NAME] [--work mlp|conv|small]
    uv run --with lightning --with transformers python tests/benchmarks/speed.py   # with these too

Every peer trains one epoch of the same work and tests it. Peers are interleaved, a round at a time,
and only medians and ratios mean anything. A step is its 5th percentile: what other load on the
machine adds is left out. CPU time of a step is that of one process.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PYTHON = sys.executable
TORCHRUN = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = [
    *(PYTHON, "-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--main_process_port=0"),
]
LAUNCHER = [PYTHON, "-m", "launcher", "run", str(PEERS / "ours.py"), "--tracking=disabled"]
OPTIONAL = ("lightning", "transformers")  # peers that nothing else here needs
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
SKIPPED = 50  # first steps, which warm up


@dataclass(frozen=True)
class Peer:
    """A way to do the work."""

    name: str
    processes: int
    command: Sequence[str]  # for `processes` 0: started once a rank, with torchrun's environment

    @property
    def limit(self) -> str:
        return f"limit {self.processes}"


def peers() -> list[Peer]:
    script = {path.stem: str(path) for path in PEERS.glob("*.py")}
    found = [
        Peer("limit 1", 1, [PYTHON, script["limit"]]),
        Peer("launcher 1", 1, [*LAUNCHER, "--cpu", "--nproc=1"]),
        Peer("quickstart 1", 1, [PYTHON, script["quickstart"]]),
        Peer("accelerate 1", 1, [*ACCELERATE, "--num_processes=1", "--cpu", script["accelerated"]]),
        Peer("limit 2", 2, [PYTHON, script["limit"]]),
        Peer("launcher 2", 2, [*LAUNCHER, "--cpu", "--nproc=2"]),
        Peer("launcher gloo 2", 2, [*LAUNCHER, "--cpu", "--nproc=2", "shared_gradients=false"]),
        Peer("torchrun 2", 2, [*TORCHRUN, "2", script["ddp"]]),
        Peer(
            "accelerate 2",
            2,
            [*ACCELERATE, "--num_processes=2", "--multi_gpu", script["accelerated"]],
        ),
    ]
    if "lightning" not in missing():
        found.append(Peer("lightning 1", 1, [PYTHON, script["by_lightning"], "1"]))
        found.append(Peer("lightning 2", 2, [PYTHON, script["by_lightning"], "2"]))
    if "transformers" not in missing():
        found.append(Peer("hf trainer 1", 1, [PYTHON, script["by_transformers"]]))
        found.append(Peer("hf trainer 2", 2, [*TORCHRUN, "2", script["by_transformers"]]))
    return found


def missing() -> list[str]:
    """Return the packages of optional peers that are not installed."""
    return [package for package in OPTIONAL if not find_spec(package)]


Row = dict[str, float]


def measure(
    peer: Peer, work: str, data: Path, tries: int = 3, where: Mapping[str, str] = ON_CPU
) -> Row:
    """Run a peer once; raises SystemExit where it fails or some of its processes did not train.

    A peer may abort while it ends, in gloo's threads, when all is done: it gets other tries.
    """
    with tempfile.TemporaryDirectory() as folder:
        cores = len(os.sched_getaffinity(0))
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PEERS), os.environ.get("PYTHONPATH")])),
            "SPEED_DATA": str(data),
            "SPEED_WORK": work,
            "SPEED_OUT": folder,
            "OMP_NUM_THREADS": str(max(1, cores // peer.processes)),
            **where,
        }
        began = time.time()
        started = _start(peer, env, Path(folder))
        largest = 0.0
        while any(process.poll() is None for process in started):
            time.sleep(0.25)
            largest = max(largest, _memory([process.pid for process in started]))
        wall = time.time() - began
        said = "".join(path.read_text() for path in Path(folder).glob("said-*"))
        steps = [json.loads(path.read_text()) for path in Path(folder).glob("steps-*.json")]
        answers = "RESULT" in said or "Done:" in said
    if any(p.returncode for p in started) or len(steps) != peer.processes or not answers:
        if tries > 1 and not peer.name.startswith("launcher"):
            return measure(peer, work, data, tries - 1, where)
        raise SystemExit(f"{peer.name} failed:\n{said[-3000:]}")
    steps.sort(key=lambda row: row["rank"])
    return _row(steps, began, wall, largest)


def _start(peer: Peer, env: dict[str, str], folder: Path) -> list["subprocess.Popen[bytes]"]:
    ranks: list[dict[str, str]] = [{}]
    if peer.name == "limit 2":  # the smallest launcher: nothing but the processes
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [place | {"RANK": str(rank)} for rank in range(2)]
    started = []
    for number, place in enumerate(ranks):
        with (folder / f"said-{number}").open("wb") as out:
            started.append(
                subprocess.Popen(
                    peer.command, cwd=folder, env=env | place, stdout=out, stderr=subprocess.STDOUT
                )
            )
    return started


def _memory(roots: Sequence[int]) -> float:
    """MB of all processes of a run together; what they share counts once (PSS)."""
    total = 0.0
    for root in roots:
        try:
            family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += next((int(x.split()[1]) for x in rollup.splitlines() if x[:4] == "Pss:"), 0)
    return total / 1000


def _row(steps: list[dict[str, list[float]]], began: float, wall: float, memory: float) -> Row:
    walls = steps[0]["walls"]
    gaps = sorted(b - a for a, b in zip(walls[SKIPPED:], walls[SKIPPED + 1 :], strict=False))
    used = [row["cpus"][-1] - row["cpus"][SKIPPED] for row in steps]
    return {
        "wall s": wall,
        "first s": walls[0] - began,
        "step ms": 1e3 * gaps[len(gaps) // 20],
        "median ms": 1e3 * gaps[len(gaps) // 2],
        "cpu ms": 1e3 * statistics.mean(used) / len(gaps),
        "MB": memory,
    }


def medians(rows: list[Row]) -> Row:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def table(found: dict[str, Row], everyone: list[Peer]) -> str:
    lines = [
        f"{'':16}" + "".join(f"{key:>11}" for key in next(iter(found.values()))) + "     x limit"
    ]
    for peer in everyone:
        if row := found.get(peer.name):
            limit = found.get(peer.limit)
            ratio = f"{row['step ms'] / limit['step ms']:12.2f}" if limit else ""
            lines.append(f"{peer.name:16}" + "".join(f"{v:11.2f}" for v in row.values()) + ratio)
    return "\n".join(lines)


# What is aimed at: a contender's figure against another's, at most this much of it.
TARGETS = {
    "mlp": [
        ("step, 1 process, of the limit", "step ms", "launcher 1", "limit 1", 1.05),
        ("step, 2 processes, of DDP's limit", "step ms", "launcher 2", "limit 2", 0.8),
        ("the same over gloo", "step ms", "launcher gloo 2", "limit 2", 1.05),
        ("first step, of torchrun", "first s", "launcher 2", "torchrun 2", 0.75),
        ("whole run, 1, of accelerate launch", "wall s", "launcher 1", "accelerate 1", 0.6),
        ("whole run, 2, of accelerate launch", "wall s", "launcher 2", "accelerate 2", 0.75),
        ("memory of all processes, of torchrun", "MB", "launcher 2", "torchrun 2", 1.0),
    ],
    "conv": [("conv step, of DDP by hand", "median ms", "launcher 2", "torchrun 2", 0.95)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=["mlp", "conv", "small"], default="mlp")
    parser.add_argument("--only", default="", help="names of peers, with commas")
    options = parser.parse_args()
    if missing():
        words = " ".join(f"--with {package}" for package in missing())
        print(
            f"without {', '.join(missing())}: `uv run {words} python …` adds them", file=sys.stderr
        )
    names = options.only.split(",") if options.only else [peer.name for peer in peers()]
    everyone = [peer for peer in peers() if peer.name in names]
    if len(everyone) < len(names):
        parser.error(f"--only: these are there: {', '.join(peer.name for peer in peers())}")
    rows: dict[str, list[Row]] = {peer.name: [] for peer in everyone}
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"SPEED_DATA": folder, "OMP_NUM_THREADS": "1"}
        subprocess.run([PYTHON, str(PEERS / "work.py")], env=env, check=True)
        for number in range(options.rounds):
            for peer in everyone:
                rows[peer.name].append(measure(peer, options.work, Path(folder)))
                print(f"round {number + 1}, {peer.name}: {rows[peer.name][-1]}", file=sys.stderr)
    found = {name: medians(several) for name, several in rows.items()}
    print(table(found, everyone))
    for what, key, mine, theirs, most in TARGETS.get(options.work, []):
        if mine in found and theirs in found:
            a, b = found[mine][key], found[theirs][key]
            print(f"{what:42}{a:10.2f} against {b:10.2f}: {a / b:.2f}, at most {most}")
    if options.work == "mlp":
        subprocess.run([PYTHON, str(HERE / "parts.py")], check=True)


if __name__ == "__main__":
    main()
