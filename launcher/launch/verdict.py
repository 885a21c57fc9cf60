"""Say what ended a run, from what its processes left behind. Never imports torch."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import BadInput, LauncherError, NodeFailed, Stopped, TrainingFailed
from launcher.files import read_json
from launcher.processes import shown
from launcher.run.directory import RunDir
from launcher.run.record import Record

_MOST_BYTES = 1 << 20


def verdict(
    run: RunDir,
    ranks: Sequence[int],
    node_ranks: Sequence[int],
    exit_code: int,
    because: LauncherError | None = None,
) -> LauncherError | None:
    """Return what went wrong with some ranks of a run, of some machines; None if they completed.

    What ranks have written down stands, whatever happened to them afterwards. `because` is what
    `asked` returns.
    """
    records = Record.read_all(run, ranks)
    result = read_json(run.result) or {}
    # Ranks may be on machines that do not share a disk with this one; the result is rank 0's.
    heard = bool(records) and (exit_code == 0 or len(records) == len(ranks))
    written = bool(result) or 0 not in node_ranks
    if heard and written and all(record.state == "completed" for record in records):
        return None
    if any(record.users_mistake for record in records):
        mistaken = next(record for record in records if record.users_mistake)
        return BadInput(mistaken.error, hint=mistaken.hint)
    exits: dict[str, int] = {}
    for node_rank in node_ranks:
        exits |= read_json(run.exits(node_rank)) or {}
    if list(ranks) == [0]:
        exits.setdefault("0", exit_code)
    stopped = [record for record in records if record.state == "stopped"]
    said = any(record.state == "failed" and record.first_cause for record in records)
    if isinstance(because, NodeFailed) and not said and len(stopped) < len(records or [None]):
        return because  # it killed those that said nothing
    failed = first_failure(records, run, exits)
    if failed is None and stopped:
        return Stopped(stopped[0].error, hint=f"launcher resume {shown(run.path)}")
    if found := failed or because:
        return found
    return TrainingFailed(
        f"the run {_end(exit_code)} before any process could say why",
        hint=next(filter(None, (tail(run.agent(node_rank)) for node_rank in node_ranks)), None),
    )


def asked(run: RunDir, hang: str | None, *, stop: bool) -> LauncherError | None:
    """Return why processes were ended (they hang) or asked to `stop`, None where they were not."""
    if hang:
        return NodeFailed(hang, hint=f"the stacks of all ranks are in {shown(run.logs)}")
    if stop:
        hint = f"launcher resume {shown(run.path)}"
        return Stopped("stopped on request before its first step", hint=hint)
    return None


def first_failure(
    records: list[Record], run: RunDir, exits: Mapping[str, int]
) -> TrainingFailed | None:
    """Return what failed first, with its last lines; `exits` are exit codes by rank.

    First comes an error of a rank's own, then a process that died unheard (killed, out of memory,
    crashed in C), last a rank that only lost a peer. A process that the agent ended is no cause.
    """
    failed = sorted((r for r in records if r.state == "failed"), key=lambda r: r.time)
    own = [r for r in failed if r.first_cause]
    unheard = [r for r in records if r.state == "running" and exits.get(str(r.rank)) != -15]
    unheard.sort(key=lambda r: str(r.rank) not in exits)
    if not (candidates := own + unheard + failed):
        return None
    first = candidates[0]
    log = f"the full log is {shown(run.log(first.rank))}"
    again = first.made_again(run)
    if first.error and not first.traceback:  # an error of ours, which says all there is to say
        return TrainingFailed(first.error, hint="; ".join([*again, first.hint or log]))
    what = first.error.partition("\n")[0] or death(exits.get(str(first.rank)))
    lines = "\n".join(first.users_frames.splitlines()[-10:]) or tail(run.log(first.rank))
    return TrainingFailed(
        f"rank {first.rank} on {first.host} failed first: {what}\n{lines}".rstrip(),
        hint="; ".join([*again, *filter(None, [first.hint]), log]),
    )


def _end(exit_code: int) -> str:
    return f"was {death(exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"


def death(exit_code: int | None) -> str:
    """Return in words how a process ended that said nothing."""
    if exit_code == -signal.SIGKILL:
        return "killed by SIGKILL (did the machine run out of memory?)"
    if exit_code is not None and exit_code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(-exit_code, f'signal {-exit_code}')}"
    return "it ended without a word" + (f" (exit code {exit_code})" if exit_code else "")


def tail(path: Path, count: int = 10, since: int = 0) -> str:
    """Return the last lines of a log, or the first of a crash that Python reported there.

    Of its end, that is: of a log of any length no more than `_MOST_BYTES` are read, nor what was
    before the byte `since`.
    """
    try:
        with path.open("rb") as log:
            log.seek(max(since, log.seek(0, os.SEEK_END) - _MOST_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    crashes = [at for at, line in enumerate(lines) if line.startswith("Fatal Python error")]
    return "\n".join(lines[crashes[-1] :][:count] if crashes else lines[-count:])
