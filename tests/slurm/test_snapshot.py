"""The copy of the code that a queued job runs from."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import RECIPES

from launcher.errors import BadInput, RunDirError
from launcher.run.directory import RunDir, write_json
from launcher.slurm import snapshot, submit
from launcher.slurm.points import Wishes
from launcher.slurm.snapshot import Snapshot

PROJECT = {
    "my.py": "import model\n",
    "model.py": "WIDTH = 3\n",
    "deep/er/module.py": "N = 1\n",
    ".gitignore": "data/\nruns/\n.venv/\n*.bin\n",
    "data/big.bin": "0" * 1000,
    "deep/weights.bin": "w",
    ".venv/pyvenv.cfg": "home = /usr/bin\n",
}


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "init.defaultBranch=main"]
    allow = ["-c", "protocol.file.allow=always"]
    argv = ["git", "-C", str(folder), *who, *allow, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def repository(folder: Path, files: dict[str, str] = PROJECT) -> Path:
    write(folder, files)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = repository(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def take(folder: Path, recipe: str = "my.py") -> Snapshot:
    return snapshot.take(RunDir(folder / "runs" / "r"), folder / recipe)


def copied(root: Path) -> list[str]:
    """The files that were copied, links that were made left out."""
    found = []
    for folder, _, files in os.walk(root):
        paths = [Path(folder, name) for name in files]
        found += [str(path.relative_to(root)) for path in paths if not path.is_symlink()]
    return sorted(found)


def links(root: Path) -> dict[str, str]:
    paths = [path for path in root.rglob("*") if path.is_symlink()]
    return {str(path.relative_to(root)): str(path.readlink()) for path in paths}


def test_code_is_copied_and_what_git_ignores_is_linked(project: Path) -> None:
    (project / "runs").mkdir()
    taken = take(project)
    assert copied(taken.root) == [".gitignore", "deep/er/module.py", "model.py", "my.py"]
    ignored = ["data", "runs", ".venv", "deep/weights.bin"]
    assert links(taken.root) == {name: str(project / name) for name in ignored}
    assert (taken.workdir / "data" / "big.bin").read_text() == "0" * 1000
    assert taken.root == project / "runs" / "r" / "snapshot"
    assert taken.workdir == taken.root
    assert taken.recipe_path.read_text() == "import model\n"
    assert taken.facts == {
        "commit": git(project, "rev-parse", "HEAD").strip(),
        "dirty": False,
        "files": 4,
        "bytes": sum(len(PROJECT[name]) for name in copied(taken.root)),
        "diff": "snapshot.diff",
    }
    assert (project / "runs" / "r" / "snapshot.diff").read_bytes() == b""


def test_editing_the_original_changes_nothing(project: Path) -> None:
    taken = take(project)
    before = {name: (taken.root / name).read_bytes() for name in copied(taken.root)}
    for name in before:
        (project / name).write_text("edited")
    (project / "deep" / "er" / "module.py").unlink()
    git(project, "commit", "--quiet", "-am", "second")
    assert {name: (taken.root / name).read_bytes() for name in copied(taken.root)} == before


def test_git_does_not_take_the_snapshot_for_the_original(project: Path) -> None:
    taken = take(project)
    assert not (taken.root / ".git").exists()


def test_a_dirty_tree_is_copied_as_it_is_and_its_diff_repeats_it(project: Path) -> None:
    write(project, {"model.py": "WIDTH = 4\n", "new\nname é.py": "", "staged.py": "S = 1\n"})
    (project / "bytes.dat").write_bytes(bytes(range(256)) * 10)
    (project / "deep" / "er" / "module.py").unlink()
    git(project, "add", "staged.py", "bytes.dat")
    taken = take(project)
    expected = [".gitignore", "bytes.dat", "model.py", "my.py", "new\nname é.py", "staged.py"]
    assert copied(taken.root) == expected
    assert taken.facts["dirty"] is True
    diff = project / "runs" / "r" / "snapshot.diff"
    assert diff.read_text(encoding="utf-8").startswith('# untracked: "new\\nname é.py"\ndiff --git')
    clone = project.parent / "clone"
    git(project, "clone", "--quiet", str(project), str(clone))
    git(clone, "apply", str(diff))
    (taken.root / "new\nname é.py").unlink()
    assert [name for name in copied(clone) if not name.startswith(".git/")] == copied(taken.root)
    for name in copied(taken.root):
        assert (clone / name).read_bytes() == (taken.root / name).read_bytes()


CONFIGURED = [
    ("color.ui", "always"),
    ("diff.noprefix", "true"),
    ("diff.mnemonicPrefix", "true"),
    ("diff.external", "false"),
    ("diff.relative", "true"),
    ("core.quotePath", "false"),
    ("core.fsmonitor", "false"),
]


@pytest.mark.parametrize(("key", "value"), CONFIGURED)
def test_a_users_git_settings_do_not_change_the_diff(project: Path, key: str, value: str) -> None:
    git(project, "config", key, value)
    write(project, {"model.py": "WIDTH = 4\n"})
    take(project, "deep/er/module.py")
    lines = (project / "runs" / "r" / "snapshot.diff").read_text().splitlines()
    assert lines[0] == "diff --git a/model.py b/model.py"
    assert lines[-2:] == ["-WIDTH = 3", "+WIDTH = 4"]


def test_modes_times_and_links_are_kept(project: Path) -> None:
    write(project, {"tool.sh": "#!/bin/sh\n"})
    (project / "tool.sh").chmod(0o755)
    os.utime(project / "model.py", (1e9, 1e9))
    (project / "alias.py").symlink_to("model.py")
    (project / "folder").symlink_to("deep/er")
    (project / "broken").symlink_to("nowhere")
    (project.parent / "shared").mkdir()
    (project / "deep" / "out").symlink_to("../../shared")
    taken = take(project)
    assert (taken.root / "tool.sh").stat().st_mode & 0o777 == 0o755
    assert (taken.root / "model.py").stat().st_mtime == 1e9
    found = links(taken.root)
    kept = {"alias.py": "model.py", "folder": "deep/er", "broken": "nowhere"}
    assert {name: found[name] for name in kept} == kept
    assert found["deep/out"] == str(project.parent / "shared")


def test_a_folder_that_became_a_link_is_a_link(project: Path) -> None:
    shutil.move(project / "deep", project.parent / "elsewhere")
    (project / "deep").symlink_to(project.parent / "elsewhere")
    taken = take(project)
    assert copied(taken.root) == [".gitignore", "model.py", "my.py"]
    assert (taken.root / "deep").readlink() == project.parent / "elsewhere"


def test_a_folder_that_is_only_kept_for_ignored_files_is_linked_whole(project: Path) -> None:
    write(project, {"images/.gitkeep": "", "images/1.bin": "1", "cache/.gitignore": "*\n"})
    git(project, "add", "--force", "images/.gitkeep", "cache/.gitignore")
    taken = take(project)
    assert links(taken.root)["images"] == str(project / "images")
    assert links(taken.root)["cache"] == str(project / "cache")


SECRETS = [
    ".env",
    ".env.local",
    "deep/.env",
    "prod.env",
    "key.pem",
    "key.p12",
    ".netrc",
    "_netrc",
    "id_rsa",
    "id_rsa.pub",
    "id_ed25519",
    "deep/id_ecdsa",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    "kaggle.json",
    "Kaggle.JSON",
    "secrets.toml",
    ".pgpass",
    "client_secret_1.json",
    "service-account-x.json",
    "credentials",
    "credentials.json",
    "token",
    "hf_token",
    ".s3cfg",
]
CODE = ["tokenizer.json", "tokens.py", "secretary.py", "keys.py", "environment.yml", "token_ids.py"]


@pytest.mark.parametrize("in_git", [True, False])
def test_untracked_credentials_are_linked_never_copied(project: Path, in_git: bool) -> None:
    write(project, dict.fromkeys(SECRETS, "PASSWORD=hunter2") | dict.fromkeys(CODE, "code"))
    if not in_git:
        shutil.rmtree(project / ".git")
        write(project, {"deep/.aws/config": "PASSWORD=hunter2"})  # linked whole: it is hidden
    taken = take(project)
    linked = links(taken.root)
    for name in SECRETS:
        assert linked[name] == str(project / name)
    assert not set(CODE) & set(linked)
    for path in (project / "runs" / "r").rglob("*"):
        assert path.is_symlink() or path.is_dir() or b"hunter2" not in path.read_bytes()


def test_tracked_files_are_copied_whatever_their_names(project: Path) -> None:
    write(project, {".env": "MODE=test"})
    git(project, "add", ".env")
    assert (take(project).root / ".env").read_text() == "MODE=test"
    assert not (project / "runs" / "r" / "snapshot" / ".env").is_symlink()


def test_a_repository_without_a_commit_has_only_a_diff(tmp_path: Path) -> None:
    write(tmp_path, {"my.py": "N = 1\n", "staged.py": "N = 2\n"})
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "staged.py")
    taken = take(tmp_path)
    assert (taken.facts["commit"], taken.facts["dirty"]) == (None, True)
    assert copied(taken.root) == ["my.py", "staged.py"]
    diff = (tmp_path / "runs" / "r" / "snapshot.diff").read_text()
    assert '# untracked: "my.py"' in diff
    assert "+N = 2" in diff


def test_of_a_worktree_its_own_files_are_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = project.parent / "tree"
    git(project, "worktree", "add", "--quiet", str(tree))
    write(tree, {"model.py": "WIDTH = 9\n"})
    monkeypatch.chdir(tree / "deep")
    taken = take(tree)
    assert copied(taken.root) == [".gitignore", "deep/er/module.py", "model.py", "my.py"]
    assert (taken.root / "model.py").read_text() == "WIDTH = 9\n"
    assert not (taken.root / ".git").exists()
    assert taken.workdir == taken.root / "deep"


def test_submodules_and_repositories_within_are_copied_with_their_changes(project: Path) -> None:
    other = repository(project.parent / "other", {"lib.py": "L = 1\n", ".gitignore": "x.bin\n"})
    for name in ("sub", "empty"):
        git(project, "submodule", "--quiet", "add", str(other), name)
    git(project, "commit", "--quiet", "-m", "submodules")
    git(project, "submodule", "--quiet", "deinit", "--force", "empty")
    repository(project / "inner", {"inner.py": "I = 1\n"})
    write(project, {"sub/lib.py": "L = 2\n", "sub/x.bin": "x", "sub/new.py": ""})
    taken = take(project)
    inside = [name for name in copied(taken.root) if name.startswith(("sub", "inner", "empty"))]
    assert inside == ["inner/inner.py", "sub/.gitignore", "sub/lib.py", "sub/new.py"]
    assert (taken.root / "sub" / "x.bin").readlink() == project / "sub" / "x.bin"
    assert not (taken.root / "inner" / ".git").exists()
    diff = (project / "runs" / "r" / "snapshot.diff").read_text()
    assert "--- a/sub/lib.py\n+++ b/sub/lib.py\n" in diff
    assert '# untracked: "sub/new.py"' in diff


def test_a_recipe_in_a_submodule_comes_with_the_project_around_it(project: Path) -> None:
    other = repository(project.parent / "other", {"sub.py": ""})
    git(project, "submodule", "--quiet", "add", str(other), "sub")
    taken = take(project, "sub/sub.py")
    assert {"model.py", "sub/sub.py"} <= set(copied(taken.root))
    assert taken.recipe_path == taken.root / "sub" / "sub.py"


def test_in_a_hook_of_another_repository_the_recipe_s_own_is_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repository(project.parent / "other", {"other.py": ""})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert "model.py" in copied(take(project).root)


def test_files_in_conflict_are_copied_once(project: Path) -> None:
    git(project, "checkout", "--quiet", "-b", "other")
    for branch, text in (("other", "WIDTH = 5\n"), ("main", "WIDTH = 6\n")):
        git(project, "checkout", "--quiet", branch)
        write(project, {"model.py": text})
        git(project, "commit", "--quiet", "-am", branch)
    with pytest.raises(subprocess.CalledProcessError):
        git(project, "merge", "other")
    taken = take(project)
    assert taken.facts["files"] == 4
    assert "<<<<<<<" in (taken.root / "model.py").read_text()


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
