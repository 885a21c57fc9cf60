"""Run directories that belong to somebody else, or are broken: words, from every command."""

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from training import RECIPES, launcher

from launcher.cli import answers
from launcher.cli import run as cli_run
from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.job import node, turn
from launcher.launch import script
from launcher.slurm import client

pytestmark = pytest.mark.warm

WAYS = [
    *("resume RUN", "resume RUN epochs=3", "test RUN", "test RUN --checkpoint best", "runs runs"),
    *(
        "checkpoints RUN",
        "checkpoints RUN --json",
        "report RUN",
        "sync RUN",
        "status",
        "status RUN",
    ),
    *("logs RUN", "logs RUN --rank 0", "cancel RUN", "resubmit RUN", "runs runs --json"),
    *("run RUN/recipe.py --config RUN/config.json", "recipes show RUN/recipe.py"),
    *("status RUN", "job begin RUN", "job end RUN --code 1", "status RUN --json"),
    "job node RUN --nproc 1 --nnodes 1 --node-rank 0 --rdzv-endpoint h:1",
]
NOBODY = 65534


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """A folder that everybody may enter, with a run that a job has completed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    words = ["epochs=1", "samples=40", "--local", "--no-checks", "--no-snapshot", "--run-dir"]
    done = launcher("submit", RECIPES / "curve.py", *words, "runs/r", cwd=folder)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command would start is not what is asked here."""

    def start(*_: object, **__: object) -> None:
        raise LauncherError("it would start")

    for module in (node, cli_run, answers):
        monkeypatch.setattr(module, "launch", start)
    monkeypatch.setattr(client, "submit", start)
    monkeypatch.setattr("launcher.tracking.uploads.subprocess.run", start)
    monkeypatch.setattr(turn, "_PATIENCE_S", 0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)


def ended(words: str, folder: Path) -> str:
    """Run a command in a folder; returns what it says, and fails on anything but words."""
    os.chdir(folder)
    done = CliRunner().invoke(main, words.replace("RUN", "runs/r").split())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2, 76), done.output
    return done.output


def as_nobody(words: str, folder: Path) -> str:
    """Run a command as a user who owns nothing; returns what it says, or how it failed."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            said = ended(words, folder)
        except BaseException as error:  # noqa: BLE001  # all of it is for the parent
            said = f"FAILED: {error!r}"
        os.write(writer, said.encode(errors="replace")[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a while")
@pytest.mark.parametrize("may", ["read", "list", "nothing"])
def test_a_run_of_another_user_is_told_in_words_by_every_command(
    whole: Path, tmp_path: Path, may: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    for words in WAYS:  # this user may not read what they import
        ended(words, tmp_path)
    folder = Path(tempfile.mkdtemp(dir=whole.parent))
    folder.chmod(0o755)
    shutil.copytree(whole / "runs", folder / "runs")
    (folder / "runs" / "r").chmod(0o700 if may == "nothing" else 0o755)
    if may == "list":
        for path in (folder / "runs" / "r").rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
    for module in (cli_run, answers):
        monkeypatch.setattr(module, "launch", script.launch)
    try:
        for words in WAYS:
            if words.startswith("test") and may == "read":  # which it may
                continue
            said = as_nobody(words, folder)
            assert "FAILED" not in said, (words, said)
        refused = as_nobody("resume RUN epochs=3", folder)
        assert "Permission denied" in refused
        assert refused.startswith("error: ")
        if may == "read":
            assert "hint: it is root's" in refused
    finally:
        os.chdir(tmp_path)
        shutil.rmtree(folder)


def broken(run: Path, choose: random.Random) -> str:
    """Break one thing in a run directory; returns what."""
    files = [p for p in run.rglob("*") if p.is_file() and "local" not in p.parts]
    file = choose.choice(sorted(files))
    how = choose.choice(["empty", "binary", "gone", "folder", "value", "value", "value", "value"])
    if how == "value" and file.suffix in (".json", ".jsonl"):
        *before, last = file.read_text().splitlines() if file.suffix == ".jsonl" else [""]
        whole: Any = json.loads(last or file.read_text())
        key = choose.choice([None, *whole])
        value: Any = choose.choice([None, "x", -1, 1.5, [], {"a": 1}, ["a"], [{}], True])
        whole = value if key is None else whole | {key: value}
        file.write_text("\n".join([*before, json.dumps(whole)]) + "\n")
        return f"{file.name}: {key} is {value!r}"
    if how in ("gone", "folder"):
        file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "gone":
        file.write_bytes(b"" if how == "empty" else bytes(range(256)))
    return f"{file.name}: {how}"


@pytest.mark.parametrize("seed", range(60))
def test_a_broken_run_is_told_in_words_by_every_command(
    whole: Path, tmp_path: Path, seed: int
) -> None:
    choose = random.Random(seed)
    shutil.copytree(whole / "runs", tmp_path / "runs")
    what = broken(tmp_path / "runs" / "r", choose)
    for words in choose.sample(WAYS, 8):
        try:
            ended(words, tmp_path)
        except BaseException as error:
            error.add_note(f"{words}: {what}")
            raise


def test_a_recipe_that_is_no_text_is_told_in_words(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "r" / "recipe.py").write_bytes("# é\n".encode("latin-1"))
    for words in ("resume RUN epochs=3", "test RUN", WAYS[16]):
        said = ended(words, tmp_path)
        assert "recipe.py" in said
        assert "utf-8" in said
    assert sys.exc_info() == (None, None, None)
