"""A job goes back into the queue however long SLURM is away, and not for ever where it refuses."""

import os
import signal
from pathlib import Path

import pytest

from launcher.errors import Stopped
from launcher.files import read_json, write_json
from launcher.job import requeue as slurm_requeue
from launcher.job.requeue import goes_elsewhere, requeue
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder

AWAY = "Unable to contact slurm controller (connect failure)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that has stopped, where nobody waits for long."""
    monkeypatch.setattr(slurm_requeue, "_FIRST_S", 0.01)
    monkeypatch.setattr(slurm_requeue, "_AGAIN_S", 0.01)
    monkeypatch.setattr(slurm_requeue, "_REFUSED_S", 0.3)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "slurm").mkdir()
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
    assert capsys.readouterr().err.count(f"is tried again while the job is there: {AWAY}") == 1
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


def test_scontrol_outlives_the_signals_that_it_brings_about(run: RunDir) -> None:
    before = signal.getsignal(signal.SIGTERM)
    scontrol(run.path, "*) kill -TERM $$; kill -USR1 $$; kill -TERM $PPID ;;")
    requeue(run, "12", "n1")
    assert asked(run.path) == ["requeue 12", "update JobId=12 ExcNodeList=n1"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_nodes_that_slurm_did_not_hear_of_are_left_out_by_the_start_that_comes_to_them(
    run: RunDir,
) -> None:
    untold = SlurmFolder.of(run).untold
    names = "show*hostnames*) for one in ${3//,/ }; do echo $one; done ;;"
    scontrol(run.path, names, "update*) cat slurm/untold.json; kill -KILL $PPID ;;")
    pid = os.fork()
    if pid == 0:
        requeue(run, "12", "n1,n7")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert untold.exists()
    scontrol(run.path, names)
    assert not goes_elsewhere(run, "12", "n2,n3")
    assert not goes_elsewhere(run, "13", "n1,n2")  # whoever submitted it may want them
    assert goes_elsewhere(run, "12", "n1,n2")
    assert asked(run.path)[-2:] == ["requeue 12", "update JobId=12 ExcNodeList=n1,n7"]
    assert not untold.exists()
    assert not goes_elsewhere(run, "12", "n1,n2")


def test_a_job_with_spare_nodes_does_without_those_it_is_to_leave_out(run: RunDir) -> None:
    scontrol(run.path, "show*hostnames*) echo $3 | tr , '\\n' ;;")
    write_json(SlurmFolder.of(run).untold, {"job": "12", "exclude": "n1,n2", "times": 0})
    write_json(SlurmFolder.of(run).job, {"spare_nodes": 1})
    assert not goes_elsewhere(run, "12", "n1,n3,n4")
    assert goes_elsewhere(run, "12", "n1,n2,n3")


def test_a_job_goes_back_no_more_than_a_few_times(run: RunDir) -> None:
    names = "show*hostnames*) echo $3 ;;"
    scontrol(run.path, names)
    write_json(SlurmFolder.of(run).untold, {"job": "12", "exclude": "n1", "times": 3})
    assert not goes_elsewhere(run, "12", "n1")
