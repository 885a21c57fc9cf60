"""Another start within the allocation: on which of its nodes, and whether it is to be made there.

Back in the queue a job may wait for hours; another start on nodes that it has takes seconds.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.errors import LauncherError, NodeFailed
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder
from launcher.run.node_marks import Came, alike, to_blame
from launcher.run.told import is_script
from launcher.slurm.client import hostnames, job_state
from launcher.slurm.options import seconds
from launcher.times import notes as times
from launcher.times import slow


def allocated(nodes: str, state: Mapping[str, str]) -> list[str]:
    """Return the nodes that a job has now: with --no-kill it may have lost some since it began.

    `nodes` are those that it began with, `state` is what SLURM says of it.
    """
    return _now(state) or hostnames(nodes)


def _now(state: Mapping[str, str]) -> list[str]:
    return hostnames(state.get("NodeList", "").replace("(null)", ""))


def place(run: RunDir, job: str, nodes: str) -> list[str]:
    """Return the nodes for the next start in the order of their ranks; raises LauncherError.

    As many as were asked for, and those first that are well: spare ones are more than that.
    """
    folder = SlurmFolder.of(run)
    there, wanted = allocated(nodes, job_state(job)), folder.asked()["nodes"]
    if len(there) < wanted:
        words = f"job {job} has {len(there)} nodes of the {wanted} that it needs: {nodes}"
        raise LauncherError(words, hint="`scontrol show job` says which")
    bad = folder.bad_nodes()
    chosen = sorted(range(len(there)), key=lambda at: there[at] in bad)[:wanted]
    return [there[at] for at in sorted(chosen)]


def again_on(folder: SlurmFolder, nodes: str) -> str:
    """Return what to say of nodes that a start would leave out, if there were others."""
    bad = folder.bad_nodes()
    used = [name for name in hostnames(nodes) if name in bad] if bad else []
    return f", {', '.join(used)} again: there is no other node in their place" if used else ""


def can_go_on(run: RunDir, nodes: str, began: float, state: Mapping[str, str]) -> bool:
    """Whether a job has nodes that are well, and time, for another start behind one that `began`.

    Time for the warning of its end, and for as long as the last start took to its first step.
    """
    folder = SlurmFolder.of(run)
    asked, bad = folder.asked(), folder.bad_nodes()
    well = [name for name in allocated(nodes, state) if name not in bad]
    left_s = _left_s(state)
    needed_s = lead_s(asked) + _start_s(run, began)
    return len(well) >= asked["nodes"] and (left_s is None or left_s > needed_s)


def note_bad_nodes(
    folder: SlurmFolder, came: Sequence[Came], before: Sequence[Attempt], error: LauncherError
) -> LauncherError:
    """Note the nodes whose own fault it was; returns the error, with that of shared causes."""
    bad, failed_before = folder.bad_nodes(), []
    for one in reversed(before[:-1]):
        if one.verdict != "failed":
            break
        failed_before += one.bad_nodes
    faults = {name: bad[name] for name in failed_before if name in bad}
    for name, fault in to_blame(came, faults).items():
        folder.add_bad_node(name, fault)
    shared = [one for one in came if one.fault and one.node not in folder.bad_nodes()]
    if not shared or shared[0].fault != error.message:
        return error
    others = alike(shared[0], faults)
    for name in others:
        folder.forgive(name)
    where = f"on {', '.join(others)}" if others else "on the other nodes"
    return NodeFailed(f"{error.message}; it was no better {where}", hint=error.hint)


def leave_out_slow(run: RunDir, names: Sequence[str]) -> dict[str, str]:
    """Have later starts do without nodes whose ranks all others wait for, if that was asked for.

    `names` are the nodes of the start that has ended, in the order of their ranks. Returns those
    that are left out, with the reason.
    """
    folder = SlurmFolder.of(run)
    asked = folder.asked()
    found: dict[str, str] = {}
    for one in slow.read(run) if asked.get("exclude_slow") else []:
        at = one.rank // asked["nproc"]
        if at < len(names) and names[at]:
            found.setdefault(names[at], one.words)
    for name, why in found.items():
        folder.add_bad_node(name, why)
    return found


def lost(names: Sequence[str], state: Mapping[str, str]) -> list[str]:
    """Return those of some nodes that the job does not have any more, as far as SLURM says so."""
    there = _now(state)
    return [name for name in names if there and name not in there]


def lead_s(asked: Mapping[str, Any]) -> float:
    """Return how long before its time limit a job is warned; `asked` is its job.json."""
    warning = asked.get("options", {}).get("signal", {}).get("value", "")
    found = re.search(r"@(\d+)$", warning)
    return float(found[1]) if found else 0.0


def _left_s(state: Mapping[str, str]) -> float | None:
    """Return what is left to the time limit, None where there is none, or nobody says so."""
    limit, gone = (seconds(state.get(name, "")) for name in ("TimeLimit", "RunTime"))
    return None if limit is None or gone is None else limit - gone


def _start_s(run: RunDir, began: float) -> float:
    """Return what the last start took to its first step, or took without one.

    Of a script that tells no steps nobody knows.
    """
    if (at := first_step(run)) is not None:
        return max(0.0, at - began)
    tells = not is_script(run.read_config()) or run.mark(0).exists()
    return time.time() - began if tells else 0.0


def first_step(run: RunDir) -> float | None:
    """Return when the last start had done its first step, seconds since 1970; None before."""
    began = None
    at = None
    for line in times.read(run):
        if line["event"] in ("job", "start"):
            began, at = line["time"], None
        elif line["event"] == "first step" and began is not None:
            at = began + sum(line["spent"].values())
    return at
