"""Render the scripts of a job from its templates: pure, and nothing in a value can become code.

A directive is not read by a shell but by sbatch, which understands quotes, not backslashes; and
what stands on the next line is script. So values with backslashes or control characters are
refused, and all others are quoted for both readers alike.
"""

import shlex
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from launcher.errors import BadInput
from launcher.files import assets
from launcher.run.job import SlurmFolder
from launcher.slurm.options import for_site
from launcher.slurm.profile import Container, Profile
from launcher.slurm.template import lacks

BATCH = "job.sbatch.j2"
NODE = "node.sh.j2"


@dataclass(frozen=True)
class Request:
    """All that the scripts are made from."""

    run_dir: Path  # of a run; for an array the folder of its runs
    workdir: Path  # where the code is
    python: str  # the launcher's interpreter, on a path that the nodes see
    nproc: int  # processes on each node
    sbatch: Mapping[str, str]  # options of sbatch, without dashes
    profile: Profile
    gpus: int = 0  # of each node
    requeue: bool = True
    array: str | None = None  # 0-5%2

    @property
    def folder(self) -> SlurmFolder:
        """Where the scripts belong."""
        return SlurmFolder(self.run_dir / "slurm")


class Scripts(NamedTuple):
    """What is submitted: the batch script, and what srun starts on each node."""

    batch: str
    node: str


def render(request: Request, templates: Sequence[Path] = ()) -> Scripts:
    """Return the scripts, from the first of the folders that has the template, else the bundled.

    Raises BadInput for a value that cannot be quoted and for a broken template.
    """
    environment = jinja2.Environment(  # noqa: S701  # shell, not HTML; all values come quoted
        loader=jinja2.FileSystemLoader([*templates, assets("slurm")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    values, files = variables(request), sources(templates)
    return Scripts(*(_rendered(environment, name, files[name], values) for name in (BATCH, NODE)))


def _rendered(
    environment: jinja2.Environment, name: str, file: Path, values: Mapping[str, Any]
) -> str:
    """Return one template with its values; whatever is wrong in it is its author's mistake."""
    try:
        return environment.get_template(name).render(values)
    except jinja2.UndefinedError as error:
        raise BadInput(
            f"a template uses a variable that there is not: {error.message}",
            hint=f"there are: {', '.join(sorted(values))}",
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(f"{error.filename}, line {error.lineno}: {error.message}") from error
    except jinja2.TemplateNotFound as error:
        raise BadInput(f"{file} includes a template that there is not: {error}") from error
    except Exception as error:
        raise BadInput(f"{_place(error) or file}: {type(error).__name__}: {error}") from error


def _place(error: Exception) -> str | None:
    """Return where in a template an error comes from: jinja's tracebacks lead through its lines."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".j2")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def sources(templates: Sequence[Path] = ()) -> dict[str, Path]:
    """Return which file each template comes from."""
    folders = [*templates, assets("slurm")]
    return {
        name: next(folder / name for folder in folders if (folder / name).is_file())
        for name in (BATCH, NODE)
    }


def warnings(scripts: Scripts, *, requeue: bool) -> list[str]:
    """Return what a template has left out that a batch script cannot do without."""
    return [f"the batch script lacks {what}" for what in lacks(scripts.batch, requeue=requeue)]


def variables(request: Request) -> dict[str, Any]:
    """Return what templates may use; texts are quoted for the shell and for sbatch.

    slurm/README.md documents each of them.
    """
    profile, array = request.profile, request.array is not None
    run_dir = quoted(request.run_dir)
    return {
        "directives": directives(request),
        "run_dir": f'{run_dir}/"$SLURM_ARRAY_TASK_ID"' if array else run_dir,
        "job_id": '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if array else '"$SLURM_JOB_ID"',
        "workdir": quoted(request.workdir),
        "node_script": quoted(request.folder.node),
        "python": quoted(_host_python(request)),
        "node_python": " ".join(_node_python(request)),
        "nproc": request.nproc,
        "setup": _setup(profile),
        "node_setup": list(profile.node_setup),
        "variables": {name: quoted(value) for name, value in profile.variables.items()},
        "srun_options": _srun_options(request),
        "interface": profile.interface and quoted(profile.interface),
        "scratch": profile.scratch and quoted(profile.scratch),
        "requeue": request.requeue,
    }


def directives(request: Request) -> list[str]:
    """Return the options of sbatch, one a line of the script."""
    pattern = "%a/slurm/job-%A_%a.out" if request.array else "slurm/job-%j.out"
    # In a file name sbatch replaces %j and the like; a folder's own percent signs stay.
    output = str(request.run_dir).replace("%", "%%")
    options = {
        **for_site(request.sbatch, request.profile),
        "output": f"{output}/{pattern}",
        "open-mode": "append",
        "ntasks-per-node": "1",
        ("requeue" if request.requeue else "no-requeue"): "",
    }
    if request.array:
        options["array"] = request.array
    return [
        f"--{name}={quoted(value)}" if value else f"--{name}" for name, value in options.items()
    ]


def quoted(value: object) -> str:
    """Quote a value for the shell and for sbatch; raises BadInput where neither way is safe."""
    text = str(value)
    if "\\" in text:
        raise BadInput(f"a backslash cannot be given to SLURM: {text!r}", hint="rename it")
    if not text.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise BadInput(f"a line break or control character cannot be given to SLURM: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"a name that is not valid UTF-8 cannot be given to SLURM: {text!r}"
        ) from error
    return shlex.quote(text)


def _host_python(request: Request) -> str:
    """The interpreter of the batch script, and outside of containers of the nodes."""
    profile = request.profile
    if profile.venv:
        return f"{profile.venv}/bin/python"
    return "python" if profile.conda else request.python


def _node_python(request: Request) -> list[str]:
    """The words that start Python on a node, in the container where there is one."""
    box = request.profile.container
    if box is None:
        return [quoted(_host_python(request))]
    if box.engine == "pyxis":  # srun makes the container
        return [quoted(box.python)]
    words = ["apptainer", "exec", *(["--nv"] if request.gpus else [])]
    words += [f"--bind={mount}" for mount in _mounts(request, box)]
    return [quoted(word) for word in [*words, f"--pwd={request.workdir}", box.image, box.python]]


def _srun_options(request: Request) -> list[str]:
    box = request.profile.container
    if box is None or box.engine != "pyxis":
        return []
    options = {
        "container-image": box.image,
        "container-mounts": ",".join(_mounts(request, box)),
        "container-workdir": request.workdir,
    }
    return [f"--{name}={quoted(value)}" for name, value in options.items()]


def _mounts(request: Request, box: Container) -> list[str]:
    """What the container sees: the code, the run directory, and what the profile names."""
    own = [str(request.run_dir), *filter(None, [request.profile.scratch])]
    if not request.workdir.is_relative_to(request.run_dir):
        own.append(str(request.workdir))
    for path in own:
        if "," in path or ":" in path:
            raise BadInput(f"a comma or colon cannot be in what a container mounts: {path}")
    return [mount if ":" in mount else f"{mount}:{mount}" for mount in (*own, *box.mounts)]


def _setup(profile: Profile) -> list[str]:
    """Lines of shell that make the site's environment; srun hands it on to the nodes."""
    lines = [f"module load {quoted(module)}" for module in profile.modules]
    if profile.venv:
        lines.append(f"source {quoted(profile.venv + '/bin/activate')}")
    if profile.conda:
        lines.append('source "$(conda info --base)/etc/profile.d/conda.sh"')
        lines.append(f"conda activate {quoted(profile.conda)}")
    return [*lines, *profile.setup]
