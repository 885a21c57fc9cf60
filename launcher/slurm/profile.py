"""Site profiles: what is the same for all jobs of a cluster, in a TOML file."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from launcher.errors import BadInput, did_you_mean
from launcher.files import assets

Engine = Literal["pyxis", "apptainer"]


@dataclass(frozen=True)
class Container:
    """What each node's processes run in."""

    engine: Engine
    image: str
    mounts: tuple[str, ...] = ()  # HOST or HOST:CONTAINER; the run directory and code are added
    python: str = "python3"  # inside, with launcher installed


@dataclass(frozen=True)
class Profile:
    """A site; each field is a key of its TOML file, and optional there."""

    sbatch: Mapping[str, str] = field(default_factory=dict)  # options of sbatch, without dashes
    modules: tuple[str, ...] = ()  # for `module load`
    venv: str | None = None  # the folder of a virtual environment
    conda: str | None = None  # the name or folder of a conda environment
    setup: tuple[str, ...] = ()  # lines of shell for the batch script, as they stand
    node_setup: tuple[str, ...] = ()  # lines of shell for each node, as they stand
    variables: Mapping[str, str] = field(default_factory=dict)  # environment; never secrets
    scratch: str | None = None  # a folder on each node's own disk for temporary files
    interface: str | None = None  # the network between nodes, for gloo and NCCL: ib0
    gpus: Literal["gpus-per-node", "gres"] = "gpus-per-node"  # how the site counts GPUs
    container: Container | None = None
    host: str | None = None  # a login node to submit at, as ssh takes it
    folder: str | None = None  # of the code there: ignored files are links to those in it
    python: str | None = None  # that has launcher there
    source: str = "none"  # its name and file, for people


def load(name: str, folders: Sequence[Path]) -> Profile:
    """Return the profile of a name, from the first folder that has it, or of a path.

    Raises BadInput with the nearest name, for broken TOML, and for a key that there is not.
    """
    path = Path(name)
    if path.suffix != ".toml":
        places = [*folders, assets("slurm") / "profiles"]
        files = [file for place in reversed(places) for file in sorted(place.glob("*.toml"))]
        known = {file.stem: file for file in files}
        if name not in known:
            guess = did_you_mean(name, known)
            raise BadInput(
                f"there is no profile `{name}`",
                hint=f"{guess}there are: {', '.join(sorted(known))}; any other by its file's path",
            )
        path = known[name]
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"profile `{path}` cannot be read: {error}") from error
    return _profile(told, path)


def _profile(told: dict[str, Any], path: Path) -> Profile:
    where = f"profile `{path}`"
    known = {f.name for f in fields(Profile)} - {"source"}
    _refuse_unknown(told, known, where)
    values: dict[str, Any] = dict(told)
    for name in ("modules", "setup", "node_setup"):
        values[name] = tuple(_strings(told.get(name, []), f"`{name}` of {where}"))
    for name in ("sbatch", "variables"):
        values[name] = dict(_texts(told.get(name, {}), f"[{name}] of {where}"))
    if empty := [key for key, value in told.get("sbatch", {}).items() if not str(value).strip()]:
        raise BadInput(f"`{empty[0]}` in [sbatch] of {where} has an empty value")
    if bad := [name for name in values["variables"] if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
        raise BadInput(f"`{bad[0]}` in [variables] of {where} is no name of a variable")
    if "container" in told:
        values["container"] = _container(told["container"], where)
    if values.get("gpus", "gres") not in ("gpus-per-node", "gres"):
        raise BadInput(f"`gpus` of {where} must be gpus-per-node or gres")
    for name in ("venv", "conda", "scratch", "interface", "host", "folder", "python"):
        if not isinstance(told.get(name, ""), str):
            raise BadInput(f"`{name}` of {where} must be a string")
    if not f"{told.get('folder', '~')}/".startswith(("/", "~/")):
        raise BadInput(f"`folder` of {where} must begin with / or ~/: it is one at `host`")
    return Profile(**values, source=f"profile {path}")


def _container(told: Any, where: str) -> Container:
    if not isinstance(told, dict) or not {"engine", "image"} <= told.keys():
        raise BadInput(f"[container] of {where} needs `engine` and `image`")
    _refuse_unknown(told, {f.name for f in fields(Container)}, f"[container] of {where}")
    if told["engine"] not in get_args(Engine):
        raise BadInput(
            f"`engine` in [container] of {where} is `{told['engine']}`",
            hint=f"there are: {', '.join(get_args(Engine))}",
        )
    mounts = tuple(_strings(told.get("mounts", []), f"`mounts` of {where}"))
    return Container(**told | {"mounts": mounts})


def _refuse_unknown(told: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in told.keys() - known:
        guess = did_you_mean(key, known)
        raise BadInput(
            f"{where} has an unknown key `{key}`",
            hint=f"{guess}there are: {', '.join(sorted(known))}",
        )


def _strings(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadInput(f"{what} must be a list of strings")
    return value


def _texts(table: Any, what: str) -> Iterator[tuple[str, str]]:
    """Give a table's values as text; `true` becomes '', an option without a value."""
    if not isinstance(table, dict):
        raise BadInput(f"{what} must be a table")
    for key, value in table.items():
        if isinstance(value, bool):
            if value:
                yield key, ""
        elif isinstance(value, str | int | float):
            yield key, str(value)
        else:
            raise BadInput(f"`{key}` in {what} must be a string or a number")
