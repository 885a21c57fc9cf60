"""Secrets are shown nowhere, files have one mode, and foreign texts cannot steer a terminal."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from training import RECIPES, clean_environment, launcher
from wandb_server import API_KEY, WandbServer, wandb_server

from launcher.cli.main import main
from launcher.files import write_json
from launcher.masks import clean, clean_log, is_secret, masked, masked_words
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm import submit
from launcher.slurm.points import Wishes

pytestmark = pytest.mark.warm

SECRET = "hunter2-of-the-hub"
RECIPE = f"""
from dataclasses import dataclass
from curve import Curve
@dataclass(frozen=True)
class Secretive(Curve):
    hub_token: str = ""
    api_key: str = ""
    password: str = ""
    sort_key: int = 3
    tokenizer: str = "bpe"
    def train_data(self):
        assert len(self.hub_token) == {len(SECRET)}, "it must be told all the same"
        return super().train_data()
"""
WORDS = [f"hub_token={SECRET}", f"password={SECRET}", "sort_key=5", "tokenizer=wordpiece"]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("hub_token", "abc", True),
        ("token", "abc", True),
        ("AWS_SECRET", "abc", True),
        ("db_password", "12345", True),
        ("api_key", Path("abc"), True),
        ("hub_token", ("abc", "def"), True),
        ("pad_token", 3, False),
        ("sort_key", 0.5, False),
        ("use_token", True, False),
        ("api_key", None, False),
        ("api_key", "", False),
        ("class_token", [1, 2], False),
        ("tokenizer", "bpe", False),
        ("keys", "abc", False),
        ("monkey", "abc", False),
        ("token_length", "abc", False),
    ],
)
def test_a_secret_is_known_by_its_name_and_is_no_number(
    name: str, value: Any, secret: bool
) -> None:
    assert is_secret(name, value) is secret
    assert masked({name: value}) == {name: "***" if secret else value}


def test_a_command_line_is_masked_by_what_its_values_are() -> None:
    words = ["launcher", "run", "my.py", "api_key=x=y", "sort_key=5", "--run-dir", "token", "a=b"]
    shown = masked_words(words, {"sort_key": 5, "api_key": "x=y"})
    assert shown == [*words[:3], "api_key=***", *words[4:]]


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run `r` that was told secrets, under an unusual umask, and is on W&B."""
    folder = tmp_path_factory.mktemp("secretive")
    (folder / "my.py").write_text(RECIPE)
    shutil.copy(RECIPES / "curve.py", folder)
    online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY, "WANDB_MODE": "online"}
    words = ["run", "my.py", *WORDS, "epochs=1", "checkpoint_every=3", "--run-dir=r"]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        env=clean_environment() | online | {"WANDB_NAME": "a name of its own"},
        capture_output=True,
        text=True,
        umask=0o027,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    rest = launcher("sync", "r", cwd=folder, env=online)  # what a busy machine had no time for
    assert rest.returncode == 0, rest.stderr
    return folder


def said(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_secrets_are_in_config_json_for_its_owner_alone_and_nowhere_else(folder: Path) -> None:
    files = [path for path in (folder / "r").rglob("*") if path.is_file()]
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == ["config.json"]
    assert RunDir(folder / "r").read_config()["hyperparameters"]["hub_token"] == SECRET
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert modes.pop("config.json") == 0o600
    own = {path.name for path in files if "wandb" not in path.relative_to(folder).parts}
    assert {"model.safetensors", "training.pt", "metrics.jsonl", "result.json"} < own
    assert {name for name in own - {"config.json"} if modes[name] != 0o640} == set()


def test_secrets_are_masked_on_wandb_and_the_run_has_the_name_it_was_given(
    folder: Path, server: WandbServer
) -> None:
    (page,) = server.runs.values()
    assert page.display_name == "a name of its own"
    assert (page.config["hub_token"], page.config["password"]) == ("***", "***")
    assert (page.config["sort_key"], page.config["tokenizer"]) == (5, "wordpiece")
    assert page.config["api_key"] == ""
    everything = [str(page.raw_config), str(dict(page.lines)), *map(str, page.files.values())]
    assert SECRET not in "".join(everything)


def test_secrets_are_masked_on_the_console_and_in_reports(folder: Path) -> None:
    page = folder / "page.html"
    answers = [said("runs", folder), said("runs", folder, "--json")]
    answers.append(said("resume", folder / "r", "hub_token=another-secret"))
    answers.append(said("recipes", "show", folder / "r" / "recipe.py"))
    assert said("report", folder / "r", "--output", page).exit_code == 0
    text = "".join(answer.output for answer in answers) + page.read_text()
    assert "hub_token from *** to ***" in text
    assert "hub_token=***" in page.read_text()
    assert "sort_key=5" in page.read_text()
    assert SECRET not in text
    assert "another-secret" not in text


def test_a_resumed_run_keeps_its_secrets_for_its_owner(folder: Path) -> None:
    done = launcher("resume", "r", "epochs=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    config = folder / "r" / "config.json"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert RunDir(folder / "r").read_config()["hyperparameters"]["hub_token"] == SECRET


def test_what_is_submitted_keeps_secrets_for_its_owner(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    wishes = Wishes("my.py", WORDS, run_dir=Path("job"), grid=["api_key=a-one,a-two"])
    submit.make(submit.plan(wishes))
    files = [path for path in (folder / "job").rglob("*") if path.is_file()]
    telling = [path for path in files if re.search(rb"hunter2|a-one|a-two", path.read_bytes())]
    assert {path.name for path in telling} == {"config.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in telling} == {0o600}


def test_what_is_wrong_with_a_secret_does_not_tell_it(folder: Path) -> None:
    (folder / "typed.py").write_text(RECIPE.replace("api_key: str = ", "api_key: int = 0  # "))
    done = said("run", folder / "typed.py", "api_key=hunter2")
    assert done.exit_code == 2
    assert "`api_key` must be int, not `***`" in done.stderr


# Clears the screen, sets the title, writes over the line, turns it round; and what is harmless.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\b\x7f\u202etxt.exe\udc80"
HARMLESS = "Größe 日本語　 \t\n👩‍🔬 ✓"


def test_a_text_that_is_shown_cannot_steer_a_terminal() -> None:
    shown = r"\x1b[2J\x1b]0;owned\x07\x9b31m\x08\x7f\u202etxt.exe\udc80"
    assert clean(EVIL) == shown
    assert clean(HARMLESS) == HARMLESS
    assert clean("a\rb") == r"a\rb"
    log = "\x1b[31mred\x1b[0m 10%\r20%\n"
    assert clean_log(log + EVIL + log) == log + shown + log


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of somebody's who means ill, in the current folder."""
    monkeypatch.chdir(tmp_path)
    evil = EVIL.replace("\udc80", "")
    run = RunDir(tmp_path / "runs" / "r\x1b[2J")
    run.create({"recipe": evil, "hyperparameters": {"epochs": evil, evil: evil}, "host": evil}, "")
    write_json(run.result, {"state": "failed", "error": evil, "epoch": 0, "step": 1})
    run.log(0).write_text(f"\x1b[32mfine\x1b[0m {evil}\n")
    folder = SlurmFolder.of(run)
    folder.path.mkdir()
    write_json(folder.job, {"jobs": [{"id": evil, "submitted": 1.0}], "nproc": 1, "array": None})
    folder.start(evil, 0, evil)
    folder.end("failed", 1, 3, [])
    (folder.path / "bad-nodes").mkdir()
    (folder.path / "bad-nodes" / "\x1b[2J.txt").write_text(evil)
    checkpoint = run.checkpoints / "step-00000001-epoch-0000"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "manifest.json", {"files": {evil: {"size": 1}}})
    return run.path


@pytest.mark.parametrize(
    "words",
    [
        *("status", "status RUN", "runs", "runs --json", "logs RUN", "logs RUN --rank 0"),
        *("resume RUN", "checkpoints RUN", "test RUN", "report RUN", "cancel RUN", "sync RUN"),
        *("resubmit RUN", "run RUN/recipe.py --config RUN/config.json", "run RUN"),
        *("recipes show RUN/recipe.py", "submit RUN/recipe.py --dry-run"),
    ],
)
def test_a_foreign_run_directory_cannot_steer_a_terminal(
    foreign: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("WANDB_API_KEY", "")
    given = [word.replace("RUN", str(foreign)) for word in words.split()]
    done = CliRunner().invoke(main, given)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    harmless = re.sub(r"\x1b\[\d*m", "", done.output) if words.startswith("logs") else done.output
    assert harmless
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", harmless)


def test_no_command_prints_a_text_as_it_is() -> None:
    package = Path(main.callback.__code__.co_filename).parent  # type: ignore[union-attr]
    printing = {
        file.name
        for file in package.glob("*.py")
        if re.search(r"click\.echo\(|(?<!\.)\bprint\(", file.read_text())
    }
    # One styles pieces, each cleaned; one prints JSON, which is ASCII.
    assert printing == {"doctor.py", "answers.py"}
