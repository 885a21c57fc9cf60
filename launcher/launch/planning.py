"""What a run would need: asked of a process of its own, and told in words. Never imports torch."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, RecipeError, TrainingFailed
from launcher.files import read_json, write_json
from launcher.launch.launch import Nodes, environment
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 1 << 10 * power for power, unit in enumerate("KMGT", start=1)}


def memory_of(text: str) -> int:
    """Return the bytes that text like `80GB` or `24GiB` says; raises BadInput for any other."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if not match or match[2] not in _UNITS or not float(match[1]):
        raise BadInput(f"--memory {text} is no size", hint="like 80GB, or 24GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def planned(file: RecipeFile, recipe: Recipe, nproc: int) -> dict[str, Any]:
    """Return what `launcher.planning.plan` finds; raises RecipeError where it cannot be known."""
    with tempfile.TemporaryDirectory(prefix="launcher-plan-") as folder:
        asked, answer = Path(folder, "asked.json"), Path(folder, "plan.json")
        told = {"recipe": file.name, "recipe_path": str(file.path), "nproc": nproc}
        write_json(asked, told | {"hyperparameters": recipe.hyperparameters()})
        words = ["-m", "launcher.node.start", "plan", str(asked), str(answer)]
        done = subprocess.run(
            [sys.executable, *words],
            env=environment(Nodes(1, cpu=True), os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        found = read_json(answer)
    if found is None:
        lines = done.stderr.strip().splitlines()
        raise TrainingFailed(f"no plan could be made: {lines[-1] if lines else 'no word why'}")
    if "error" in found:
        raise RecipeError(found["error"], hint=found["hint"])
    return found


def judged(plan: Mapping[str, Any], memory: int) -> dict[str, Any]:
    """Return a plan with whether a device of so many bytes holds it, and the most samples."""
    shard = -(-plan["of_a_step"] // plan["processes"])

    def fits(sizes: Mapping[str, int]) -> dict[str, Any]:
        left = memory - sum(n for name, n in sizes.items() if name != "saved_for_backward")
        most = min(shard, int(left // max(plan["saved_of_a_sample"], 1)))
        return {"fits": sum(sizes.values()) <= memory, "largest_micro_batch": max(most, 0)}

    both = {name: {**plan[name], **fits(plan[name])} for name in ("whole", "sharded")}
    return {**plan, "memory": memory, **both}


def in_words(plan: Mapping[str, Any]) -> str:
    """Return a plan for people."""
    ranks = plan["processes"]
    who = f"each of {ranks} processes" if ranks > 1 else "the process"
    tera, checkpoint = plan["flops_of_a_step"] / 1e12, _size(plan["checkpoint"])
    lines = [
        f"{plan['parameters']:,} parameters",
        f"{plan['steps']:,} steps of {tera:,.3g} TFLOP; a checkpoint has {checkpoint}",
        f"computed {plan['computed']}",
        "",
        f"{who:<34}{'shard=false':>12}{'shard=true':>12}",
    ]
    names = [name for name, value in plan["whole"].items() if not isinstance(value, bool)]
    for name in (name for name in names if name != "largest_micro_batch"):
        label = name.replace("_", " ")
        if name == "saved_for_backward":
            label += f", {plan['micro_batch']} at once"
        lines.append(f"{label:<34}" + _both(plan, lambda sizes, name=name: _size(sizes[name])))
    lines.append(f"{'in all':<34}" + _both(plan, lambda sizes: _size(_total(sizes))))
    if "memory" in plan:
        label = f"fits {_size(plan['memory'])}"
        lines.append(f"{label:<34}" + _both(plan, lambda sizes: "yes" if sizes["fits"] else "no"))
        most = _both(plan, lambda sizes: str(sizes["largest_micro_batch"] or "none"))
        lines.append(f"{'largest micro_batch_size':<34}" + most)
    return "\n".join(lines)


def _both(plan: Mapping[str, Any], of: Any) -> str:
    return "".join(f"{of(plan[name]):>12}" for name in ("whole", "sharded"))


def _total(sizes: Mapping[str, Any]) -> int:
    judgements = ("fits", "largest_micro_batch")
    return sum(size for name, size in sizes.items() if name not in judgements)


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]  # a float from here on
    return f"{count:,.3g} GB"
