"""Stage 3: several processes on one GPU, over gloo, give the numbers of one."""

from pathlib import Path
from typing import Any

from check import Note
from training import Run, launcher, many_runs

F64 = {"recipe": "curve", "dtype": "float64", "epochs": 2}
CASES: list[dict[str, Any]] = [
    {"name": "plain", "recipe": "curve", "epochs": 4},
    {"name": "micro", "recipe": "curve", "epochs": 2, "micro_batch_size": 20},
    {"name": "double", **F64},
    {"name": "adamw", **F64, "optimizer_name": "adamw"},
    {"name": "augmented", **F64, "augment": True},
    {"name": "clipped", **F64, "clip_norm": 0.2},
    {"name": "averaged", **F64, "ema_decay": 0.9},
    {"name": "convolved", **F64, "convolve": True},
    {"name": "ghosts", **F64, "samples": 61, "batch_size": 2, "test_samples": 2},
    {"name": "tokens", "recipe": "tokens", "dtype": "float64"},
    {"name": "workers", "recipe": "sampled", "dtype": "float64", "num_workers": 2},
]
SHARED = {"LAUNCHER_SHARED_GPU": "1"}


def trained(folder: Path, world: int, *, cpu: bool) -> Path:
    """Train all cases in so many processes; returns where."""
    folder.mkdir()
    many_runs(folder, world, CASES, in_ddp=world > 1, cpu=cpu, env=SHARED)
    return folder


def main(cpu: bool, folder: Path, note: Note) -> None:
    one = trained(folder / "world-1", 1, cpu=cpu)
    for world in (2, 3):
        several = trained(folder / f"world-{world}", world, cpu=cpu)
        runs = {case["name"]: Run(several / case["name"]) for case in CASES}
        off = {name: run.farthest(Run(one / name)) for name, run in runs.items()}
        note(**{f"world_{world}_differs_by": {name: f"{by:.1e}" for name, by in off.items()}})
        for case in CASES:
            run, single = runs[case["name"]], Run(one / case["name"])
            assert off[case["name"]] < (1e-12 if case.get("dtype") else 1e-5), case
            assert run.result["test_correct"] == single.result["test_correct"], case
    resumed(folder, note, where=["--cpu"] if cpu else [])


def resumed(folder: Path, note: Note, where: list[str]) -> None:
    """Two processes that are stopped and go on end with the bytes of two that are not."""
    words = [*where, "--nproc", "2", "--tracking", "disabled"]
    for name, epochs in (("whole", 4), ("halved", 2)):
        done = launcher(
            *("run", "digits", *words, f"epochs={epochs}", "--run-dir", name),
            cwd=folder,
            env=SHARED,
        )
        assert done.returncode == 0, done.stderr
    note(console=done.stdout.splitlines()[0])
    refused = launcher("run", "digits", *words, "--run-dir", "refused", cwd=folder)
    note(without_the_word=refused.stderr.splitlines()[:1])
    assert where or refused.returncode == 2, refused.stderr
    done = launcher("resume", "halved", "epochs=4", cwd=folder, env=SHARED)
    assert done.returncode == 0, done.stderr
    equal = Run(folder / "halved").weight_bytes == Run(folder / "whole").weight_bytes
    note(resumed_byte_for_byte=equal)
    assert equal
