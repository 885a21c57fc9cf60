"""The commands that train and test on this machine: run, resume, test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launcher.cli.answers import JSON, launch_and_tell, tell, tell_of
from launcher.cli.options import (
    INIT_FROM,
    MAX_RESTARTS,
    NPROC,
    PEAK_TFLOPS,
    RUN_DIR,
    TRACKING,
    machines,
)
from launcher.cli.runs import accuracy_words
from launcher.cli.say import say
from launcher.cli.scripts import What, refuse_for_script, refuse_words, what, with_script_options
from launcher.cli.words import PassesOn, TakesHyperparameters
from launcher.errors import BadInput
from launcher.files import read_json
from launcher.gpus import gpus
from launcher.launch.launch import Launch, Nodes, check, threads_of
from launcher.launch.resume import (
    check_is_run,
    choose,
    how_to_extend,
    is_completed,
    recipe_of,
    refuse_script,
    resumed,
    resumed_script,
    test_of,
    where_it_began,
)
from launcher.launch.script import describe_script, launch
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, outline
from launcher.recipe.hyperparameters import configure, split_overrides
from launcher.run import wandb
from launcher.run.config import describe as describe_run
from launcher.run.config import new_run_path
from launcher.run.directory import RunDir
from launcher.run.rows import told_of_test
from launcher.run.told import is_script, read_config
from launcher.run.weights import weights_of


@click.command(cls=PassesOn)
@click.argument("recipe", required=False, metavar="RECIPE|SCRIPT")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]... [-- ...]")
@click.option(
    "--nproc",
    type=click.IntRange(1),
    help="Processes. [default: one per GPU, else 1; for a script 1, which is told no place]",
)
@click.option("--cpu", is_flag=True, help="Train on the CPU although there are GPUs.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for everything the run makes. [default: runs/RECIPE-TIME-ID]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Take hyperparameters and processes from a run's config.json, to repeat it.",
)
@INIT_FROM
@machines
@MAX_RESTARTS
@with_script_options
@click.option("--profile", is_flag=True, help="Trace some steps: trace-rank-K.json, for Perfetto.")
@PEAK_TFLOPS
@TRACKING
@click.option("--project", help="W&B project. [default: WANDB_PROJECT, else the recipe's name]")
@click.option("--group", help="W&B group. [default: WANDB_RUN_GROUP]")
@click.option(
    "--tag", "tags", multiple=True, help="W&B tag; may be repeated. [default: WANDB_TAGS]"
)
@JSON
@click.pass_context
def run(
    ctx: click.Context,
    /,
    recipe: str | None,
    words: tuple[str, ...],
    nproc: int | None,
    cpu: bool,
    run_dir: Path | None,
    config: Path | None,
    init_from: Path | None,
    nnodes: int,
    node_rank: int,
    rdzv_endpoint: str | None,
    max_restarts: int,
    profile: bool,
    peak_tflops: float | None,
    tracking: str | None,
    project: str | None,
    group: str | None,
    tags: tuple[str, ...],
    **of_script: Any,
) -> None:
    """Train RECIPE: a bundled name or the path of a file.

    Hyperparameters follow it as KEY=VALUE; `launcher recipes show RECIPE` lists them. What comes
    after -- goes to `accelerate launch` as it stands.

    Any other Python program is a SCRIPT, started as it is: what comes after -- is the program's.
    """
    if peak_tflops is not None:
        words = (*words, f"peak_tflops={peak_tflops}")
    asked = what(recipe, words, ctx.args, nproc, of_script)
    refuse_for_script(asked, config=config, init_from=init_from, profile=profile)
    told = read_config(config) if config else {}
    made = None if asked.script else _configured(asked, config, told)
    repeated = told.get("world_size") if nnodes == 1 else None
    nodes = Nodes(
        nproc=nproc or repeated or max(1, 0 if cpu or asked.script else gpus()),
        nnodes=nnodes,
        node_rank=node_rank,
        endpoint=rdzv_endpoint,
        cpu=cpu or bool(told.get("cpu")),
    )
    check(nodes)
    _refuse_restarts(nodes, max_restarts)
    if nnodes > 1 and run_dir is None:
        raise BadInput("several machines need --run-dir, the same folder on each")
    file = made[0] if made else asked.file
    folder = RunDir((run_dir or new_run_path(file.name)).absolute())
    # Machine 0 makes the run directory; the others, which may not share its disk, keep a copy of
    # what they were told in its logs.
    spec = folder if node_rank == 0 else RunDir(folder.logs / f"node-{node_rank}-spec")
    tracked = wandb.tracking(file.name, tracking, project=project, group=group, tags=tags)
    config_json = _described(asked, made, nodes, told, init_from) | {"tracking": tracked}
    if node_rank:
        folder.refuse_foreign()
    new = spec.create(config_json | ({"profile": True} if profile else {}), file.source)
    extra = ctx.args if made else ()
    launch_and_tell(Launch(folder, spec, nodes, extra, max_restarts, made=new))


@click.command(cls=TakesHyperparameters)
@RUN_DIR
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@NPROC
@click.option("--cpu", is_flag=True, help="Train on the CPU although there are GPUs.")
@click.option("--allow-changes", is_flag=True, help="Go on with other hyperparameters.")
@machines
@MAX_RESTARTS
@TRACKING
@JSON
def resume(
    run_dir: Path,
    words: tuple[str, ...],
    nproc: int | None,
    cpu: bool,
    allow_changes: bool,
    nnodes: int,
    node_rank: int,
    rdzv_endpoint: str | None,
    max_restarts: int,
    tracking: str | None,
) -> None:
    """Continue the run in RUN_DIR from its newest valid checkpoint.

    It goes on in the folder where it was started. The number of processes may differ from before.
    `epochs=N` or `steps=N` extends a run that has completed.
    Several machines must all see RUN_DIR.
    """
    folder = RunDir(run_dir.absolute())
    check_is_run(folder)
    click.get_current_context().with_resource(where_it_began(folder))
    told = folder.read_config()
    nodes = Nodes(
        nproc=nproc or max(1, int(told["world_size"]) // nnodes),
        nnodes=nnodes,
        node_rank=node_rank,
        endpoint=rdzv_endpoint,
        cpu=cpu or bool(told["cpu"]),
    )
    check(nodes)
    _refuse_restarts(nodes, max_restarts)
    if is_script(told):
        refuse_words(words)
        config = resumed_script(folder, nodes, nproc, allow_changes=allow_changes)
    else:
        config = resumed(folder, split_overrides(words), nodes, allow_changes=allow_changes)
    if mode := wandb.asked_for(tracking):
        config["tracking"]["mode"] = mode
    if is_completed(folder, config["hyperparameters"]):
        say(f"completed: {how_to_extend(folder, config)}")
        tell_of(folder)
        return
    launch_and_tell(Launch(folder, folder, nodes, (), max_restarts, resumed=config))


@click.command(cls=TakesHyperparameters)
@RUN_DIR
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--checkpoint", default="last", metavar="best|last|STEP", show_default=True)
@click.option(
    "--keep",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Safetensors of what `test_step` keeps.",
)
@NPROC
@click.option("--cpu", is_flag=True, help="Test on the CPU although there are GPUs.")
@JSON
def test(
    run_dir: Path,
    words: tuple[str, ...],
    checkpoint: str,
    keep: Path | None,
    nproc: int | None,
    cpu: bool,
) -> None:
    """Test a checkpoint of RUN_DIR on every sample of the test set, once.

    KEY=VALUE may change what only concerns data, like another test set.
    """
    folder = RunDir(run_dir.absolute())
    check_is_run(folder)
    refuse_script(folder, "test")
    chosen = choose(folder, checkpoint)
    target = keep and _new_file(keep)
    click.get_current_context().with_resource(where_it_began(folder))
    told = folder.read_config()
    nodes = Nodes(nproc or int(told["world_size"]), cpu=cpu or bool(told["cpu"]))
    check(nodes)
    with test_of(folder, chosen, nodes, split_overrides(words), target) as job:
        launch(job)
        result = read_json(job.run.result) or {}
    result |= {"step": chosen.step, "epoch": chosen.epoch}
    tell(**result)
    right = f"{result['test_correct']} of {result['test_samples']} right, "
    exact = right if result["test_correct"] is not None else ""
    told_of = (
        f"step {chosen.step}: {exact}{accuracy_words(result)}avg loss {result['test_loss']:.9g}"
    )
    own = [name for name in result if name.startswith("test_") and name not in told_of_test(None)]
    say(told_of + "".join(f", {n.removeprefix('test_')} {result[n]}" for n in own))


def _new_file(path: Path) -> Path:
    """Return where a file can be made; raises BadInput where one is, or where there is no place."""
    path = path.absolute()
    if path.exists() or not path.parent.is_dir():
        what = "exists" if path.exists() else "has no folder to be in"
        raise BadInput(f"`{path}` {what}", hint="name another file with --keep")
    return path


def _configured(
    asked: What, config: Path | None, told: Mapping[str, Any]
) -> tuple[RecipeFile, Recipe]:
    """Return the recipe file, and the recipe made from what --config told and overrides."""
    overrides = split_overrides(asked.words)
    file = asked.file
    if config and file.path == (config.parent / "recipe.py").resolve():
        file = recipe_of(RunDir(config.parent))  # with the files beside the original
    values = told.get("hyperparameters", {}) | overrides
    return file, configure(outline(file), asked.word, values)


def _described(
    asked: What,
    made: tuple[RecipeFile, Recipe] | None,
    nodes: Nodes,
    told: Mapping[str, Any],
    init_from: Path | None,
) -> dict[str, Any]:
    """Return the contents of config.json, but for what tracks the run."""
    if asked.script:
        return describe_script(asked.script, asked.file, nodes, {})
    assert made
    begins = init_from or (told.get("init_from") and Path(told["init_from"]))
    return describe_run(
        *made,
        nproc=nodes.nproc,
        nnodes=nodes.nnodes,
        cpu=nodes.cpu,
        threads=threads_of(nodes, told),
        init_from=weights_of(begins) if begins else None,
    )


def _refuse_restarts(nodes: Nodes, max_restarts: int) -> None:
    if nodes.nnodes > 1 and max_restarts:
        raise BadInput(
            "--max-restarts restarts the processes of one machine, not of several",
            hint="start all machines again with `launcher resume RUN_DIR` and the same options",
        )
