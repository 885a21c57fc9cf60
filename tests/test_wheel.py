"""The wheel: what is in it works anywhere, without torch where torch is not needed."""

import subprocess
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def output(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_disk(*folders: str) -> list[str]:
    """The files of the project as they are, but for what Python makes of them."""
    found = (path for folder in folders for path in (PROJECT / folder).rglob("*"))
    return [
        str(path.relative_to(PROJECT)) for path in found if path.is_file() and path.suffix != ".pyc"
    ]


def test_git_ignores_no_file_of_the_project() -> None:
    words = ["check-ignore", "--no-index", "--stdin"]
    files = "\n".join(on_disk("launcher", "recipes", "slurm", "tests"))
    done = subprocess.run(["git", *words], cwd=PROJECT, input=files, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr  # 1: none is


@pytest.mark.slow
def test_a_wheel_holds_recipes_and_templates_and_shows_them_without_torch(tmp_path: Path) -> None:
    output("uv", "build", "--wheel", "--out-dir", tmp_path, PROJECT, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("recipes", "slurm"):
        kept = {path.name for path in (PROJECT / kind).iterdir() if path.is_file()}
        assert kept <= {Path(name).name for name in files if f"launcher/_assets/{kind}/" in name}
    assert set(on_disk("launcher")) <= files
    assert not any(name.startswith("tests/") or "__pycache__" in name for name in files)

    output("uv", "venv", "venv", cwd=tmp_path)
    packages = [str(wheel), "click", "psutil", "rich"]
    output("uv", "pip", "install", "--python", "venv", "--no-deps", *packages, cwd=tmp_path)
    launcher = tmp_path / "venv" / "bin" / "launcher"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "digits  " in output(launcher, "recipes", cwd=elsewhere)
    page = (PROJECT / "launcher" / "guide" / "agents.md").read_text()
    assert output(launcher, "guide", "agents", cwd=elsewhere) == page
    shown = output(launcher, "recipes", "show", "digits", cwd=elsewhere)
    assert str(Path("launcher", "_assets", "recipes", "digits.py")) in shown
    assert "passes over the training data" in shown
    output(launcher, "recipes", "copy", "digits", "my.py", cwd=elsewhere)
    assert (elsewhere / "my.py").read_text() == (PROJECT / "recipes" / "digits.py").read_text()
