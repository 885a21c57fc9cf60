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
from launcher.cli import COMMANDS

PACKAGE = Path(launcher.__file__).parent
FLOOR = {
    "errors",
    "files",
    "masks",
    "told",
    "say",
    "credentials",
    "run_dir",
    "recipe",
    "hyperparameters",
    "recipe_file",
    "recipe_source",
    "values",
    "config",
    "record",
    "processes",
    "console",
    "gpus",
    "checkpoint_files",
    "lock",
    "mark",
    "slurm_job",
    "checks",
    "wandb_run",
    "runs",
    "node_marks",
}
LAUNCHER_SIDE = [
    "start",
    "guard",
    "supervise",
    "verdict",
    "mirror",
    "launch",
    "resume",
    "uploads",
    "report",
    "snapshot",
    "doctor",
    "slurm_profile",
    "slurm_options",
    "doctor_slurm",
    "slurm",
    "slurm_turn",
    "slurm_requeue",
    "lifecycle",
    "job_node",
    "slurm_template",
    "slurm_render",
    "slurm_local",
    "submit",
    "slurm_shown",
    "slurm_status",
    "slurm_control",
    "cli_recipes",
    "cli_words",
    "cli_run",
    "cli_runs",
    "cli_tracking",
    "cli_slurm",
    "cli_doctor",
    "cli_jobs",
    "cli",
]  # each may use those before it
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


@pytest.mark.parametrize("module", [*sorted(FLOOR), *LAUNCHER_SIDE])
def test_a_module_of_the_launcher_side_stays_on_its_side_of_the_wall(module: str) -> None:
    assert not loaded_by(f"import launcher.{module}") & WALL


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
    ],
    ids=" ".join,
)
def test_a_command_that_only_tells_loads_nothing_heavy(words: list[str]) -> None:
    program = f"from launcher.cli import main\nmain({words}, standalone_mode=False)"
    assert not loaded_by(program) & HEAVY


def test_the_wall_can_be_seen_from_here() -> None:
    assert loaded_by("import launcher, numpy") >= {"launcher", "numpy"}


def imports(module: str) -> Iterator[tuple[str, str]]:
    """What a module of the package imports from it, with the function it does that in.

    What only the type checker reads is left out.
    """
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    yield from _imports(tree, "")


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
            imported = rest.partition(".")[0]
            if package == "launcher" and (PACKAGE / f"{imported}.py").is_file():
                yield imported, function


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_the_floor_imports_only_from_the_floor(module: str) -> None:
    assert {imported for imported, _ in imports(module)} <= FLOOR


@pytest.mark.parametrize("module", LAUNCHER_SIDE)
def test_the_launcher_side_imports_only_from_below(module: str) -> None:
    below = LAUNCHER_SIDE[: LAUNCHER_SIDE.index(module)]
    others = {row for row in imports(module) if row[0] not in {*FLOOR, *below}}
    # The command line reaches the worker side in one place.
    assert others == ({("script", "debug")} if module == "cli_run" else set())


def test_the_package_itself_imports_only_from_the_floor() -> None:
    assert {imported for imported, _ in imports("__init__")} <= FLOOR


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: {imported for imported, _ in imports(module)} for module in MODULES}
    assert graph["worker"] >= {"checkpoint", "loops"}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    for name, (module, help_line) in COMMANDS.items():
        command = getattr(import_module(f"launcher.{module}"), name)
        assert command.help.startswith(help_line.removesuffix(".")), name
