"""What is otherwise for a job that runs a script: what ended it, whether it got on, its result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.errors import LauncherError, Stopped
from launcher.job.place import lead_s
from launcher.launch import script as scripts
from launcher.launch.ended import alike, verdict
from launcher.launch.launch import Nodes
from launcher.launch.resume import resumed_script
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder
from launcher.run.node_marks import Came
from launcher.script.ends import Ends
from launcher.script.script import Script

_QUICK_S = 60.0  # a failure that comes so soon, and again, is not worth a third start


def cause(
    run: RunDir, told: Mapping[str, Any], came: Sequence[Came], code: int, *, stopped: bool
) -> LauncherError | None:
    """Return what ended the processes of a script, None where they completed.

    `stopped`: the whole job was asked to stop, or taken.
    """
    nodes, ranks = range(told["nodes"]), range(told["world_size"])
    by_node = [Ends.read(run, [node]) for node in nodes]
    ended = [end for one in by_node for end in one.ends]
    whole = len(ended) == len(ranks) and not any(end.code for end in ended)
    asked = any(one.asked for one in by_node)
    if whole and not asked:
        return verdict(run, ranks, nodes, code)
    if stopped or whole or _was_asked_first(by_node) or _was_ended(by_node, came):
        return verdict(run, ranks, nodes, code, Stopped("stopped on request"))
    # One has failed, and srun has asked the other nodes because of it.
    return verdict(run, ranks, nodes, code, heed_agents=False)


def _was_asked_first(by_node: Sequence[Ends]) -> bool:
    """Whether the process that ended badly first had been asked to stop, as its whole node had."""
    bad = [(end.time, one.asked) for one in by_node for end in one.ends if end.code]
    return bool(bad) and min(bad)[1]


def _was_ended(by_node: Sequence[Ends], came: Sequence[Came]) -> bool:
    """Whether a node was asked to stop, and no process has failed: SLURM killed the rest."""
    failed = any(end.code and end.by_itself for one in by_node for end in one.ends)
    return any(one.asked for one in came) and not failed


def judged(
    told: Mapping[str, Any],
    before: Sequence[Attempt],
    last: Attempt,
    error: LauncherError,
) -> Attempt:
    """Return an attempt with its error, and whether it got on where no step tells.

    That is seen by the newest file under --progress; else a failure within a minute that is the
    same as the one before did not, and nobody knows of any other end.
    """
    script = Script.of(told)
    assert script
    last = replace(last, error=error.message)
    if last.step or not before:
        return last
    began = before[-1].started
    if script.progress:
        newest = script.newest()
        return replace(last, got_on=newest is not None and newest.time_ns > began * 1e9)
    same = [one for one in before[:-1] if one.verdict == "failed"][-1:]
    again = bool(same) and alike(LauncherError(same[0].error), error)
    quick = last.verdict == "failed" and time.time() - began < _QUICK_S
    return replace(last, got_on=not (quick and again))


def resumed(run: RunDir, told: Mapping[str, Any], nodes: Nodes) -> dict[str, Any]:
    """Return the configuration that a later start goes on with.

    Without a snapshot the code is as it is when the job starts.
    """
    return resumed_script(run, nodes, None, allow_changes="snapshot" not in told)


def with_grace(run: RunDir, told: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run; a script of its has no longer to stop than to the limit.

    SLURM warns so long before its time limit, and kills all, the batch script too, some seconds
    behind it: who ignores a request until then would never be requeued.
    """
    warned_s, script = lead_s(SlurmFolder.of(run).asked()), Script.of(told)
    if script is None or script.grace is not None or not warned_s:
        return told
    return told | {"script": replace(script, grace=warned_s).told()}


def begin(run: RunDir) -> None:
    """Count a start: its machines read which one it is."""
    scripts.note_start(run, scripts.starts(run) + 1)


def write_result(
    run: RunDir, told: Mapping[str, Any], error: LauncherError | None, seconds: float
) -> None:
    """Write the result.json of a script: how its job ended, None where it completed."""
    nodes = Nodes(told["world_size"] // told["nodes"], told["nodes"])
    scripts.write_result(run, nodes, error, seconds)
