"""Stage 7: a GPT of 350 million parameters, as a recipe and by hand: tokens/s and MFU."""

import os
import sys
from pathlib import Path
from typing import cast

from check import PROJECT, Note

sys.path[:0] = [str(PROJECT / "tests" / "benchmarks")]
SCRIPT = Path(__file__).parent / "gpt.py"
SMALL = ["layers=2", "width=64", "heads=2", "vocabulary=97", "context=32", "samples=320"]
OPTIONS = ["mixed_precision=bf16", "compile=true"]


def main(cpu: bool, folder: Path, note: Note) -> None:

    import torch
    from training import command, launcher

    from launcher.model.peaks import peak_tflops

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    words = SMALL if cpu else OPTIONS
    where = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    peak = None if cpu else peak_tflops(torch.cuda.get_device_name())
    flops = flops_of_step(small=cpu)
    steps: dict[str, float] = {}
    for number in range(2):
        for name in ("by hand", "launcher"):
            out = folder / f"{name}.txt"
            env = {**where, "GPT_OUT": str(out)}
            if name == "by hand":
                done = command(sys.executable, SCRIPT, *words, cwd=folder, timeout_s=200, env=env)
            else:
                run = ["--run-dir", f"run-{number}", "--tracking", "disabled", *(["--cpu"] * cpu)]
                more = ["data_on_device=true", "log_every=100", "epochs=1"]
                words_ = ["run", SCRIPT, *words, *more, *run]
                done = launcher(*words_, cwd=folder, timeout_s=200, env=env)
            assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
            print(name, out.read_text(), done.stdout[-300:], flush=True)
            ms = float(out.read_text().split()[1])
            steps[name] = min(ms, steps.get(name, ms))
            tokens = 16 * (32 if cpu else 1024)
            told = f"{ms:.2f} ms, {1e3 * tokens / ms:,.0f} tokens/s, {out.read_text()}"
            if peak:
                told += f", MFU {flops / (ms / 1e3) / (1e12 * peak):.3f}"
            note(**{f"{name}, {number + 1}": told})
    note(launcher_of_by_hand=round(steps["launcher"] / steps["by hand"], 4))


def flops_of_step(*, small: bool) -> int:
    """Return the operations of a step, counted by torch on one sample; nothing is computed."""
    import torch
    from gpt import GPT, Gpt
    from torch.utils.flop_counter import FlopCounterMode

    from launcher.recipe.hyperparameters import configure

    os.environ.setdefault("GPT_OUT", os.devnull)
    options = dict(word.split("=") for word in SMALL) if small else {}
    recipe = cast("Gpt", configure(Gpt, "gpt", options))
    with torch.device("meta"):
        model = GPT(recipe.layers, recipe.width, recipe.heads, recipe.vocabulary, recipe.context)
        tokens = torch.zeros(recipe.batch_size, recipe.context + 1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).backward()
    return int(counter.get_total_flops())
