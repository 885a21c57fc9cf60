"""What ended one start of a job: a node, a rank, or somebody's request to stop."""

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.errors import LauncherError, NodeFailed, Stopped
from launcher.files import read_json
from launcher.job import scripts
from launcher.launch.verdict import verdict
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.run.node_marks import Came, to_blame
from launcher.run.record import Record
from launcher.run.told import is_script


def cause(
    run: RunDir, told: Mapping[str, Any], came: Sequence[Came], code: int, *, stopped: bool
) -> LauncherError | None:
    """Return what ended an attempt; `stopped`: the whole job was asked to stop, or taken.

    None where a script completed: a recipe says so itself.
    """
    by_node, ranks = _node_error(run), range(told["world_size"])
    # SLURM may ask steps alone. Not all nodes: srun asks the others when one of them has failed.
    stopped = stopped or all(one.asked for one in came)
    script = is_script(told)
    if stopped and by_node is None and not script and not _had_begun(run, ranks):
        return Stopped("stopped on request, before training began")
    faulty = [one for one in came if one.fault and not one.lived]
    blamed = to_blame(came, {})
    if first := next(iter([*(one for one in faulty if one.node in blamed), *faulty]), None):
        return NodeFailed(first.fault, hint=first.hint)
    if script:
        return by_node or scripts.cause(run, told, came, code, stopped=stopped)
    if by_node is None and _had_begun(run, ranks) and _was_ended(run, came, len(ranks)):
        return Stopped("ended by SLURM before all could stop")
    return by_node or verdict(run, ranks, range(told["nodes"]), code) or Stopped("stopped")


def _had_begun(run: RunDir, ranks: Sequence[int]) -> bool:
    """Whether a process had done or said anything: one that starts does not hear a request yet."""
    records = Record.read_all(run, ranks)
    marks = [mark.read(run.mark(record.rank)) for record in records]
    return any(one.state != "running" for one in records) or any(one and one.steps for one in marks)


def _was_ended(run: RunDir, came: Sequence[Came], world_size: int) -> bool:
    """Whether all that died while it trained did so because SLURM had asked a node to stop.

    The other nodes may be killed unasked, as soon as that one ends. But srun asks them, too, when
    one has failed: then that one's own processes say so, or its agent does, or the others, who
    lost a peer that nobody had asked.
    """
    nproc, records = world_size // len(came), Record.read_all(run, range(world_size))
    failed = [one for one in records if one.state == "failed"]
    unheard = [one.rank for one in records if one.state == "running"]
    unasked = [rank for rank in unheard if not came[rank // nproc].asked]
    if not any(one.asked for one in came) or any(one.first_cause for one in failed):
        return False
    exits = [(read_json(run.exits(rank // nproc)) or {}).get(str(rank)) for rank in unasked]
    if any(code not in (None, -signal.SIGTERM) for code in exits):
        return False
    return len(unasked) < len(unheard) or (bool(unheard) and not failed)


def _node_error(run: RunDir) -> NodeFailed | None:
    """Return what was wrong with a node where no rank was the cause: the first that was told."""
    files = sorted(run.logs.glob("node-*-error.json"), key=lambda path: path.stat().st_mtime)
    told = read_json(files[0]) if files else None
    return NodeFailed(told["error"], hint=told["hint"]) if told else None
