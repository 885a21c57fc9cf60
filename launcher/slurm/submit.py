"""Plan a submission and carry it out: from a recipe and options to run directories and a job."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, RunDirError
from launcher.files import make_new_folder, read_json, remove_empty, write_json, write_text
from launcher.launch.launch import Nodes
from launcher.masks import masked_words
from launcher.recipe.file import find
from launcher.run import wandb
from launcher.run.config import new_run_path
from launcher.run.directory import RunDir
from launcher.run.job import Job, SlurmFolder
from launcher.run.weights import weights_of
from launcher.slurm import client, options, partitions, render, snapshot
from launcher.slurm import profile as slurm_profile
from launcher.slurm.options import Setting, gpus_of, nodes_of
from launcher.slurm.points import Point, Program, Wishes, own_config, points_of, shared_config
from launcher.slurm.render import Request, Scripts
from launcher.slurm.snapshot import Snapshot
from launcher.slurm.template import places

DEFAULTS = {"nodes": "1", "signal": "B:USR1@120"}
# In a run directory that `launcher.remote` has brought here with its code: what that is.
_MARK = ".staged.json"


@dataclass(frozen=True)
class Plan:
    """All that a submission will do; nothing is written yet."""

    wishes: Wishes
    program: Program
    points: list[Point]
    request: Request
    settings: Mapping[str, Setting]
    templates: Sequence[Path]

    @property
    def cpu(self) -> bool:
        """Whether it trains on the CPU: no GPUs are asked for."""
        return not self.request.gpus

    @property
    def nodes(self) -> int:
        """How many nodes each run uses at a time; spare ones come on top."""
        return nodes_of(self.settings) - self.wishes.spare_nodes

    @property
    def scripts(self) -> Scripts:
        """The scripts as they will be, but for the place of the code."""
        return render.render(self.request, self.templates)

    @property
    def warnings(self) -> list[str]:
        """What the user should know before."""
        found = render.warnings(self.scripts, requeue=self.request.requeue)
        found += options.warnings(self.settings, self.request.nproc, self.request.gpus)
        found += options.of_environment(os.environ)[1]
        for path in (self.request.run_dir, Path(self.request.python)):
            if path.is_relative_to(tempfile.gettempdir()):
                found.append(f"{path} is in {tempfile.gettempdir()}, which other nodes do not see")
        if self.program.is_installed and not self.wishes.no_snapshot:
            found.append(f"{self.program.file.path} is installed: the job runs what it finds then")
        return found


def plan(wishes: Wishes, program: Program | None = None) -> Plan:
    """Return what a submission will do; raises BadInput for whatever can be seen to be wrong.

    `program` is what `wishes.recipe` names, where that has been looked at before.
    """
    if wishes.no_requeue and wishes.chain:
        raise BadInput("--chain goes on where --no-requeue would not", hint="give one of them")
    wandb.mode_of(wishes.tracking)  # raises for an unknown word, before anything is written
    if wishes.init_from:
        wishes = replace(wishes, init_from=weights_of(wishes.init_from))
    program = program or Program(find(wishes.recipe))
    file = program.file
    templates = [wishes.template or file.path.parent / "slurm"]
    if wishes.template and not wishes.template.is_dir():
        raise BadInput(f"--template {wishes.template} is no folder")
    profiles = [folder / "profiles" for folder in (*templates, Path.cwd() / "slurm")]
    profile = slurm_profile.load(wishes.profile, profiles)
    if wishes.here:  # its queue has been passed
        profile = replace(profile, sbatch={})
    sites, _ = options.of_environment(os.environ)
    defaults = DEFAULTS | {"job-name": file.name}
    settings = options.settled(wishes.sbatch or {}, profile, defaults, sites)
    gpus = gpus_of(settings)
    nproc = wishes.nproc or (0 if program.script else gpus) or 1
    options.add_consequences(settings, nproc, gpus)
    options.add_spare_nodes(settings, wishes.spare_nodes)
    run_dir = (wishes.run_dir or new_run_path(file.name)).absolute()
    points = points_of(wishes, program, run_dir)
    limit = f"%{wishes.max_parallel}" if wishes.max_parallel else ""
    request = Request(
        run_dir=run_dir,
        workdir=Path.cwd() if wishes.no_snapshot else run_dir / "snapshot",
        python=sys.executable,
        nproc=nproc,
        sbatch={name: setting.value for name, setting in settings.items()},
        profile=profile,
        gpus=gpus,
        requeue=wishes.restart == "requeue",
        array=f"0-{len(points) - 1}{limit}" if wishes.grid else None,
    )
    made = Plan(wishes, program, points, request, settings, templates)
    if wishes.spare_nodes and not places(made.scripts.batch):
        source = render.sources(templates)[render.BATCH]
        hint = "`launcher job begin --place` tells them: see the bundled slurm/job.sbatch.j2"
        raise BadInput(f"--spare-nodes: {source} starts on all nodes that it has", hint=hint)
    if wishes.exclude_slow and (made.nodes == 1 or program.script):
        words = "how long the ranks of a script take is not known"
        words = words if program.script else "ranks are compared between nodes, and it is one"
        raise BadInput(f"--exclude-slow: {words}", hint="leave it out")
    return made


def check(plan: Plan, *, queue: bool = True) -> str:
    """Check all that can be checked before anything is written; returns what SLURM says of it."""
    for name, script in zip(("batch script", "node script"), plan.scripts, strict=True):
        client.check_syntax(script, name)
    try:
        if plan.request.run_dir.exists() and not plan.wishes.staged:
            raise _taken(plan.request.run_dir)
    except OSError as error:
        raise _unwritable(plan.request.run_dir, error) from error
    if not Path(plan.request.python).is_file():
        raise BadInput(f"there is no interpreter {plan.request.python}")
    return _check_accepted(plan) if queue else ""


def _check_accepted(plan: Plan) -> str:
    there = partitions.asked_for(plan.settings)
    partitions.check(plan.settings, there)
    try:
        return client.check_accepted(plan.scripts.batch)
    except BadInput as error:  # more nodes, or other ones, than there are
        facts = [*(one.told for one in there), *filter(None, [error.hint])]
        raise BadInput(error.message, hint="; ".join(facts)) from error


def make(plan: Plan) -> SlurmFolder:
    """Make the run directories with code, scripts and `job.json`; after an error there are none.

    Raises RunDirError where the folder is there already, or cannot be written.
    """
    folder, staged = plan.request.folder, plan.wishes.staged
    made = (_brought if staged else claimed)(plan.request.run_dir)
    try:
        folder.path.mkdir(exist_ok=staged)  # a profile was brought, too
        request, facts = _snapshot(plan)
        nodes = Nodes(plan.request.nproc, plan.nodes, cpu=plan.cpu)
        shared = shared_config(plan.program, plan.points[0], nodes, plan.wishes.init_from) | facts
        group = plan.request.run_dir.name if plan.wishes.grid else None
        for task, point in enumerate(plan.points):
            own = own_config(plan.wishes, plan.program, point, group)
            point.run.fill(shared | own, plan.program.file.source)
            if plan.wishes.grid:
                inner = SlurmFolder.of(point.run)
                inner.path.mkdir()
                write_json(inner.job, _asked(plan) | {"array_task": task})
        write_json(folder.job, _asked(plan) | {"jobs": []})
        batch, node = render.render(request, plan.templates)
        write_text(folder.node, node)
        write_text(folder.batch, batch)
    except BaseException as error:
        _discard(plan, made)
        if isinstance(error, OSError):
            raise _unwritable(plan.request.run_dir, error) from error
        raise
    return folder


def claimed(path: Path) -> list[Path]:
    """Make the folder of a submission; returns the folders that were made, innermost first.

    Raises RunDirError where it is there: of two submissions at once it belongs to the first.
    """
    try:
        return make_new_folder(path)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _brought(path: Path) -> list[Path]:
    """Take a folder that `launcher.remote` has made."""
    if not (path / _MARK).is_file():
        hint = "`launcher submit --host` on another machine brings it"
        raise RunDirError(f"`{path}` holds no code that was brought", hint=hint)
    return [path]


def _taken(path: Path) -> RunDirError:
    hint = "give another --run-dir, or none to have one made"
    return RunDirError(f"`{path}` exists", hint=hint)


def _unwritable(path: Path, error: OSError) -> RunDirError:
    hint = "give a folder that you may write with --run-dir"
    return RunDirError(f"run directory `{path}` cannot be written: {error}", hint=hint)


def _discard(plan: Plan, made: Sequence[Path]) -> None:
    """Remove what `make` has written, and the folders that it `made` where nothing else is in."""
    whole = RunDir(plan.request.run_dir)
    for run in (*(point.run for point in plan.points), whole):
        shutil.rmtree(SlurmFolder.of(run).path, ignore_errors=True)
        run.remove([run.logs, run.path])
    shutil.rmtree(whole.snapshot, ignore_errors=True)
    whole.snapshot_diff.unlink(missing_ok=True)
    remove_empty(made)


def submit(plan: Plan, folder: SlurmFolder) -> list[Job]:
    """Hand the job to SLURM, and the rest of its chain, each to start after the one before.

    Where SLURM refuses the first, nothing is left of what `make` has made; where nobody knows
    whether it took it, all of it stays.
    """
    try:
        return client.submit_chain(folder, folder.batch, [], plan.wishes.chain or 1)
    except (BadInput, client.RefusedError):
        if not folder.jobs():
            _discard(plan, [plan.request.run_dir])
        raise


def _snapshot(plan: Plan) -> tuple[Request, dict[str, Any]]:
    """Copy the code; returns the request with its place, and what config.json says of it."""
    script = plan.program.script
    if plan.wishes.no_snapshot or plan.program.is_installed:
        return replace(plan.request, workdir=Path.cwd()), {}
    taken, more = _taken_before(plan) if plan.wishes.staged else (_take(plan), {})
    facts = {"recipe_path": str(taken.recipe_path), "snapshot": taken.facts}
    facts["folder"] = str(taken.workdir)  # where it runs
    if script and script.file:
        facts["script"] = script.told() | {"file": str(taken.recipe_path)}
    return replace(plan.request, workdir=taken.workdir), facts | more


def _take(plan: Plan) -> Snapshot:
    script = plan.program.script
    module = script.module if script else None
    return snapshot.take(RunDir(plan.request.run_dir), plan.program.file.path, module)


def _taken_before(plan: Plan) -> tuple[Snapshot, dict[str, Any]]:
    """Return the copy that was brought here, once: from now on it is this run's.

    And what config.json says of where it was brought from.
    """
    run = RunDir(plan.request.run_dir)
    told = read_json(run.path / _MARK) or {}
    (run.path / _MARK).unlink()
    workdir = Path.cwd() if told["inner"] is None else run.snapshot / told["inner"]
    recipe = run.snapshot / told["recipe"]
    return Snapshot(run.snapshot, workdir, recipe, told["snapshot"]), told["config"]


def _asked(plan: Plan) -> dict[str, Any]:
    """Return what job.json says."""
    wishes, settings = plan.wishes, plan.settings
    parameters = plan.points[0].hyperparameters
    exclude = settings.get("exclude")
    return {
        "recipe": wishes.recipe,
        "overrides": masked_words(wishes.overrides, parameters),
        "grid": masked_words(wishes.grid, parameters),
        "nproc": plan.request.nproc,
        "nodes": plan.nodes,
        "spare_nodes": wishes.spare_nodes,
        "exclude_slow": wishes.exclude_slow,
        "array": plan.request.array,
        "restart": wishes.restart,
        "chain": wishes.chain or 0,
        "checks": not wishes.no_checks,
        "max_requeues": wishes.max_requeues,
        "max_failures": wishes.max_failures,
        "exclude": exclude.value if exclude else None,
        "options": {name: setting._asdict() for name, setting in settings.items()},
        "profile": plan.request.profile.source,
        "templates": [str(folder.absolute()) for folder in plan.templates],
        "submitted": time.time(),
    }
