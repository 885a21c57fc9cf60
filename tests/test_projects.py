"""Recipes that are part of a project: every command finds the same modules and the same data."""

import sys
from pathlib import Path

import pytest
from training import PROJECT, Run, command

pytestmark = [pytest.mark.slow, pytest.mark.warm]
LAUNCHER = Path(sys.executable).with_name("launcher")  # whose `sys.path` has no current folder
DIGITS = (PROJECT / "recipes" / "digits.py").read_text().partition("if __name__")[0]
FILES = {
    "lib/numbers.py": "from pathlib import Path\nWIDTH = 16\n",  # a name of the standard library
    "data/width.txt": "16",
    "exp/__init__.py": "",
    "exp/base.py": DIGITS,
    "exp/mine.py": """
from dataclasses import dataclass
from pathlib import Path
from lib.numbers import WIDTH
from .base import Digits

@dataclass(frozen=True)
class Mine(Digits):
    epochs: int = 1
    hidden: int = WIDTH  # width of the layer

    def model(self):
        assert Path("data/width.txt").read_text() == str(self.hidden)
        return super().model()
""",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, with a run of 2 processes in `r`."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    done = command(LAUNCHER, "run", "exp/mine.py", "--nproc", "2", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("recipes show exp/mine.py", "width of the layer"),
        ("debug exp/mine.py --steps 1", "Done: test accuracy"),
        ("submit exp/mine.py --local --no-checks --run-dir job", "Done: test accuracy"),
    ],
)
def test_every_command_finds_what_a_recipe_imports(words: str, said: str, project: Path) -> None:
    done = command(LAUNCHER, *words.split(), cwd=project)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_a_run_goes_on_where_it_was_started(project: Path, tmp_path: Path) -> None:
    done = command(LAUNCHER, "resume", project / "r", "epochs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(project / "r").result["epoch"] == 2
    shown = done.stdout.splitlines()[-1].rpartition(", ")[2]
    assert (tmp_path / shown).resolve() == project / "r"  # as it is found from where the user is
    done = command(LAUNCHER, "test", project / "r", "--nproc", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
