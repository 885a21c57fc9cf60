"""The wall between the two sides, and the direction of imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import launcher
from launcher.cli.main import COMMANDS

PACKAGE = Path(launcher.__file__).parent
# From the roof to the ground: a wing imports from those below it, and from the floor (the files
# that stand in the package itself), which imports from nothing but itself.
WINGS = [
    "child",
    "cli",
    "job",
    "foreground",
    "remote",
    "slurm",
    "report",
    "doctor",
    "node",
    "launch",
    "replay",
    "planning",
    "train",
    "attached",
    "sharding",
    "ranks",
    "tracking",
    "data",
    "model",
    "script",
    "times",
    "run",
    "recipe",
]
WORKER_SIDE = {
    *("node", "replay", "planning", "train", "attached", "sharding"),
    *("ranks", "data", "model"),
}
# Where one side reaches the other: a recipe that runs in this process, and W&B's client.
DOORS = {
    ("cli.recipes", "train.script", "_debug_recipe"),
    ("cli.recipes", "replay.process", "_make_alone"),
}
BEHIND_THE_WALL = {"tracking.session"}
WALL = {"torch", "torchvision", "accelerate", "wandb"}
HEAVY = {*WALL, "numpy", "rich", "jinja2", "plotly"}


def loaded_by(program: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after a program."""
    report = "\nfinally:\n    import sys; print('\\nLOADED', *sys.modules, file=sys.stderr)"
    body = "\n".join(f"    {line}" for line in program.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n{body}{report}"], capture_output=True, text=True, check=True
    )
    words = done.stderr.rpartition("LOADED")[2].split()
    assert "launcher" in words
    return {word.partition(".")[0] for word in words}


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "_assets"
)


def wing(module: str) -> str:
    """The wing a module stands in, '' for the floor."""
    return module.rpartition(".")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *(name for name in WINGS if name not in WORKER_SIDE)])
def test_a_wing_of_the_launcher_side_stays_on_its_side_of_the_wall(name: str) -> None:
    here = [m for m in MODULES if wing(m) == name and m not in BEHIND_THE_WALL | {"__main__"}]
    assert not loaded_by("\n".join(f"import launcher.{module}" for module in here)) & WALL


def test_each_wing_is_in_the_list_says_what_it_is_about_and_imports_nothing() -> None:
    assert {wing(module) for module in MODULES} == {"", *WINGS}
    for name in WINGS:
        [about] = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(about, ast.Expr)
        files = [
            path for path in (PACKAGE / name).iterdir() if path.suffix in {".py", ".js", ".jinja"}
        ]
        assert 2 <= len(files) - 1 <= 14, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["debug", "--help"],
        ["runs", "--help"],
        ["report", "--help"],
        ["recipes"],
        ["recipes", "show", "digits"],
        ["recipes", "show", "fashion_mnist"],
        ["guide"],
        ["guide", "recipes"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_tells_loads_nothing_heavy(words: list[str]) -> None:
    program = f"from launcher.cli.main import main\nmain({words}, standalone_mode=False)"
    assert not loaded_by(program) & HEAVY


def test_the_wall_can_be_seen_from_here() -> None:
    assert loaded_by("import launcher, numpy") >= {"launcher", "numpy"}


def imports(module: str) -> Iterator[tuple[str, str]]:
    """What a module of the package imports from it, with the function it does that in.

    What only the type checker reads is left out.
    """
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), "")


def _imports(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports within the package are absolute"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            inner = child.name if isinstance(child, ast.FunctionDef) else function
            yield from _imports(child, inner)
            continue
        for name in names:
            package, _, rest = name.partition(".")
            parts = rest.split(".")
            found = [".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in MODULES]
            if package == "launcher" and found:
                yield found[0], function


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_stay_on_their_side(module: str) -> None:
    here = wing(module)
    below = ["", here] if here in {"", *WINGS} else []
    if here or module == "__main__":
        below += WINGS[WINGS.index(here) + 1 :] if here else ["cli"]
    if here and here not in WORKER_SIDE:
        below = [name for name in below if name not in WORKER_SIDE]
    others = {(module, *row) for row in imports(module) if wing(row[0]) not in below}
    assert others <= DOORS


@pytest.mark.slow
def test_no_import_goes_in_a_circle() -> None:
    graph = {module: {imported for imported, _ in imports(module)} for module in MODULES}
    assert graph["train.worker"] >= {"train.testing", "train.loops"}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    for name, (module, help_line) in COMMANDS.items():
        command = getattr(import_module(f"launcher.cli.{module}"), name)
        assert command.help.startswith(help_line.removesuffix(".")), name
