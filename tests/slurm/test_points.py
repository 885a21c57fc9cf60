"""What a submission runs: scripts and modules, and the copy of their code."""

import subprocess
from pathlib import Path

import pytest

from launcher.recipe.file import find
from launcher.run.directory import RunDir
from launcher.script.script import Script, file_of_module
from launcher.slurm import snapshot, submit
from launcher.slurm.points import Program, Wishes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a module in a package that has no `__init__.py`, and one beside."""
    for name in ("pkg/train.py", "pkg/other.py", "alone.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"print('{name}')\n")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(name: str, module: str | None = None) -> Program:
    file = file_of_module(module) if module else Path(name)
    return Program(find(str(file)), Script(None if module else str(file.absolute()), module=module))


@pytest.mark.parametrize("in_git", [False, True])
@pytest.mark.parametrize(
    ("module", "copied", "linked"),
    [("pkg.train", ["pkg/train.py", "pkg/other.py"], "data"), ("alone", ["alone.py"], "data")],
)
def test_a_module_is_found_in_the_copy_from_where_it_was_found(
    project: Path, module: str, copied: list[str], linked: str, in_git: bool
) -> None:
    if in_git:
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    run = RunDir(project / "runs" / "r")
    run.path.mkdir(parents=True)
    taken = snapshot.take(run, file_of_module(module).resolve(), module)
    assert taken.workdir == taken.root == run.snapshot
    assert taken.recipe_path == run.snapshot / copied[0]
    assert all((run.snapshot / name).is_file() for name in copied)
    assert not any((run.snapshot / name).is_symlink() for name in copied)
    assert (run.snapshot / linked).is_symlink()


def test_a_repository_below_the_current_folder_is_not_what_a_module_is_found_from(
    project: Path,
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project / "pkg", check=True)
    run = RunDir(project / "r")
    run.path.mkdir()
    taken = snapshot.take(run, (project / "pkg" / "train.py").resolve(), "pkg.train")
    assert (taken.workdir, taken.recipe_path) == (run.snapshot, run.snapshot / "pkg" / "train.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "installed"),
    [
        ("alone.py", None, False),
        ("", "alone", False),
        ("", "pkg.train", False),
        ("", "json.tool", True),
    ],
)
def test_an_installed_module_is_no_code_to_copy(
    project: Path, name: str, module: str | None, installed: bool
) -> None:
    asked = program(name, module)
    assert asked.is_installed is installed
    wishes = Wishes(str(asked.file.path), run_dir=project / "r", tracking="disabled")
    plan = submit.plan(wishes, asked)
    assert any("is installed" in one for one in plan.warnings) is installed
    submit.make(plan)
    run = RunDir(project / "r")
    config = run.read_config()
    assert (run.path / "snapshot").exists() is not installed
    assert config["folder"] == str(project if installed else run.snapshot)
    expected = str(run.snapshot / "alone.py") if name else None
    assert config["script"]["file"] == expected
    assert run.script.read_text() == asked.file.source


def test_a_script_is_one_process_on_a_node_unless_more_are_asked_for(project: Path) -> None:
    for nproc in (None, 8):
        gpus = {"nodes": "2", "gpus-per-node": "8"}
        wishes = Wishes("alone.py", sbatch=gpus, nproc=nproc, run_dir=project / "r")
        plan = submit.plan(wishes, program("alone.py"))
        assert plan.request.nproc == (nproc or 1)
        assert plan.nodes == 2
