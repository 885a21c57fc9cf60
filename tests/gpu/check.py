"""All that this project promises of a CUDA GPU, tried on a bare machine that has one.

    PYTHONPATH=$PWD python3 tests/gpu/check.py --out FOLDER [--stages 1,2] [--together 4] [--cpu]

Needs torch, torchvision, accelerate, click, jinja2, psutil, rich and pytest, and no network. Stages
run in order, each a process of its own with a limit of its own. A line is printed as each ends, and
FOLDER/results.json is written anew; FOLDER/stage-N.log holds what it said. Ends with 1 where a
stage failed. `--cpu` tries all of it, but for speed, where there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(PROJECT / "tests"), str(PROJECT)]


class Stage(NamedTuple):
    """A part of the check."""

    what: str
    limit_s: float
    module: str  # whose `main(cpu, folder, note)` does it


STAGES = {
    1: Stage("digits by launcher run, torchrun and accelerate launch; doctor", 100, "starts"),
    2: Stage("tests that need a GPU", 150, "cuda_tests"),
    3: Stage("two and three processes on one GPU, over gloo", 110, "shared"),
    4: Stage("NCCL with one rank, in DDP", 90, "nccl"),
    5: Stage("speed against a loop by hand and Accelerate", 200, "against_peers"),
    6: Stage("waits of the host, idle share, captured steps, checkpoints", 120, "traces"),
    7: Stage("a GPT of 350 million parameters: tokens/s, MFU", 200, "gpt_speed"),
}
Note = Callable[..., None]


def run_stage(number: int, folder: Path, *, cpu: bool) -> None:
    """Do one stage in this process; what it finds is in FOLDER/stage-N.json at every moment."""
    facts: dict[str, Any] = {}

    def note(**found: Any) -> None:
        facts.update(found)
        print(json.dumps(found), flush=True)
        (folder / f"stage-{number}.json").write_text(json.dumps(facts, indent=1))

    work = folder / f"work-{number}"
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    __import__(STAGES[number].module).main(cpu, work, note)


def start_stage(number: int, folder: Path, *, cpu: bool) -> dict[str, Any]:
    """Run a stage in a process of its own; returns how it ended, and what it found."""
    stage, began = STAGES[number], time.perf_counter()
    words = [sys.executable, __file__, "--out", str(folder), "--stage", str(number)]
    with (folder / f"stage-{number}.log").open("wb") as log:
        process = subprocess.Popen(
            words + ["--cpu"] * cpu, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(timeout=stage.limit_s * (4 if cpu else 1))
        except subprocess.TimeoutExpired:
            code = f"cut after {stage.limit_s} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    found = folder / f"stage-{number}.json"
    seconds = round(time.perf_counter() - began, 1)
    facts = json.loads(found.read_text()) if found.exists() else {}
    return {"stage": number, "what": stage.what, "ended": code, "seconds": seconds, "found": facts}


def device() -> str:
    """Return what this machine has, in words."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{name}, torch {torch.__version__}, {os.cpu_count()} cores"


def check(numbers: list[int], folder: Path, *, cpu: bool, together: int) -> bool:
    """Run stages in order, up to so many at a time; returns whether all passed."""
    results: dict[str, Any] = {"device": device(), "date": time.strftime("%Y-%m-%d"), "stages": []}
    print(results["device"], flush=True)
    run = partial(start_stage, folder=folder, cpu=cpu)
    for done in ThreadPoolExecutor(together).map(run, numbers):
        number = done["stage"]
        results["stages"].append(done)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        word = "ok" if done["ended"] == 0 else f"FAILED ({done['ended']})"
        print(f"stage {number}, {done['what']}: {word}, {done['seconds']} s", flush=True)
        for key, value in done["found"].items():
            print(f"    {key}: {value}", flush=True)
        if done["ended"] != 0:
            last = (folder / f"stage-{number}.log").read_text(errors="replace").splitlines()[-25:]
            print("\n".join(f"    | {line}" for line in last), flush=True)
    return all(done["ended"] == 0 for done in results["stages"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default="1,2,3,4,5,6,7")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--together", type=int, default=1, help="stages at a time; not for speed")
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parent), str(PROJECT / "tests"), str(PROJECT)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    if options.stage:
        run_stage(options.stage, folder, cpu=options.cpu)
        return
    numbers = [int(word) for word in options.stages.split(",")]
    passed = check(numbers, folder, cpu=options.cpu, together=options.together)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
