"""Go on with a run that was stopped, or test one of its checkpoints: what to start, and whether."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, RunDirError
from launcher.files import read_json
from launcher.launch.launch import Launch, Nodes, threads_of
from launcher.masks import shown_value
from launcher.processes import HERE, shown
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, outline
from launcher.recipe.hyperparameters import configure
from launcher.recipe.only_data import refuse_others
from launcher.run import checkpoint_files, wandb
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.config import session_of, versions
from launcher.run.directory import RunDir
from launcher.run.told import is_script
from launcher.script.script import Script, file_of_module

# The length of a run, and what no number depends on but by rounding.
_MAY_CHANGE = ("epochs", "steps", "shard", "shard_checkpoints")


def recipe_of(run: RunDir) -> RecipeFile:
    """Return the recipe of a run as it was, under the name of the file it came from."""
    told = run.read_config()
    try:
        source = run.recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirError(f"`{run.recipe}` cannot be read: {error}") from error
    return RecipeFile(told["recipe"], Path(told["recipe_path"]), source)


@contextmanager
def where_it_began(run: RunDir) -> Iterator[None]:
    """Be in the folder where a run was started: relative paths and imports lead where they led."""
    here, began = Path.cwd(), Path(run.read_config().get("folder", "."))
    try:
        os.chdir(began)
    except OSError as error:
        print(
            f"WARNING: the run was started in {began}, which is not here ({error.strerror}): "
            "relative paths and imports lead elsewhere now",
            file=sys.stderr,
        )
    os.environ[HERE] = str(here)
    try:
        yield
    finally:
        del os.environ[HERE]
        os.chdir(here)


def is_completed(run: RunDir, asked: Mapping[str, Any]) -> bool:
    """Whether a run has nothing left to do for what these hyperparameters ask for."""
    result = read_json(run.result) or {}
    if not asked:  # a script says itself when it has come to its end
        return result.get("state") == "completed"
    steps = asked.get("steps")
    done, length = (result.get("step"), steps) if steps else (result.get("epoch"), asked["epochs"])
    whole = isinstance(done, int) and done >= length
    return result.get("state") == "completed" and (whole or bool(why_it_ended(run, asked)))


def why_it_ended(run: RunDir, asked: Mapping[str, Any]) -> str | None:
    """Return why a run was completed before its length; None where these ask for more patience."""
    result = read_json(run.result) or {}
    spent, patience = result.get("out_of_patience"), asked.get("patience")
    if not isinstance(spent, int) or patience is None or patience > spent:
        return None
    return str(result.get("why"))


def how_to_extend(run: RunDir, told: Mapping[str, Any]) -> str:
    """Return in words why a run is completed, and what would have it go on."""
    asked = told["hyperparameters"]
    if is_script(told):
        return "the script has come to its end; `launcher run` starts it anew"
    if why := why_it_ended(run, asked):
        return f"{why}; `patience={2 * asked['patience']} --allow-changes` goes on"
    unit = "steps" if asked.get("steps") else "epochs"
    return f"all {asked[unit]} {unit} are done; `{unit}={2 * asked[unit]}` extends it"


def refuse_script(run: RunDir, what: str) -> None:
    """Raise BadInput where a run is that of a script, which only a recipe's can do `what`."""
    if is_script(run.read_config()):
        raise BadInput(f"`{run.path}` is the run of a script: only recipes have a {what}")


def resumed_script(
    run: RunDir, nodes: Nodes, nproc: int | None, *, allow_changes: bool
) -> dict[str, Any]:
    """Return the configuration that the run of a script goes on with; `nproc` where it is given.

    Raises BadInput where its text has changed.
    """
    told = run.read_config()
    script = Script.of(told)
    assert script
    file = file_of_module(script.module) if script.module else Path(str(script.file))
    try:
        changed = file.read_bytes() != run.script.read_bytes()
    except OSError as error:
        hint = f"it goes on as it began, and is started where it was; its text: {run.script}"
        raise RunDirError(f"`{error.filename}`: {error.strerror}", hint=hint) from error
    if changed and not allow_changes:
        hint = f"--allow-changes goes on with it as it is now; as it was: {shown(run.script)}"
        raise BadInput(f"`{file}` has changed since the run began", hint=hint)
    session = {"time": time.time(), "world_size": nodes.world_size, "changes": {}}
    if changed:
        session["changes"] = {"script": ["as in script.py", "other text"]}
    return told | {
        "script": script.told() | ({"nproc": nproc} if nproc else {}),
        "world_size": nodes.world_size,
        "nodes": nodes.nnodes,
        "cpu": nodes.cpu,
        "resumed": [*told.get("resumed", []), session | {"command": sys.argv}],
    }


def resumed(
    run: RunDir, overrides: Mapping[str, str], nodes: Nodes, *, allow_changes: bool
) -> dict[str, Any]:
    """Return the configuration that a run goes on with.

    Raises BadInput where a hyperparameter other than its length, or who keeps which share of it,
    would change, with the difference.
    """
    told = {"tracking": wandb.tracking(run.path.name, "disabled")} | run.read_config()
    recipe_type = outline(recipe_of(run))
    before = told["hyperparameters"]
    after = configure(recipe_type, str(run.recipe), before | overrides).hyperparameters()
    # A hyperparameter that the run did not know, at its default, came with a newer launcher.
    known = before.keys() | overrides.keys()
    changes = {k: [before.get(k), v] for k, v in after.items() if k in known and before.get(k) != v}
    others = [k for k in changes if k not in _MAY_CHANGE]
    if others and not allow_changes:
        told_of = {k: [shown_value(k, v) for v in changes[k]] for k in others}
        shown = ", ".join(f"{k} from {old} to {new}" for k, (old, new) in told_of.items())
        raise BadInput(
            f"a run is not continued with other hyperparameters: {shown}",
            hint="--allow-changes does it all the same; the result is then no longer that of one "
            "recipe and seed",
        )
    onward = {
        "hyperparameters": after,
        "world_size": nodes.world_size,
        "threads": threads_of(nodes, told),
        "nodes": nodes.nnodes,
        "cpu": nodes.cpu,
    }
    session = session_of(onward | {"versions": versions()})
    session |= {"time": time.time(), "changes": changes, "command": sys.argv}
    first = {} if told.get("resumed") else {"first_session": session_of(told)}
    return first | told | onward | {"resumed": [*told.get("resumed", []), session]}


def choose(run: RunDir, which: str) -> Checkpoint:
    """Return the checkpoint called best, last or by its step; raises BadInput for no valid one."""
    everything = checkpoint_files.all_of(run.checkpoints)
    best_by = run.read_config()["hyperparameters"].get("best_by")
    named = {
        "last": everything[-1:],
        "best": checkpoint_files.best(everything, best_by=best_by),
    }.get(which, [c for c in everything if str(c.step) == which][-1:])
    if not named:
        steps = ", ".join(str(c.step) for c in everything) or "none"
        raise BadInput(
            f"`{run.path}` has no checkpoint `{which}`", hint=f"there are best, last, and: {steps}"
        )
    if wrong := checkpoint_files.problem(named[0]):
        raise BadInput(f"checkpoint {named[0].path.name} is not valid: {wrong}")
    return named[0]


@contextmanager
def test_of(
    run: RunDir,
    checkpoint: Checkpoint,
    nodes: Nodes,
    overrides: Mapping[str, str],
    keep: Path | None,
) -> Iterator[Launch]:
    """Give a launch that tests a checkpoint in a folder of its own; the run may be going on.

    `overrides` change what concerns data, or RecipeError says that they do not; `keep` is the file
    for the rows that the test keeps.
    """
    told = run.read_config()
    configured = _with_other_data(run, told, overrides) | {
        "keep": str(keep) if keep else None,
        "world_size": nodes.world_size,
        "threads": threads_of(nodes, told),
        "cpu": nodes.cpu,
    }
    with tempfile.TemporaryDirectory(prefix="launcher-test-") as folder:
        scratch = RunDir(Path(folder))
        kept = kept_checkpoint(checkpoint, scratch.path)
        configured |= {"test": str(kept)}
        scratch.fill(configured, recipe_of(run).source)
        yield Launch(scratch, scratch, nodes, resumed=configured)


def _with_other_data(
    run: RunDir, told: dict[str, Any], overrides: Mapping[str, str]
) -> dict[str, Any]:
    """Return a run's configuration with hyperparameters that concern data, and which they are."""
    before = told["hyperparameters"]
    if not overrides:
        return told
    recipe_type = outline(recipe_of(run))
    after = configure(recipe_type, str(run.recipe), before | overrides).hyperparameters()
    own = after.keys() - Recipe.__dataclass_fields__.keys()
    changed = [name for name in overrides if after[name] != before.get(name)]
    refuse_others(changed, own)
    return told | {"hyperparameters": after, "only_data": [n for n in changed if n in own]}


def kept_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Return a folder with the files of a checkpoint, which a run that goes on may delete."""
    kept = folder / checkpoint.path.name
    kept.mkdir()
    try:
        for path in checkpoint.path.iterdir():
            _link_or_copy(path, kept / path.name)
    except OSError as error:
        hint = "the run that goes on has deleted it; ask for another"
        raise BadInput(f"checkpoint {checkpoint.path.name} is gone", hint=hint) from error
    return kept


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # the folder for temporary files is on another disk
        shutil.copyfile(source, target)


def check_is_run(run: RunDir) -> None:
    """Raise RunDirError where a folder holds no run."""
    try:
        run.config.stat()
    except PermissionError:  # whose it is, the command line tells
        raise
    except OSError as error:
        hint = "name the folder that `launcher run` printed"
        if run.is_copy:
            hint = "it is at another host: `launcher pull` brings what it tells"
        raise RunDirError(f"`{run.path}` holds no run", hint=hint) from error
