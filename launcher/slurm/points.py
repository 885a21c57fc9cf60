"""What a submission runs: a recipe at each point of a grid, or a script, and what each is told."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from launcher.errors import BadInput
from launcher.launch.launch import Nodes
from launcher.launch.script import describe_script
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, outline
from launcher.recipe.hyperparameters import configure, grid, one_length, split_overrides
from launcher.run import wandb
from launcher.run.config import describe
from launcher.run.directory import RunDir
from launcher.script.script import Script


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line; the fields have the names of its options."""

    recipe: str
    overrides: Sequence[str] = ()
    sbatch: Mapping[str, str] | None = None  # options of sbatch, without dashes
    grid: Sequence[str] = ()  # key=v1,v2
    max_parallel: int | None = None
    spare_nodes: int = 0  # more than the run uses at a time
    exclude_slow: bool = False  # a start leaves out nodes that were slow in the one before
    nproc: int | None = None
    run_dir: Path | None = None
    profile: str = "default"
    template: Path | None = None
    no_requeue: bool = False
    chain: int | None = None  # how many dependent jobs
    max_requeues: int = 100
    max_failures: int = 3
    no_snapshot: bool = False
    no_checks: bool = False  # of the nodes, before each start
    here: bool = False  # in the allocation that this process is in
    tracking: str | None = None
    init_from: Path | None = None  # a run directory, or a file of weights
    staged: bool = False  # the code was brought into the run directory: see `launcher.remote`

    @property
    def restart(self) -> Literal["requeue", "chain", "never", "here"]:
        """What starts the job again where its nodes, or its time, are not enough for that."""
        if self.here:
            return "here"  # whoever sits there
        return "chain" if self.chain else "never" if self.no_requeue else "requeue"


class Program(NamedTuple):
    """What is to run: the text of a recipe or a script, and how a script is treated."""

    file: RecipeFile
    script: Script | None = None  # None: it is a recipe

    @property
    def is_installed(self) -> bool:
        """Whether it is a module that is not found from the current folder on: no code of ours."""
        if self.script is None or not self.script.module:
            return False
        own = Path.cwd() / Path(*self.script.module.split("."))
        places = (own.with_suffix(".py"), own / "__main__.py", own)
        return self.file.path not in [place.resolve() for place in places]


class Point(NamedTuple):
    """One run of a submission: the whole of it, or one point of a grid."""

    run: RunDir
    recipe: Recipe | None  # None: it is a script

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the recipe; a script has none that we know of."""
        return self.recipe.hyperparameters() if self.recipe else {}


def points_of(wishes: Wishes, program: Program, run_dir: Path) -> list[Point]:
    """Return the runs; raises BadInput for values that the recipe does not take."""
    if program.script:
        return [Point(RunDir(run_dir), None)]
    recipes = list(_recipes(wishes, program.file))
    paths = [run_dir / str(task) for task in range(len(recipes))] if wishes.grid else [run_dir]
    return [Point(RunDir(path), recipe) for path, recipe in zip(paths, recipes, strict=True)]


def _recipes(wishes: Wishes, file: RecipeFile) -> Iterator[Recipe]:
    """Give the recipe of each point, the last key of the grid moving fastest."""
    overrides, axes = split_overrides(wishes.overrides), split_overrides(wishes.grid)
    if twice := overrides.keys() & axes.keys():
        raise BadInput(f"`{min(twice)}` is given as an override and in --grid")
    length = one_length([*overrides, *axes])
    recipe_type = outline(file)
    for point in grid(recipe_type, wishes.recipe, axes):
        yield configure(recipe_type, wishes.recipe, overrides | length | point)


def shared_config(
    program: Program, first: Point, nodes: Nodes, init_from: Path | None
) -> dict[str, Any]:
    """Return what config.json says of all runs alike."""
    if program.script:
        nowhere = wandb.tracking(program.file.name, "disabled")  # each run has its own
        told = describe_script(program.script, program.file, nodes, nowhere)
        return told | {"threads": None}  # the first node knows
    assert first.recipe
    return describe(
        program.file,
        first.recipe,
        nproc=nodes.nproc,
        nnodes=nodes.nnodes,
        cpu=nodes.cpu,
        init_from=init_from,
    )


def own_config(wishes: Wishes, program: Program, point: Point, group: str | None) -> dict[str, Any]:
    """Return what config.json says of one run: the runs of a grid are a group in W&B."""
    tracked = wandb.tracking(program.file.name, wishes.tracking, group=group)
    seed = {"seed": point.recipe.seed} if point.recipe else {}
    return {"hyperparameters": point.hyperparameters, **seed, "tracking": tracked}
