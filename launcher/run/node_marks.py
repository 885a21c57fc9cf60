"""How far each node of a job came in one start, and which of them are to blame for its failure.

A node has a file of a few lines, logs/node-K-mark.txt: node.sh writes the first as its first act,
what fails there and the launcher's stages follow. Only what another node does not have is a node's
own fault: a full shared disk, or an environment without torch, is the same everywhere.
"""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args

from launcher.errors import ANOTHER_WAS_NOT
from launcher.files import read_json
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.run.record import Record

# The node's script runs; Python does; its disk, clock and name are sound; torch can be imported;
# all processes can use their devices. After all of them come processes that live, that could load
# the recipe, and that had data and model when another node's had not.
Stage = Literal["came", "began", "sound", "loaded", "able"]
# "asked" to stop: what dies then is no failure. "srun": which step of which job it is.
Word = Stage | Literal["asked", "srun"]
_STAGES: tuple[str, ...] = get_args(Stage)
_LIVED, _RECIPE, _READY = range(len(_STAGES) + 1, len(_STAGES) + 4)
_PATIENCE_S = 60.0  # for other nodes to come further, or to fail alike
_NEIGHBOURS = 8  # nodes that are looked at then: each looks, and there may be a thousand


@dataclass(frozen=True)
class Came:
    """How far one node came, and what it found to be wrong with itself."""

    node: str  # its name
    stage: int  # how many stages it came to
    fault: str = ""  # of its own, in words; "" where it told none
    hint: str | None = None
    asked: bool = False  # to stop

    @property
    def lived(self) -> bool:
        """Whether it had processes: these have said themselves what went wrong."""
        return self.stage >= _LIVED


def note(run: RunDir, node_rank: int, stage: Word, node: str) -> None:
    """Note that a node has come to a stage; a full or lost disk is found by others."""
    with suppress(OSError), run.node_mark(node_rank).open("a", encoding="utf-8") as file:
        file.write(f"{stage} {node}\n")


def told(run: RunDir, word: Word) -> str:
    """Return what the first node has told under a word, "" where it has not."""
    with suppress(OSError):
        lines = run.node_mark(0).read_text(encoding="utf-8", errors="replace").splitlines()
        words = [line.partition(" ") for line in lines]
        return next((rest for found, _, rest in words if found == word), "")
    return ""


def look(run: RunDir, node_rank: int, nproc: int, node: str = "") -> Came:
    """Return how far a node came; `node` is its name, should it have left none."""
    try:
        lines = run.node_mark(node_rank).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Came(node, 0)
    found = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    came = _look(run, node_rank, nproc, node, found)
    return replace(came, asked="asked" in found)


def _look(run: RunDir, node_rank: int, nproc: int, node: str, found: Mapping[str, str]) -> Came:
    stage = max((at for at, name in enumerate(_STAGES, 1) if name in found), default=0)
    name = next(iter(found.values()), node).strip() or node
    if records := Record.read_all(run, range(node_rank * nproc, (node_rank + 1) * nproc)):
        return _lived(run, name, records)
    error = read_json(run.node_error(node_rank)) or {}
    fault = error.get("error", "") if error.get("own_fault") else ""
    if "failed" in found:
        fault = f"node {name}: {found['failed']}"
    return Came(name, stage, fault, error.get("hint"))


def _lived(run: RunDir, name: str, records: Sequence[Record]) -> Came:
    """Return how far a node came whose processes lived; what they say while they train is theirs.

    All nodes make data and model at the same time, and meet behind that.
    """
    marks = [run.mark(one.rank) for one in records]
    if any(found.steps for path in marks if (found := mark.read(path))):
        return Came(name, _READY)
    own = [one for one in records if one.state == "failed" and one.first_cause]
    if not own and any(one.error == ANOTHER_WAS_NOT for one in records):
        return Came(name, _READY)
    stage = _RECIPE if all(path.exists() for path in marks) else _LIVED
    fault = f"node {name}: rank {own[0].rank}: {own[0].error}".partition("\n")[0] if own else ""
    return Came(name, stage, fault)


def look_at_all(run: RunDir, nproc: int, names: Sequence[str]) -> list[Came]:
    """Return how far the nodes of these names came, in the order of their ranks.

    Who left no mark although most others did does not see the run directory.
    """
    all_of = [look(run, rank, nproc, name) for rank, name in enumerate(names)]
    absent = sum(one.stage == 0 for one in all_of)
    # A script of the user's own leaves none; and processes start when all nodes have come.
    if 2 * absent > len(all_of) or any(one.lived for one in all_of):
        return all_of
    words = f"it left no mark in {run.logs}"
    hint = "is the file system of the run directory mounted there?"
    return [
        one if one.stage else Came(one.node, 0, f"node {one.node} never came: {words}", hint)
        for one in all_of
    ]


def to_blame(all_of: Sequence[Came], before: Mapping[str, str]) -> dict[str, str]:
    """Return the nodes whose own fault it was, with the fault: others came further.

    Where no other did, because it was slow, or the only one, a node that alone has a fault is left
    out, too, unless the start before, on another node, had the same: `before` are the faults found
    there. What processes say of the recipe and its data needs the proof.
    """
    faulty = [one for one in all_of if one.fault and one.node]
    farthest = max((one.stage for one in all_of), default=0)
    if proven := {one.node: one.fault for one in faulty if one.stage < farthest}:
        return proven
    alone = len(faulty) < len(all_of) or len(all_of) == 1
    unproven = [one for one in faulty if alone and not one.lived]
    return {one.node: one.fault for one in unproven if not alike(one, before)}


def alike(one: Came, before: Mapping[str, str]) -> list[str]:
    """Return the other nodes that had the same fault, but for names and figures."""
    plain = _plain(one.fault, one.node)
    return [
        name for name, fault in before.items() if name != one.node and _plain(fault, name) == plain
    ]


def _plain(fault: str, node: str) -> str:
    return re.sub(r"[-+\d.,]+", "#", fault.replace(node, "NODE"))


def give_others_time(run: RunDir, node_rank: int, nnodes: int, nproc: int) -> None:
    """Wait until another node has come further than this one, or those near it have failed, too.

    For a node that failed: its end is the end of all.
    """
    mine = look(run, node_rank, nproc)
    if not mine.fault:  # but the network's, or the training's
        return
    near = _near(node_rank, nnodes)
    deadline = time.monotonic() + _PATIENCE_S
    while near and time.monotonic() < deadline:
        others = {rank: look(run, rank, nproc) for rank in near}
        failed = [one.fault or run.node_error(rank).exists() for rank, one in others.items()]
        if any(one.stage > mine.stage for one in others.values()) or all(failed):
            return
        time.sleep(0.5)


def others_asked(run: RunDir, node_rank: int, nnodes: int, nproc: int) -> bool:
    """Whether a node near this one was asked to stop: SLURM may ask one alone.

    For a node that failed and has not said so: others are asked because of it only then.
    """
    return any(look(run, rank, nproc).asked for rank in _near(node_rank, nnodes))


def _near(node_rank: int, nnodes: int) -> list[int]:
    return [(node_rank + step) % nnodes for step in range(1, min(nnodes, _NEIGHBOURS + 1))]
