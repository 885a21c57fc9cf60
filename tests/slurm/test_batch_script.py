"""The bundled scripts, run by a real bash: what their setup does, fails to do, or leaves behind."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from job_scripts import ONE

from launcher.run.directory import RunDir
from launcher.slurm.profile import Container, Profile
from launcher.slurm.render import render

# It writes down what it is asked; `job end` answers as told, one word after the other.
PYTHON = """\
#!/bin/bash
echo "$*" >> asked
case "$*" in
    *"job begin"*) echo "2 n3,n4" ;;
    *"job end"*)
        [ -e ends ] || echo "${END:-0}" > ends
        read -r first rest < ends
        echo "$rest" > ends
        exit "$first" ;;
esac
"""
SRUN = """\
#!/bin/bash
[ "$1" != --help ] || exec echo "--overlap  share cores with other steps"
echo "$PET_RDZV_ID at $LAUNCHER_ENDPOINT: ${*:1:6}" >> srun-asked
exit 3
"""


def run(
    folder: Path, kind: str, *, end: object = 0, srun: str = SRUN, **profile: object
) -> tuple[int, str]:
    """Run a script with these lines of a profile; returns its exit code and what it said."""
    fakes = {"python": PYTHON, "srun": srun, "sleep": "", "scontrol": ""}
    for name, text in fakes.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "logs").mkdir()
    (folder / "slurm").mkdir()
    (folder / "fine.sh").write_text("false\n[ -z x ]\nexport READ=yes\n")
    request = replace(
        ONE,
        run_dir=folder,
        workdir=folder,
        python=str(folder / "python"),
        profile=Profile(**profile),  # type: ignore[arg-type]  # lines of setup
    )
    script = getattr(render(request), kind)
    (folder / "script.sh").write_text(script)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "END": str(end), "SLURM_JOB_ID": "7"}
    env |= {"SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURMD_NODENAME": "n7"}
    line = ["bash", str(folder / "script.sh"), str(folder)]
    done = subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def asked(folder: Path) -> str:
    return (folder / "asked").read_text()


GOOD = [
    "set -euo pipefail",
    "source ./fine.sh",
    "[ -d /nowhere ] && false",
    "if false; then exit 7; fi",
    "false || true",
    "shopt -s nullglob",
]


@pytest.mark.parametrize("line", GOOD)
def test_a_setup_that_is_sound_leads_to_a_job_that_is_judged(line: str, tmp_path: Path) -> None:
    code, said = run(tmp_path, "batch", end=5, setup=(line,))
    assert code == 5, said
    assert f"job end {tmp_path} --code 3 --heard" in asked(tmp_path)
    assert not (tmp_path / "slurm" / "not-begun.txt").exists()


def test_what_can_be_mended_on_the_nodes_of_a_job_starts_again_on_those_it_is_told(
    tmp_path: Path,
) -> None:
    code, said = run(tmp_path, "batch", end="77 77 5")
    assert code == 5, said
    starts = (tmp_path / "srun-asked").read_text().splitlines()
    options = "--nodes=2 --ntasks=2 --nodelist=n3,n4 --kill-on-bad-exit=1 --export=ALL"
    # What was lost of the start before may hold its cores.
    nexts = ["bash", "--overlap", "--overlap"]
    told = [f"job-7-0-{start} at n3:0: {options} {word}" for start, word in enumerate(nexts)]
    assert starts == told
    assert asked(tmp_path).count("job begin") == 3
    assert "job requeue" not in asked(tmp_path)


def test_a_job_that_is_signalled_while_its_end_is_judged_goes_back_into_the_queue(
    tmp_path: Path,
) -> None:
    # The signal comes from within srun, and is heard behind it.
    script = SRUN.replace("exit 3", "kill -USR1 $PPID; exit 3")
    code, said = run(tmp_path, "batch", end="77", srun=script)
    assert code == 75, said
    assert len((tmp_path / "srun-asked").read_text().splitlines()) == 1
    assert asked(tmp_path).count("job requeue") == 1


def test_what_a_setup_wants_done_at_the_end_is_done(tmp_path: Path) -> None:
    code, said = run(tmp_path, "batch", setup=("trap 'echo cleared up' EXIT",))
    assert (code, said) == (0, "cleared up\n")


BAD = [
    ("nosuch x", "ended with exit code 127: nosuch x"),
    ("(exit 9)", "ended with exit code 9: ( exit 9 )"),
    ("source ./nowhere.sh", "ended with exit code 1: source ./nowhere.sh"),
    ("exit 0", "was ended by: exit 0"),
    ("set -e; false", "ended with exit code 1: false"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_setup_that_fails_ends_the_job_and_is_named(
    line: str, words: str, tmp_path: Path
) -> None:
    code, said = run(tmp_path, "batch", setup=(line,))
    assert code == 1
    [error] = [one for one in said.splitlines() if one.startswith("error: on n7, ")]
    assert error.endswith(words)
    if "line" in error:
        script = (tmp_path / "script.sh").read_text().splitlines()
        assert f"line {script.index(line) + 1} of job.sbatch" in error
    assert (tmp_path / "slurm" / "not-begun.txt").read_text() == f"{error}\n"
    assert "command not found" not in said or line == "nosuch x"
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_line_that_fails_on_a_node_is_noted_in_its_mark(
    line: str, words: str, tmp_path: Path
) -> None:
    code, _ = run(tmp_path, "node", node_setup=(line,))
    assert code == 1
    came, failed = RunDir(tmp_path).node_mark(0).read_text().splitlines()
    assert came == "came n7"
    assert failed.startswith("failed ")
    assert failed.endswith(words)
    assert not (tmp_path / "asked").exists()


def test_a_node_that_slurm_ends_in_its_setup_is_not_at_fault(tmp_path: Path) -> None:
    for line in ("kill $$; sleep 1", "bash -c 'kill $$'"):
        folder = tmp_path / str(len(line))
        folder.mkdir()
        code, _ = run(folder, "node", node_setup=(line,))
        assert code == 143
        assert RunDir(folder).node_mark(0).read_text() == "came n7\n"


def test_a_container_that_is_not_there_is_noted(tmp_path: Path) -> None:
    (tmp_path / "apptainer").write_text("#!/bin/bash\nexit 255\n")
    (tmp_path / "apptainer").chmod(0o755)
    code, _ = run(tmp_path, "node", container=Container("apptainer", "/nowhere.sif"))
    assert code == 1
    failed = RunDir(tmp_path).node_mark(0).read_text().splitlines()[1]
    assert "ended with exit code 255: apptainer exec" in failed


def test_a_node_whose_setup_is_sound_becomes_its_launcher(tmp_path: Path) -> None:
    code, said = run(tmp_path, "node", node_setup=("source ./fine.sh", "set -e"))
    assert code == 0, said
    assert f"\n-m launcher job node {tmp_path} --nproc 1 --nnodes 1" in asked(tmp_path)
    assert RunDir(tmp_path).node_mark(0).read_text() == "came n7\n"
