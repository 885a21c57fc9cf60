"""What a submission will do, for people and for programs: scripts, and where values come from."""

from typing import Any

from launcher.slurm import render
from launcher.slurm.submit import Plan


def shown(plan: Plan) -> str:
    """Return the scripts and where values come from, for people."""
    rows = [(name, *setting) for name, setting in sorted(plan.settings.items())]
    rows.append(("nproc", str(plan.request.nproc), "processes on each node"))
    rows.append(("profile", plan.wishes.profile, plan.request.profile.source))
    for name, path in render.sources(plan.templates).items():
        rows.append(("template", name, str(path)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = [f"# {n:<{widths[0]}}  {v:<{widths[1]}}  {source}" for n, v, source in rows]
    batch, node = plan.scripts
    files = f"\n# {plan.request.folder.batch}\n{batch}\n# {plan.request.folder.node}\n{node}"
    runs = f"# {len(plan.points)} runs in {plan.request.run_dir}"
    return "\n".join([*table, runs, files])


def as_json(plan: Plan) -> dict[str, Any]:
    """Return what a submission will do, for programs."""
    batch, node = plan.scripts
    return {
        "run_dirs": [str(point.run.path) for point in plan.points],
        "options": {name: setting._asdict() for name, setting in plan.settings.items()},
        "nproc": plan.request.nproc,
        "batch": batch,
        "node": node,
    }
