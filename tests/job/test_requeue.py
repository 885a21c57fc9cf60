"""A job goes back into the queue however long SLURM is away, and not for ever where it refuses."""

import os
from pathlib import Path

import pytest

from launcher.errors import Stopped
from launcher.job import requeue as slurm_requeue
from launcher.job.requeue import requeue
from launcher.run.directory import RunDir, read_json, write_json

AWAY = "Unable to contact slurm controller (connect failure)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that has stopped, where nobody waits for long."""
    monkeypatch.setattr(slurm_requeue, "_AGAIN_S", 0.01)
    monkeypatch.setattr(slurm_requeue, "_REFUSED_S", 0.3)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_json(tmp_path / "result.json", {"state": "stopped", "error": "stopped on request"})
    return RunDir(tmp_path)


def scontrol(folder: Path, *cases: str) -> None:
    """An scontrol that writes down what it is asked, and answers as told."""
    lines = ["#!/bin/bash", f"cd '{folder}'; echo \"$*\" >> asked", 'case "$*" in', *cases, "esac"]
    (folder / "scontrol").write_text("\n".join(lines) + "\n")
    (folder / "scontrol").chmod(0o755)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_a_controller_that_is_away_is_asked_until_it_answers(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f'if [ $(wc -l < asked) -lt 60 ]; then echo "{AWAY}" >&2; exit 1; fi'  # above _REFUSED_S
    scontrol(run.path, f"*) {away} ;;")
    requeue(run, "12_3", "n1,n7")
    assert asked(run.path)[-2:] == ["requeue 12_3", "update JobId=12_3 ExcNodeList=n1,n7"]
    assert capsys.readouterr().out.count(f"is tried again: {AWAY}") == 1
    assert (read_json(run.result) or {})["error"] == "stopped on request"


def test_a_refusal_is_final_after_a_while_and_told_in_the_result(run: RunDir) -> None:
    refuse = 'echo "Requested operation is presently disabled" >&2; exit 1'
    scontrol(run.path, f"requeue*) {refuse} ;;", "show*) echo JobId=12 JobState=RUNNING ;;")
    with pytest.raises(Stopped, match="presently disabled"):
        requeue(run, "12", "")
    result = read_json(run.result) or {}
    assert result["state"] == "stopped"
    assert "the job does not go on: Requested operation" in result["error"]
    assert asked(run.path).count("requeue 12") > 3


@pytest.mark.parametrize(("state", "tries"), [("PENDING", 1), ("COMPLETING", 1)])
def test_a_job_that_slurm_ended_or_requeued_meanwhile_is_left_alone(
    run: RunDir, state: str, tries: int
) -> None:
    scontrol(run.path, "requeue*) exit 1 ;;", f"show*) echo JobId=12 JobState={state} ;;")
    if state == "PENDING":  # the answer to the first request was lost
        requeue(run, "12", "n1")
        assert asked(run.path)[-1] == "update JobId=12 ExcNodeList=n1"
    else:
        with pytest.raises(Stopped):
            requeue(run, "12", "n1")
    assert asked(run.path).count("requeue 12") == tries


def test_without_scontrol_it_ends_with_words(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run.path))
    monkeypatch.setattr(slurm_requeue, "_SILENT_S", 0.1)
    with pytest.raises(Stopped, match="No such file or directory: 'scontrol'"):
        requeue(run, "12", "")
