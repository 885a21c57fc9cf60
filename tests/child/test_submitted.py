"""Jobs that a program submits: `launcher.submit`; on a cluster see `tests/test_script_jobs.py`."""

import os
from pathlib import Path

import pytest
from training import Run, clean_environment

from launcher import submit
from launcher.errors import BadInput, LauncherError

pytestmark = [pytest.mark.slow, pytest.mark.warm]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, without what surrounds these tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    return tmp_path


def test_a_grid_runs_here_and_each_of_its_runs_tells_how_it_was(folder: Path) -> None:
    grid = {"learning_rate": [0.2]}
    job = submit("digits", epochs=1, grid=grid, local=True, no_checks=True, run_dir="g", quiet=True)
    assert (job.path, job.jobs) == (folder / "g", [])
    [run] = job.runs
    assert run.path == folder / "g" / "0"
    assert run.status().state == "completed"
    assert run.result == Run(run.path).result
    assert run.metrics() == Run(run.path).rows != []
    with pytest.raises(BadInput, match="is a grid of runs"):
        job.status()


def test_what_is_refused_is_raised_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(BadInput, match="no hyperparameter `epoch`"):
        submit("digits", epoch=1, quiet=True)
    with pytest.raises(BadInput, match="`follow` is an option of the command line alone"):
        submit("digits", follow=True)
    assert not list(folder.iterdir())


def test_without_a_cluster_no_job_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("SLURM_CONF", str(folder / "none.conf"))
    with pytest.raises(LauncherError):
        submit("digits", quiet=True)
    assert not list(folder.iterdir())
