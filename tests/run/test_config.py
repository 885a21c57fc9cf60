"""config.json: what a run would need to be repeated."""

import json
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile
from launcher.run import config


@dataclass(frozen=True)
class Example(Recipe):
    """A recipe whose values need care in JSON."""

    seed: int = 7
    data: Path = Path("data")


def described(folder: Path, **options: Any) -> dict[str, Any]:
    file = RecipeFile("example", folder / "example.py", "")
    return config.describe(file, Example(), **options)


def test_a_description_says_what_was_run_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = described(tmp_path, nproc=3, nnodes=2, cpu=True)
    assert told["recipe"] == "example"
    assert told["recipe_path"] == str(tmp_path / "example.py")
    assert told["hyperparameters"]["data"] == "data"
    assert (told["seed"], told["world_size"], told["nodes"], told["cpu"]) == (7, 6, 2, True)
    assert told["folder"] == str(tmp_path)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_description_has_the_versions_of_what_decides_the_numbers(tmp_path: Path) -> None:
    versions = described(tmp_path)["versions"]
    assert versions["python"] == platform.python_version()
    assert {"launcher", "torch", "accelerate", "numpy"} <= set(versions)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert described(tmp_path)["git"] is None


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_and_dirtiness_are_those_of_the_recipes_tree(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert described(tmp_path)["git"] is None  # no commit yet
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert described(tmp_path)["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "example.py").write_text("")
    assert described(tmp_path)["git"] == {"commit": commit, "dirty": True}


def test_each_new_run_has_a_folder_of_its_own() -> None:
    paths = {config.new_run_path("digits") for _ in range(20)}
    assert len(paths) == 20
    for path in paths:
        assert re.fullmatch(r"runs/digits-\d{8}-\d{6}-[0-9a-f]{4}", path.as_posix())
