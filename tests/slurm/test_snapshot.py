"""The copy of the code that a queued job runs from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from snapshots import PROJECT, copied, git, links, repository, take, write


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = repository(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


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
