"""Jobs of a chain that wait leave out nodes that were found to be bad; SLURM's no ends nothing."""

import os
import time
from pathlib import Path

import pytest

from launcher.files import write_json
from launcher.job.chain import leave_out
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder

AWAY = "Unable to contact slurm controller (connect failure)"
NAMES = "'show hostnames'*) echo ${3//,/ } | tr ' ' '\\n' ;;"
WAITS = "'show job'*) echo JobId=$4 JobState=PENDING ExcNodeList=${excluded:-n7} ;;"


def chain(folder: Path, monkeypatch: pytest.MonkeyPatch, *bad: str, **asked: object) -> RunDir:
    """A run whose second job of four has met bad nodes; n7 was excluded when it was submitted."""
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    run = RunDir(folder)
    slurm = SlurmFolder.of(run)
    slurm.path.mkdir()
    jobs = [{"id": str(job), "submitted": 1.0} for job in (12, 13, 14, 15)]
    write_json(slurm.job, {"restart": "chain", "exclude": "n7", "jobs": jobs} | asked)
    slurm.start("13", 0, "n[1-2]")
    for name in bad:
        slurm.add_bad_node(name, "disk full")
    return run


def scontrol(folder: Path, *cases: str) -> None:
    """An scontrol that writes down what it changes, and answers as told."""
    lines = [f"cd '{folder}'", 'case "$*" in', *cases, 'update*) echo "$*" >> asked ;;', "esac"]
    (folder / "scontrol").write_text("\n".join(["#!/bin/bash", *lines, ""]))
    (folder / "scontrol").chmod(0o755)


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_the_jobs_behind_are_told_and_what_was_excluded_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chain(tmp_path, monkeypatch, "n2", "n1")
    scontrol(tmp_path, NAMES, WAITS)
    leave_out(run, "13", 30)
    told = [f"update JobId={job} ExcNodeList=n7,n1,n2" for job in (14, 15)]
    assert asked(tmp_path) == told
    monkeypatch.setenv("excluded", "n7,n1,n2")
    leave_out(run, "13", 30)
    assert asked(tmp_path) == told  # they know


def test_a_node_that_is_forgiven_comes_back_and_one_of_a_template_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chain(tmp_path, monkeypatch, "n2")
    SlurmFolder.of(run).end("failed", 75, 0, ["n1", "n2"])  # n1 lacks what all others lack, too
    scontrol(tmp_path, NAMES, WAITS)
    monkeypatch.setenv("excluded", "n5,n7,n1")
    leave_out(run, "14", 30)
    SlurmFolder.of(run).forgive("n2")
    monkeypatch.setenv("excluded", "n7,n5,n2")
    leave_out(run, "14", 30)
    assert asked(tmp_path) == [f"update JobId=15 ExcNodeList=n7,n5{bad}" for bad in (",n2", "")]


@pytest.mark.parametrize(
    ("case", "restart", "bad"),
    [
        ("'show job'*) echo JobId=$4 JobState=CANCELLED ;;", "chain", ["n2"]),
        ("'show job'*) echo 'Invalid job id specified' >&2; exit 1 ;;", "chain", ["n2"]),
        (WAITS, "requeue", ["n2"]),
        (WAITS, "chain", []),
    ],
)
def test_nobody_is_told_who_does_not_wait_or_needs_no_word(
    case: str, restart: str, bad: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chain(tmp_path, monkeypatch, *bad, restart=restart)
    scontrol(tmp_path, NAMES, case)
    leave_out(run, "13", 30)
    assert asked(tmp_path) == []


def test_the_tasks_of_an_array_have_chains_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "3").mkdir()
    run = chain(tmp_path / "3", monkeypatch, "n2", array_task=3, jobs=[])
    jobs = [{"id": str(job), "submitted": 1.0} for job in (12, 13)]
    (tmp_path / "slurm").mkdir()
    write_json(tmp_path / "slurm" / "job.json", {"jobs": jobs})
    scontrol(run.path, NAMES, WAITS)
    leave_out(run, "12_3", 30)
    assert asked(run.path) == ["update JobId=13_3 ExcNodeList=n7,n2"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (f"*) echo '{AWAY}' >&2; exit 1 ;;", AWAY),
        ("'show job'*) exec sleep 60 ;;", "timed out"),
        ("update*) echo 'Access/permission denied'; exit 1 ;;", "Access/permission denied"),
    ],
)
def test_a_refusal_and_a_silent_controller_are_told_in_a_line_and_soon(
    case: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = chain(tmp_path, monkeypatch, "n2")
    scontrol(tmp_path, NAMES if case.startswith("update") else "", case, WAITS)
    began = time.monotonic()
    leave_out(run, "13", 1.0)
    said = capsys.readouterr().err
    assert said.startswith("job 14 is not told to leave out n2: ")
    assert words in said
    assert said.count("\n") == 1
    assert time.monotonic() - began < 20
