"""The first lines of every process that the launcher starts: bound to its parent before all else.

    python -m launcher.node.start agent|programs|worker|replay|probe|plan|mirror ARGUMENTS

Importing torch takes seconds, in which the parent may be killed: nobody would tell this process.
"""

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from launcher.gpus import stay_near
from launcher.processes import LOADED, PARENT, die_with_parent, uncollected

_HOMES = {
    "agent": "launcher.node.agent",
    "programs": "launcher.node.programs",
    "worker": "launcher.train.worker",
    "replay": "launcher.replay.process",
    "probe": "launcher.node.probe",
    "plan": "launcher.planning.plan",
    "mirror": "launcher.tracking.process",
}


def main(what: str, arguments: list[str]) -> int:
    """Run the `main` of a module that has a process to itself; returns the exit code."""
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())  # for those that this process starts
    if what in ("worker", "replay", "probe") and os.environ.get("ACCELERATE_USE_CPU") != "true":
        stay_near(int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["OMP_NUM_THREADS"]))
    with uncollected():
        module = import_module(_HOMES[what])
    if mark := os.environ.pop(LOADED, None):  # a job wants to know of each node
        with suppress(OSError), Path(mark).open("a", encoding="utf-8") as file:
            file.write("loaded\n")
    return int(module.main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
