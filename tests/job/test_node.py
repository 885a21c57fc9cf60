"""One node of a job, with real processes: what is wrong with it is found, told, and cleared up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from training import clean_environment, wait_for

from launcher.files import write_json
from launcher.recipe.file import find, outline
from launcher.run.config import describe
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.run.node_marks import look, note

pytestmark = [pytest.mark.slow, pytest.mark.warm]


def a_run(
    folder: Path,
    *,
    nproc: int = 1,
    nnodes: int = 1,
    cpu: bool = True,
    checks: bool = True,
    **parameters: Any,
) -> RunDir:
    file = find("digits")
    recipe = outline(file)(epochs=1, **parameters)
    run = RunDir(folder / "r")
    run.create(describe(file, recipe, nproc=nproc, nnodes=nnodes, cpu=cpu), file.source)
    SlurmFolder.of(run).path.mkdir()
    write_json(SlurmFolder.of(run).job, {"checks": checks})
    return run


def start(
    run: RunDir, *, nproc: int = 1, nnodes: int = 1, endpoint: str = "localhost:29123", **env: str
) -> "subprocess.Popen[str]":
    """`launcher job node` as node.sh starts it, on a node called n7."""
    words = ["--nproc", str(nproc), "--nnodes", str(nnodes), "--node-rank", "0"]
    argv = [sys.executable, "-m", "launcher", "job", "node", str(run.path), *words]
    here: Mapping[str, str] = clean_environment() | {"SLURMD_NODENAME": "n7"} | env
    return subprocess.Popen(
        [*argv, "--rdzv-endpoint", endpoint],
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def error_of(run: RunDir) -> dict[str, Any]:
    return dict(json.loads(run.node_error(0).read_text()))


def test_scratch_that_is_not_there_is_the_nodes_own_fault(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    process = start(run, LAUNCHER_SCRATCH=str(tmp_path / "local"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    told = error_of(run)
    assert told["own_fault"]
    words = f"node n7: no folder can be made in {tmp_path}/local: No such file or directory"
    assert told["error"] == words
    assert run.node_mark(0).read_text() == "began n7\n"


def test_too_few_gpus_are_the_nodes_own_fault(tmp_path: Path) -> None:
    run = a_run(tmp_path, nproc=2, cpu=False)
    process = start(run, nproc=2, CUDA_VISIBLE_DEVICES="0")
    process.communicate(timeout=60)
    assert process.returncode == 1
    told = error_of(run)
    assert told["own_fault"]
    assert told["error"].startswith("node n7: --nproc 2 asks for more processes than")


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("nproc", [1, 2])
def test_processes_that_cannot_import_torch_are_the_nodes_own_fault(
    nproc: int, checks: bool, tmp_path: Path
) -> None:
    run = a_run(tmp_path, nproc=nproc, checks=checks)
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so.1 is not there')")
    process = start(run, nproc=nproc, PYTHONPATH=str(tmp_path))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    told = error_of(run)
    assert told["own_fault"], told
    assert "n" in told["error"]
    assert "libcuda.so.1 is not there" in told["error"] + told["hint"]
    assert run.node_mark(0).read_text().splitlines() == ["began n7", "sound n7"]


def test_checks_that_are_ended_leave_nothing_behind(tmp_path: Path) -> None:
    run, scratch = a_run(tmp_path, nproc=2), tmp_path / "scratch"
    scratch.mkdir()
    before = {path.name for path in run.path.rglob("*")}
    process = start(run, nproc=2, LAUNCHER_SCRATCH=str(scratch), TMPDIR=str(scratch))
    wait_for(lambda: len(list(scratch.rglob("launcher-doctor-*"))) > 0, every_s=0.001)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert list(scratch.iterdir()) == []
    left = {path.name for path in run.path.rglob("*")} - before
    assert left == {run.node_mark(0).name}
    assert look(run, 0, nproc=2).asked


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("nnodes", [2, 3])
def test_a_node_whose_neighbour_was_asked_to_stop_waits_for_it_without_fault(
    nnodes: int, asked: bool, tmp_path: Path
) -> None:
    """SLURM may end a start on one node alone: the others wait for it."""
    run = a_run(tmp_path, nnodes=nnodes, checks=False, start_timeout=3600 if asked else 3)
    for other in range(1, nnodes):
        if asked:
            note(run, other, "asked", "n8")
        else:  # it failed, too: nothing more is to be waited for
            write_json(run.node_error(other), {"error": "no progress"})
    process = start(run, nnodes=nnodes, endpoint="localhost:0")
    said, _ = process.communicate(timeout=120)
    assert look(run, 0, nproc=1).asked == asked
    assert run.node_error(0).exists() != asked
    assert process.returncode == (0 if asked else 1), said
