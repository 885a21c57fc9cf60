"""Small scripts that are attached to a run, each in a process of its own and without torch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from training import command

# Counts in a file of its own how often it saved; `body` stands in the loop.
_COUNTING = """
import os, signal, sys
from pathlib import Path
import launcher

state = {"steps": []}

def save(folder):
    print("saving", state["steps"])
    (folder / "state.txt").write_text(repr(state["steps"]))

def load(folder):
    state["steps"] = eval((folder / "state.txt").read_text())

run = launcher.attach(save, load, dir="r", checkpoint_every=100)
for step in run.steps(int(sys.argv[1])):
    state["steps"].append(step)
BODY
print("end", state["steps"], "torch" in sys.modules)
"""


def python(
    text: str, *words: object, cwd: Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the text of a script to its end, as the file `train.py`."""
    script = cwd / "train.py"
    script.write_text(dedent(text))
    return command(sys.executable, script, *words, cwd=cwd, env=env, timeout_s=60)


def counting(
    body: str, steps: int, cwd: Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script that counts steps, with something to do in each of them."""
    text = _COUNTING.replace("BODY", indent(dedent(body).strip(), "    "))
    return python(text, steps, cwd=cwd, env=env)


def record(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "logs" / "rank-0.json").read_text()))


def steps_saved(run: Path) -> list[int]:
    """After how many steps there are checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
