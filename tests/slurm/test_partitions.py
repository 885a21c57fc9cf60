"""What sinfo tells of partitions, and what follows for a request."""

import os
from pathlib import Path

import pytest

from launcher.errors import BadInput
from launcher.slurm.options import Setting
from launcher.slurm.partitions import Partition, asked_for, check, parsed

# As sinfo of 22.05 writes it: a partition whose nodes differ has several lines.
SINFO = """\
short*|1:00:00|1-infinite|4|(null)
long|7-00:00:00|1-2|3|a100,ib
long|7-00:00:00|1-2|2|v100
free|infinite|1|8|(null)
torn
"""


def settings(**values: str) -> dict[str, Setting]:
    plain = {"nodes": "1"} | {name.replace("_", "-"): value for name, value in values.items()}
    return {name: Setting(value, "command line") for name, value in plain.items()}


def test_partitions_are_read_with_all_their_kinds_of_nodes() -> None:
    short, long, free = parsed(SINFO)
    assert short == Partition("short", True, "1:00:00", None, 4, frozenset())
    assert (short.limit_s, long.limit_s, free.limit_s) == (3600, 7 * 86400, None)
    assert (long.most_nodes, long.nodes, free.most_nodes) == (2, 5, 1)
    words = "partition long has 5 nodes, jobs of 7-00:00:00, of 2 nodes at most, features a100, ib"
    assert long.told == f"{words}, v100"
    assert free.told == "partition free has 8 nodes, jobs of any time, of 1 nodes at most"


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sinfo that says what is above."""
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\ncat <<'END'\n{SINFO}END\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "sinfo"


REFUSED = [
    ({"time": "61"}, "partition short gives 1:00:00, not --time=61 (command line)"),
    ({"time": "8-0", "partition": "long,short"}, "partition short gives 1:00:00, not --time=8-0"),
    ({"nodes": "3", "partition": "long"}, "partition long gives 2 nodes at most, not --nodes=3"),
    ({"nodes": "2", "partition": "free", "time": "9-0"}, "partition free gives 1 nodes at most"),
]


@pytest.mark.usefixtures("sinfo")
@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_no_partition_gives_is_refused(values: dict[str, str], message: str) -> None:
    asked = settings(**values)
    with pytest.raises(BadInput, match="it could never start: ") as refused:
        check(asked, asked_for(asked))
    assert message in str(refused.value)


@pytest.mark.usefixtures("sinfo")
@pytest.mark.parametrize(
    "values",
    [
        {"time": "60"},
        {"time": "61", "partition": "short,long"},  # one of them may have it
        {"time": "61", "qos": "express"},  # which may allow more
        {"time": "61", "clusters": "other"},
        {"time": "2-0", "time_min": "30"},
        {"time": "61", "partition": "hidden"},
        {"nodes": "99"},
        {"time": "UNLIMITED"},
    ],
)
def test_what_may_start_is_not_refused(values: dict[str, str]) -> None:
    asked = settings(**values)
    check(asked, asked_for(asked))


@pytest.mark.parametrize("script", [None, "exit 1", "echo odd; echo 'a|b|c|d|e'"])
def test_where_sinfo_says_nothing_there_is_no_error(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sinfo").chmod(0o755)
    asked = settings(time="9-0")
    assert asked_for(asked) == []
    check(asked, [])
