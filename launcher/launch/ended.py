"""Say how a script ended, from what its processes left behind. Never imports torch."""

import re
from collections.abc import Sequence
from contextlib import suppress

from launcher.errors import LauncherError, NodeFailed, Stopped, TrainingFailed
from launcher.launch.last_words import LastWords, last_words
from launcher.launch.verdict import death, tail
from launcher.processes import shown
from launcher.recipe.untrained import note_of
from launcher.run.directory import RunDir
from launcher.run.record import Record
from launcher.script.ends import START_AGAIN, End, Ends


class AskedAgain(Stopped):
    """A process left with 75 though nobody had asked it to stop: it wants to be started again."""


def verdict(
    run: RunDir,
    ranks: Sequence[int],
    node_ranks: Sequence[int],
    exit_code: int,
    because: LauncherError | None = None,
    *,
    heed_agents: bool = True,
) -> LauncherError | None:
    """Return what went wrong with some ranks of a script, of some machines; None if they completed.

    Records are there where a script uses `launcher.attach`, and stand. `because` is what `asked`
    of `launcher.launch.verdict` returns; agents note, too, that they were asked to stop.
    """
    ended, records = Ends.read(run, node_ranks), Record.read_all(run, ranks)
    if isinstance(because, NodeFailed):  # it killed them
        return because
    failed = next((record for record in records if record.state == "failed"), None)
    done = len(ended.ends) == len(ranks) and not any(end.code for end in ended.ends)
    came_to_its_end = bool(records) and all(record.state == "completed" for record in records)
    was_asked = because is not None or (heed_agents and ended.asked)
    if done and not failed and (came_to_its_end or not was_asked):
        if stopped := [record for record in records if record.state == "stopped"]:
            return _stopped(run, stopped[0].error)
        return _untrained(run, ranks)
    if was_asked:
        said = [record.error for record in records if record.state == "stopped" and record.error]
        return _stopped(run, said[0] if said else "stopped on request")
    return _failure(run, ended.ends, failed, records) or _unheard(run, node_ranks, exit_code)


def _untrained(run: RunDir, ranks: Sequence[int]) -> TrainingFailed | None:
    for rank in ranks:
        with suppress(OSError):
            name = note_of(run.path, rank).read_text(encoding="utf-8")
            words = f"the script has defined a recipe, `{name}`, and nobody has trained it"
            return TrainingFailed(words, hint=f"`main({name})` at its end does")
    return None


def _stopped(run: RunDir, why: str) -> Stopped:
    return Stopped(why, hint=f"launcher resume {shown(run.path)}")


def _failure(
    run: RunDir, ends: Sequence[End], failed: Record | None, records: Sequence[Record]
) -> LauncherError | None:
    """Return what failed first among those that ended by themselves; None where none is known."""
    first = _first(run, ends)
    if first is None:
        if failed:
            return TrainingFailed(failed.error, hint=failed.hint)
        return _elsewhere(ends)
    end, words = first
    if end.code == START_AGAIN:
        if stopped := [record for record in records if record.state == "stopped"]:
            return _stopped(run, stopped[0].error)
        why = f"rank {end.rank} asked to be started again (exit code {START_AGAIN})"
        return AskedAgain(why, hint=f"launcher resume {shown(run.path)}")
    text = f"rank {end.rank} on {end.host} failed first: {words.what}\n{words.lines}"
    return TrainingFailed(text.rstrip(), hint=f"the full log is {shown(run.log(end.rank))}")


def _first(run: RunDir, ends: Sequence[End]) -> tuple[End, LastWords] | None:
    """Return the process that failed first, and what it said.

    That is who ended first; but who only lost a peer was faster than the one with an error of its
    own, which was still clearing up.
    """
    bad = [(end, last_words(run.log(end.rank), end)) for end in ends if end.code]
    if not any(end.by_itself for end, _ in bad):
        return None
    first = next(pair for pair in bad if pair[0].by_itself)
    if not first[1].lost_a_peer:
        return first
    own = [(end, words) for end, words in bad if words.raised and not words.lost_a_peer]
    return next((pair for pair in own if pair[1].lines), first)


def _elsewhere(ends: Sequence[End]) -> TrainingFailed | None:
    """Return that a process of another machine has failed, where the agent ended those here."""
    if not any(end.code for end in ends):
        return None
    hint = "what it said is in its log, on that machine"
    return TrainingFailed("a process of another machine failed", hint=hint)


def _unheard(run: RunDir, node_ranks: Sequence[int], exit_code: int) -> TrainingFailed:
    """Return that the agent ended before it could say how its processes did."""
    ending = f"was {death(exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"
    hint = next(filter(None, (tail(run.agent(node_rank)) for node_rank in node_ranks)), None)
    return TrainingFailed(f"the run {ending} before any process could say why", hint=hint)


def alike(one: LauncherError, other: LauncherError) -> bool:
    """Whether two failures are the same one again: ranks, addresses and ports aside."""
    texts = (re.sub(r"0x[0-9a-f]+|\d+", "0", error.message) for error in (one, other))
    return next(texts) == next(texts)
