"""What the partitions of a cluster allow, as `sinfo` tells: more than that would wait for ever.

Where sinfo is not there, or says nothing of a partition, nothing is held against the request.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launcher.errors import BadInput
from launcher.slurm.options import Setting, seconds
from launcher.slurm.status import NoAnswer, ask

_FIELDS = "%P|%l|%s|%D|%f"


class Partition(NamedTuple):
    """What one partition allows a job, and has; None is no limit."""

    name: str
    is_default: bool
    time: str  # as sinfo writes it: 1-00:00:00
    most_nodes: int | None  # of one job
    nodes: int  # that it has, as far as sinfo shows them
    features: frozenset[str]

    @property
    def limit_s(self) -> int | None:
        """The longest time of a job in seconds."""
        return seconds(self.time)

    @property
    def told(self) -> str:
        """All of it in words."""
        time = self.time if self.limit_s else "any time"
        words = [f"{self.nodes} nodes", f"jobs of {time}"]
        if self.most_nodes is not None:
            words.append(f"of {self.most_nodes} nodes at most")
        if self.features:
            words.append(f"features {', '.join(sorted(self.features))}")
        return f"partition {self.name} has {', '.join(words)}"


def asked_for(settings: Mapping[str, Setting]) -> list[Partition]:
    """Return the partitions that a request may start in, [] where nobody knows them."""
    if "clusters" in settings:  # those of another controller
        return []
    try:
        done = ask("sinfo", "--all", "--noheader", f"--format={_FIELDS}")
    except NoAnswer:
        return []
    there = parsed(done.stdout) if not done.returncode else []
    names = settings["partition"].value.split(",") if "partition" in settings else []
    return [one for one in there if one.name in names or (one.is_default and not names)]


def parsed(text: str) -> list[Partition]:
    """Return the partitions that sinfo has told of, in several lines where nodes differ."""
    found: dict[str, Partition] = {}
    for row in (line.split("|") for line in text.splitlines()):
        if len(row) != 5 or not row[3].isdigit():
            continue
        name, time, size, count, features = row
        most = size.rpartition("-")[2]
        own = frozenset() if features == "(null)" else frozenset(features.split(","))
        plain = name.removesuffix("*")
        before = found.get(plain)
        found[plain] = Partition(
            plain,
            name.endswith("*"),
            time,
            int(most) if most.isdigit() else None,
            int(count) + (before.nodes if before else 0),
            own | (before.features if before else frozenset()),
        )
    return list(found.values())


def check(settings: Mapping[str, Setting], partitions: Sequence[Partition]) -> None:
    """Raise BadInput for a time or a number of nodes that none of the partitions gives a job.

    A quality of service may allow more than its partition does: then SLURM alone can tell.
    """
    if not partitions or "qos" in settings:
        return
    reasons = [_reason(settings, one) for one in partitions]
    if all(reasons):
        raise BadInput(
            f"it could never start: {'; '.join(filter(None, reasons))}",
            hint="ask for less, or for another --partition: `sinfo -o '%P %l %s %D %f'` tells them",
        )


def _reason(settings: Mapping[str, Setting], one: Partition) -> str | None:
    """Return why a request can never start in a partition, None where it may."""
    least = settings.get("time-min") or settings.get("time")
    asked_s = seconds(least.value) if least else None
    if least and asked_s and one.limit_s is not None and asked_s > one.limit_s:
        return f"partition {one.name} gives {one.time}, not --time={least.value} ({least.source})"
    nodes = settings["nodes"]
    if one.most_nodes is not None and nodes.value.isdigit() and int(nodes.value) > one.most_nodes:
        most = f"{one.most_nodes} nodes at most"
        return f"partition {one.name} gives {most}, not --nodes={nodes.value} ({nodes.source})"
    return None
