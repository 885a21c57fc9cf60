"""What a snapshot leaves out, where it ends, and what is too much for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshots import PROJECT, copied, git, links, repository, take, write
from training import RECIPES

from launcher.errors import BadInput, RunDirError
from launcher.files import write_json
from launcher.run.directory import RunDir
from launcher.slurm import snapshot, submit
from launcher.slurm.points import Wishes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = repository(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("in_git", [True, False])
def test_run_directories_are_no_code_even_where_nobody_ignores_them(
    tmp_path: Path, in_git: bool
) -> None:
    write(tmp_path, {"my.py": "", "runs/notes.txt": "", "config.json": "{}", "recipe.py": ""})
    if in_git:
        git(tmp_path, "init", "--quiet")
    RunDir(tmp_path / "runs" / "old").create({"world_size": 1, "hyperparameters": {}}, "")
    RunDir(tmp_path / "runs" / "r").create({"world_size": 1, "hyperparameters": {}}, "")
    write(tmp_path, {"runs/old/checkpoints/huge": "1", "runs/grid/slurm/job.json": "{}"})
    write(tmp_path, {"runs/grid/snapshot/my.py": ""})
    (tmp_path / "link").symlink_to("runs")
    taken = snapshot.take(RunDir(tmp_path / "link" / "r"), tmp_path / "my.py")
    assert copied(taken.root) == ["config.json", "my.py", "recipe.py", "runs/notes.txt"]
    assert links(taken.root)["runs/grid"] == str(tmp_path / "runs" / "grid")
    assert links(taken.root)["runs/old"] == str(tmp_path / "runs" / "old")


def test_outside_of_git_the_recipes_folder_is_copied_without_what_is_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plain"
    write(folder, PROJECT | {"__pycache__/my.pyc": "", ".hidden/x": "", "node_modules/y": ""})
    shutil.move(folder / ".venv", folder / "venv")
    monkeypatch.chdir(folder / "deep")
    taken = take(folder)
    names = [".gitignore", "data/big.bin", "deep/er/module.py", "deep/weights.bin", "model.py"]
    assert copied(taken.root) == [*names, "my.py"]
    assert set(links(taken.root)) == {"venv", ".hidden", "node_modules", "runs"}
    assert taken.workdir == taken.root / "deep"
    assert taken.facts | {"files": 0, "bytes": 0} == {
        "commit": None,
        "dirty": None,
        "diff": None,
        "files": 0,
        "bytes": 0,
    }
    assert not (folder / "runs" / "r" / "snapshot.diff").exists()


def test_outside_of_git_all_of_the_recipes_package_is_copied(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(("lib.py", "my/__init__.py", "my/base.py", "my/deep/one.py"), ""))
    write(tmp_path, {"my/deep/__init__.py": "", "my/data/x.bin": "1"})
    taken = take(tmp_path, "my/deep/one.py")
    inside = ["__init__.py", "base.py", "data/x.bin", "deep/__init__.py", "deep/one.py"]
    assert copied(taken.root) == [f"my/{name}" for name in inside]
    assert set(links(taken.root)) == {"lib.py", "runs"}
    assert taken.recipe_path == taken.root / "my/deep/one.py"


def test_without_git_installed_a_repository_is_a_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(project))
    taken = take(project)
    assert taken.facts["commit"] is None
    assert "deep/er/module.py" in copied(taken.root)
    assert not (taken.root / ".git").exists()


def test_a_recipe_that_git_ignores_counts_as_outside_of_git(project: Path) -> None:
    write(project, {".venv/lib/recipes/digits.py": "", ".venv/lib/recipes/digits.csv": "1"})
    taken = take(project, ".venv/lib/recipes/digits.py")
    assert copied(taken.root) == ["digits.csv", "digits.py"]
    assert taken.facts["commit"] is None


def test_a_recipe_elsewhere_runs_in_the_current_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    taken = take(project)
    assert taken.workdir == elsewhere
    assert taken.recipe_path == taken.root / "my.py"


def test_a_current_folder_that_git_ignores_is_found_through_its_link(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "data")
    taken = take(project)
    assert taken.workdir == taken.root / "data"
    assert (taken.workdir / "big.bin").exists()


SIZES: list[tuple[str, dict[str, str], str]] = [
    ("MAX_BYTES", {"deep/more/x": "x" * 3000, "y": "y" * 200}, "0 MB: deep/more/ 0.0 MB, "),
    ("MAX_FILES", {f"deep/more/{n}": "" for n in range(1200)}, "1,000 files: deep/more/ 1,200 f"),
    ("MAX_FILES", {f"deep/{n}.bin": "" for n in range(1200)}, "1,000 files: deep/ 1,201 files"),
]


@pytest.mark.parametrize(("limit", "files", "words"), SIZES)
def test_too_much_is_refused_with_the_largest_entries_and_leaves_nothing(
    limit: str,
    files: dict[str, str],
    words: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, limit, 1000)
    write(project, files)
    with pytest.raises(BadInput) as caught:
        take(project)
    assert words in caught.value.message
    assert caught.value.hint is not None
    assert "--no-snapshot" in caught.value.hint
    assert ".gitignore" in caught.value.hint
    assert not (project / "runs" / "r").exists()


def test_a_home_folder_outside_of_git_is_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_FILES", 10)
    write(tmp_path, {"my.py": ""} | {f"{n % 7}/{n}": "" for n in range(500)})
    with pytest.raises(BadInput, match=r"more than 10 files: ./ \d+ files"):
        take(tmp_path)


def disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("how", "error"), [(disk_full, RunDirError), (interrupted, BaseException)])
def test_what_fails_in_the_middle_leaves_the_run_directory_as_it_was(
    how: Callable[..., None],
    error: type[BaseException],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = project / "runs" / "r" / "config.json"
    config.parent.mkdir(parents=True)
    write_json(config, {"a": 1})
    monkeypatch.setattr(snapshot, "write_bytes", how)
    with pytest.raises(error):
        take(project)
    assert [path.name for path in (project / "runs" / "r").iterdir()] == ["config.json"]
    assert json.loads(config.read_text()) == {"a": 1}


def test_a_second_snapshot_is_refused_and_the_first_stays(project: Path) -> None:
    taken = take(project)
    with pytest.raises(RunDirError, match="already has a snapshot"):
        take(project)
    assert "my.py" in copied(taken.root)
    assert (project / "runs" / "r" / "snapshot.diff").exists()


def test_a_tree_that_git_will_not_read_is_no_plain_folder(project: Path) -> None:
    (project / ".git" / "config").write_text("[broken\n")
    with pytest.raises(BadInput, match=r"git cannot read the tree of .*bad config") as caught:
        take(project)
    assert "--no-snapshot" in str(caught.value.hint)
    assert not (project / "runs" / "r").exists()


def test_a_submission_that_is_refused_takes_its_snapshot_with_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "my.py").write_text((RECIPES / "curve.py").read_text())
    plan = submit.plan(Wishes("my.py", run_dir=Path("runs/r"), tracking="disabled"))
    folder = submit.make(plan)
    monkeypatch.setenv("PATH", "")  # no sbatch
    with pytest.raises(BadInput, match="there is no `sbatch` here"):
        submit.submit(plan, folder)
    assert not (project / "runs" / "r").exists()
    assert (project / "data" / "big.bin").exists()  # links were removed, not followed


NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..") and not name.lower().startswith(".git"))


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.sets(st.lists(NAME, min_size=1, max_size=3).map("/".join), max_size=6), data=st.data()
)
def test_any_names_are_copied_as_git_lists_them(
    names: set[str], data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    shutil.rmtree(folder, ignore_errors=True)
    repository(folder, {"my.py": ""})
    monkeypatch.setattr(snapshot, "looks_secret", lambda _: False)
    written: dict[str, Any] = {"my.py": ""}
    for name in sorted(names):
        try:
            write(folder, {name: name})
        except OSError:  # it is a folder already, or lies in a file, or is too long
            continue
        written[name] = name
    tracked = data.draw(st.lists(st.sampled_from(sorted(written))))
    for name in tracked:
        git(folder, "add", "--", f":(literal){name}")
    taken = take(folder)
    assert {
        name: (taken.root / name).read_bytes().decode() for name in copied(taken.root)
    } == written
    shutil.rmtree(folder)
