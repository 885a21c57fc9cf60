"""The command line: what is printed, what is refused, and the exit codes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launcher import __version__
from launcher.cli import run
from launcher.cli.main import main
from launcher.recipe.base import REQUIRED_METHODS
from launcher.recipe.file import bundled, find, outline
from launcher.recipe.hyperparameters import configure

pytestmark = pytest.mark.warm

LAUNCHER = Path(sys.executable).with_name("launcher")
TWO_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1"}

METHODS = "".join(f"    def {name}(self, *parts): ...\n" for name in REQUIRED_METHODS)
TOP = "from dataclasses import dataclass\nfrom launcher import Recipe\n"
RECIPE = f"@dataclass(frozen=True)\nclass Mine(Recipe):\n    width: int = 3\n{METHODS}\n"
FILES = {
    "mine.py": TOP + RECIPE,
    "empty.py": "x = 1\n",
    "two.py": TOP + RECIPE + RECIPE.replace("Mine", "Other"),
    "broken.py": "x = 1\ny = = 2\n",
    "lacking.py": TOP + RECIPE.replace("def loss", "def loose"),
    "failing.py": TOP + "1 / 0\n" + RECIPE,
    "taken/config.json": "{}",
    "list.json": "[]",
    "wrong.json": '{"recipe": "digits", "hyperparameters": {"epochs": "many"}}',
    "three.json": '{"recipe": "digits", "hyperparameters": {"epochs": 2}, "world_size": 3}',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files above."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*words: str) -> Result:
    """What the command line answers on a machine with two GPUs."""
    return CliRunner().invoke(main, words, env=TWO_GPUS)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


# Words of a command, what happened, and what to do (a part of it; None: no hint).
REFUSED: list[tuple[str, str, str | None]] = [
    ("run digit", "there is no recipe `digit`", "did you mean `digits`?"),
    ("run nowhere/my.py", "there is no recipe `nowhere/my.py`", "`launcher recipes` lists them"),
    ("debug digit", "there is no recipe `digit`", "did you mean `digits`?"),
    ("recipes show digit", "there is no recipe `digit`", "did you mean `digits`?"),
    ("recipes copy digit my.py", "there is no recipe `digit`", "did you mean `digits`?"),
    ("debug empty.py", "/empty.py has no recipe", "it is a script"),
    (
        "run empty.py epochs=2",
        "`epochs=2` is none of the launcher's words for a script",
        "-- epochs",
    ),
    ("run empty.py --lr 2", "`--lr` is none of", "program's: launcher run empty.py -- --lr 2"),
    ("run -m empty epochs=2", "`epochs=2` is none of", "launcher run -m empty -- epochs=2"),
    (
        "run empty.py --profile",
        "--profile is for recipes, and empty.py is a script",
        "what follows --",
    ),
    ("run mine.py --grace 3", "--grace is for scripts, and mine.py is a recipe", None),
    ("run -m nowhere.at_all", "there is no module `nowhere.at_all` to run", "current folder"),
    ("run empty.py --on-resume 'a", "No closing quotation", "close"),
    ("recipes show empty.py", "/empty.py has no recipe", "a recipe is a class"),
    ("run two.py", "/two.py has 2 recipes: Mine, Other", "keep one"),
    ("run broken.py", "/broken.py, line 2: invalid syntax", "y = = 2"),
    ("debug broken.py", "/broken.py, line 2: invalid syntax", "y = = 2"),
    ("run lacking.py", "recipe `lacking` lacks the method `loss`", "recipes copy digits"),
    ("run failing.py", "ZeroDivisionError: division by zero", "/failing.py, line 3"),
    (
        "run digits epoch=3",
        "recipe `digits` has no hyperparameter `epoch`",
        "did you mean `epochs`? `launcher recipes show digits` lists them",
    ),
    (
        "run ./mine.py widht=3",
        "recipe `./mine.py` has no hyperparameter `widht`",
        "did you mean `width`? `launcher recipes show ./mine.py` lists them",
    ),
    ("debug mine.py widht=3", "recipe `mine.py` has no", "`launcher recipes show mine.py`"),
    ("run digits epochs=many", "`epochs` must be int, not `many`", None),
    ("run digits learning_rate=fast", "`learning_rate` must be float, not `fast`", None),
    ("run digits mixed_precision=fp4", "`mixed_precision` must be no | bf16, not `fp4`", None),
    ("run digits batch_size=0", "`batch_size` must be at least 1, not 0", None),
    ("debug digits batch_size=0", "`batch_size` must be at least 1, not 0", None),
    ("run digits learning_rate=nan", "`learning_rate` must be a finite number", None),
    ("run digits epochs", "`epochs` is not of the form key=value", "like `epochs=10"),
    ("run digits epochs=1 epochs=2", "hyperparameter `epochs` is given twice", None),
    ("run digits --nproc 3", "--nproc 3 asks for more processes than there are GPUs: 2", "--cpu"),
    ("run digits --nnodes 2", "--nnodes 2 needs --rdzv-endpoint HOST:PORT", "--node-rank 0"),
    (
        "run digits --nnodes 2 --rdzv-endpoint here",
        "--rdzv-endpoint here is not of the form HOST:PORT",
        None,
    ),
    ("run digits --node-rank 1", "--node-rank 1 is not one of 0 to 0", None),
    (
        "run digits --nnodes 2 --rdzv-endpoint here:29500",
        "several machines need --run-dir, the same folder on each",
        None,
    ),
    ("run digits --run-dir mine.py/run", "/mine.py/run` cannot be written: Not a dir", "--run-dir"),
    ("run digits --run-dir taken", "/taken` already holds a run", "give another --run-dir"),
    ("run digits --config list.json", "is not the config.json of a run: it is not a JSON", None),
    ("run digits --config mine.py", "is not the config.json of a run: Expecting value", None),
    ("run digits --config wrong.json", "`epochs` must be int, not `many`", None),
    ("run digits --config wrong.json epochs=0", "`epochs` must be at least 1, not 0", None),
    ("run digits --config three.json", "--nproc 3 asks for more processes", "--cpu"),
    ("recipes copy digits mine.py", "`mine.py` exists", "give another name"),
    ("recipes copy digits mine.py/my.py", "`mine.py/my.py` cannot be written: ", None),
]


@pytest.mark.floors
@pytest.mark.parametrize(("words", "message", "hint"), REFUSED, ids=[row[0] for row in REFUSED])
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    words: str, message: str, hint: str | None, folder: Path
) -> None:
    before = tree(folder)
    answer = said(*words.split())
    lines = answer.stderr.splitlines()
    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) == (1 if hint is None else 2)
    assert hint is None or (lines[1].startswith("hint: ") and hint in lines[1])
    assert tree(folder) == before


@pytest.mark.floors
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "Missing argument 'RECIPE'"),
        ("run -- digits", "Missing argument 'RECIPE'"),
        ("run digits --nproc 0", "0 is not in the range x>=1"),
        ("run digits --nprocs 2", "--nproc"),
        ("run digits --grace nan", "nan is not a finite number"),
        ("run digits --hang-timeout nan", "nan is not a finite number"),
        ("run digits --peak-tflops inf", "inf is not a finite number"),
        ("diff . . --tolerance nan", "nan is not a finite number"),
        ("diff . . --tolerance -0.1", "-0.1 is not in the range x>=0"),
        ("run digits --run-dir mine.py", "Directory 'mine.py' is a file"),
        ("run digits --config nowhere.json", "File 'nowhere.json' does not exist"),
        ("debug digits --steps 0", "0 is not in the range x>=1"),
        ("recipes copy digits taken", "File 'taken' is a directory"),
        ("recipes shwo digits", "No such command 'shwo'"),
        ("rnu", "No such command 'rnu'"),
    ],
)
def test_misuse_of_the_command_line_is_refused_by_click(
    words: str, message: str, folder: Path
) -> None:
    before = tree(folder)
    answer = said(*words.split())
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert tree(folder) == before


@pytest.mark.floors
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "digit"], 2, "error: there is no recipe `digit`"),
        (["run", "digits", "batch_size=0"], 2, "error: `batch_size` must be at least 1, not 0"),
        (["run", "digits", "--nproc", "0"], 2, "Error: Invalid value for '--nproc'"),
    ],
)
def test_the_installed_command_ends_with_the_same_exit_code_on_the_same_streams(
    words: list[str], status: int, message: str, folder: Path
) -> None:
    env = {**os.environ, **TWO_GPUS}
    done = subprocess.run(
        [LAUNCHER, *words], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(folder).keys() == {*FILES, "taken"}


def test_python_dash_m_is_the_same_command(folder: Path) -> None:
    argv = [sys.executable, "-m", "launcher", "recipes"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == said("recipes").stdout


@pytest.mark.floors
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["run", "--help"], ["recipes", "-h"]])
def test_help_is_an_answer(words: list[str]) -> None:
    answer = said(*words)
    assert answer.exit_code == 0
    assert answer.stdout.startswith("Usage: ")
    assert answer.stderr == ""


def test_the_version_is_told() -> None:
    assert said("--version").stdout == f"launcher, version {__version__}\n"


@pytest.mark.floors
def test_recipes_are_listed_with_a_line_each() -> None:
    answer = said("recipes")
    assert answer.exit_code == 0
    listed = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines())
    assert list(listed) == [path.stem for path in bundled()]
    assert listed["fashion_mnist"].startswith("The PyTorch quickstart")


def shown(recipe: str) -> dict[str, list[str]]:
    """The table of `recipes show`: type, default and meaning by name."""
    answer = said("recipes", "show", recipe)
    assert answer.exit_code == 0, answer.stderr
    _, _, table = answer.stdout.partition("\n\n")
    lines = [line for line in table.splitlines() if line.startswith("  ")]  # not the groups' names
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_a_recipe_is_shown_with_type_default_and_meaning() -> None:
    rows = shown("digits")
    assert rows["epochs"] == ["int", "20", "passes over the training data"]
    assert rows["learning_rate"] == ["float", "0.1", "step size of the optimizer"]
    assert rows["micro_batch_size"][:2] == ["int | auto | none", "none"]
    assert rows["mixed_precision"][:2] == ["no | bf16", "no"]
    assert rows["hidden"] == ["int", "128", "width of the hidden layer"]
    assert said("recipes", "show", "digits").stdout.splitlines()[1] == str(find("digits").path)


@pytest.mark.parametrize("name", [path.stem for path in bundled()])
def test_a_default_is_shown_as_it_can_be_given(name: str) -> None:
    recipe = outline(find(name))
    rows = shown(name)
    assert sorted(rows) == sorted(recipe().hyperparameters())
    assert all(len(row) == 3 for row in rows.values())
    given = {key: row[1] for key, row in rows.items()}
    if recipe().steps:
        del given["epochs"]  # one of them says how long a run is
    assert configure(recipe, name, given) == recipe()


def test_defaults_of_every_kind_are_shown_as_they_can_be_given(folder: Path) -> None:
    kinds = (
        "    flip: bool = False\n    betas: tuple[float, float] = (0.9, 0.999)\n"
        "    where: Path = Path('data')\n"
    )
    source = f"from pathlib import Path\n{TOP}{RECIPE}{kinds}"
    (folder / "kinds.py").write_text(source)
    rows = shown("kinds.py")
    assert rows["flip"] == ["bool", "false"]
    assert rows["betas"] == ["tuple[float, float]", "0.9,0.999"]
    assert rows["where"] == ["Path", "data"]


@pytest.mark.parametrize("name", [path.stem for path in bundled()])
def test_a_copy_is_the_recipe_itself(name: str, folder: Path) -> None:
    answer = said("recipes", "copy", name, "deep/my.py")
    assert answer.exit_code == 0
    assert answer.stdout == "copied; train it with: launcher run deep/my.py\n"
    assert (folder / "deep/my.py").read_text() == find(name).source
    assert [path.name for path in (folder / "deep").iterdir()] == ["my.py"]
    assert shown("deep/my.py") == shown(name)


@pytest.mark.parametrize(
    ("words", "overrides", "cpu", "extra"),
    [
        ("digits", (), False, ""),
        ("digits a=1 --cpu b=2", ("a=1", "b=2"), True, ""),
        ("digits --", (), False, ""),
        ("digits a=1 -- --main_process_port 0", ("a=1",), False, "--main_process_port 0"),
        ("digits -- --cpu -- c=3", (), False, "--cpu -- c=3"),
    ],
)
def test_what_comes_after_two_dashes_is_for_accelerate(
    words: str, overrides: tuple[str, ...], cpu: bool, extra: str
) -> None:
    context = run.run.make_context("run", words.split())
    assert context.params["recipe"] == "digits"
    assert (context.params["words"], context.params["cpu"]) == (overrides, cpu)
    assert context.args == extra.split()


def test_the_files_of_this_test_are_what_they_claim(folder: Path) -> None:
    assert shown("mine.py")["width"] == ["int", "3"]
    assert json.loads((folder / "three.json").read_text())["world_size"] == 3


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("run digits --epochs 3", "epochs=3"),
        ("run digits --epochs=3 --cpu", "epochs=3"),
        ("run digits --batch-size 3", "batch_size=3"),
        ("run digits --batch_size 3", "batch_size=3"),
        ("run --lr 0.1 digits", "learning_rate=0.1"),
        ("run digits -lr 0.1", "learning_rate=0.1"),
        ("run digits --bs", "batch_size=..."),
        ("run digits --momentum 0.5", "momentum=0.5"),
        ("run mine.py --width 5 --cpu", "width=5"),
        ("run mine.py --momentums 5", None),  # no field of this one
        ("run mine.py --widht", "width=..."),
        ("run nowhere.py --lr 1", "learning_rate=1"),
        ("debug mine.py --width 5", "width=5"),
        ("submit mine.py --width 5", "width=5"),
        ("submit digits --nodes 2 --lr '[0.1, 1]'", "learning_rate='[0.1, 1]'"),
        ("resume run --width 5", "width=5"),
        ("resume run --lr", "learning_rate=..."),
    ],
)
def test_a_hyperparameter_given_as_an_option_is_told_how(
    words: str, form: str | None, folder: Path
) -> None:
    (folder / "run").mkdir()
    (folder / "run/config.json").write_text('{"hyperparameters": {"width": 1, "learning_rate": 1}}')
    result = said(*shlex.split(words))
    assert result.exit_code == 2
    if form is None:
        assert "No such option" in result.stderr
    else:
        assert result.stderr.startswith("error: there is no option -")
        assert result.stderr.endswith(f"hint: hyperparameters are given as key=value: {form}\n")


@pytest.mark.parametrize(
    ("word", "near"),
    [("lr", "learning_rate"), ("bs", "batch_size"), ("wd", None), ("LR", "learning_rate")],
)
def test_a_common_short_name_leads_to_the_right_one(word: str, near: str | None) -> None:
    result = said("run", "digits", f"{word}=1")
    assert f"recipe `digits` has no hyperparameter `{word}`" in result.stderr
    hint = f"did you mean `{near}`? " if near else ""
    assert f"hint: {hint}`launcher recipes show digits` lists them" in result.stderr
