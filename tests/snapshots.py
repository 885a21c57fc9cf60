"""Projects to take snapshots of, and what is in a snapshot."""

import os
import subprocess
from pathlib import Path

from launcher.run.directory import RunDir
from launcher.slurm import snapshot
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
