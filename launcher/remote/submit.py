"""Submit a run at another host: its code is copied from here, and `launcher submit` runs there.

Where anything is wrong nothing is queued, and nothing is left at either side.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.errors import BadInput, LauncherError, RunDirError
from launcher.files import remove_empty
from launcher.recipe.file import bundled
from launcher.remote.connection import Connection
from launcher.remote.place import Place
from launcher.run.config import here_and_now
from launcher.run.directory import RunDir
from launcher.slurm import snapshot
from launcher.slurm.submit import Plan, claimed


@dataclass(frozen=True)
class _Code:
    """The code of a run: a copy of it here, for a while, and what is in its folder there."""

    run: RunDir  # that the copy is in
    recipe: str  # below the copy
    inner: str | None  # the current folder below the copy; None: it is not in the code
    links: dict[str, str]  # what is not copied, and where it is there, from the code's folder
    needed: list[str]  # those of them that have to be there
    facts: dict[str, Any]

    def files(self) -> list[str]:
        """Return what is to be copied, below the run's folder."""
        linked = {f"{self.run.snapshot.name}/{name}" for name in self.links}
        found = [str(path.relative_to(self.run.path)) for path in _entries(self.run.snapshot)]
        own = [self.run.snapshot_diff.name] if self.run.snapshot_diff.exists() else []
        return [*own, *(name for name in found if name not in linked)]


def submit(plan: Plan, host: str, words: Sequence[str]) -> Place:
    """Submit a run at a host by the launcher there; returns where it is.

    `words` are those that `launcher submit` was given here. Raises BadInput for whatever is not as
    it has to be there, and LauncherError where ssh or rsync fails; where nobody knows whether the
    job was queued, RUN_DIR/remote.json stays.
    """
    run_dir, profile = plan.request.run_dir, plan.request.profile
    if not profile.folder:
        hint = '`folder = "~/project"` there says where the ignored files of the code are'
        raise BadInput(f"--host needs a `folder` in the profile ({profile.source})", hint=hint)
    if plan.program.is_installed:
        hint = "submit it on the login node, or in the folder that it comes from"
        raise BadInput(f"{plan.program.file.path} is installed, and only code is copied", hint=hint)
    made = claimed(run_dir)
    try:
        with tempfile.TemporaryDirectory(prefix="launcher-") as beside:
            code = _taken(plan, RunDir(Path(beside, "run")))
            with Connection(host) as connection, _brought(connection, code, plan) as place:
                place.write(run_dir)  # from here on it may be in a queue there
                told = _submitted(connection, place, code, _words(plan, words, code, place))
                if told.get("error") or not told.get("jobs"):
                    RunDir(run_dir).remote.unlink(missing_ok=True)
                    raise _refused(told, host)
                queued = replace(place, jobs=tuple(told["jobs"]))
                queued.write(run_dir)
                return queued
    finally:
        remove_empty(made)  # where it was not submitted


def _taken(plan: Plan, run: RunDir) -> _Code:
    """Copy the code of a run; what is not copied is told."""
    script = plan.program.script
    took = snapshot.take(run, plan.program.file.path, script.module if script else None)
    recipe = took.recipe_path.relative_to(took.root)
    root = plan.program.file.path.resolve().parents[len(recipe.parts) - 1]
    inside = took.workdir.is_relative_to(took.root)
    links = {
        str(path.relative_to(took.root)): _leads_to(path, root / path.relative_to(took.root), root)
        for path in _entries(took.root)
        if path.is_symlink() and path.readlink().is_absolute()
    }
    return _Code(
        run,
        str(recipe),
        str(took.workdir.relative_to(took.root)) if inside else None,
        links,
        [name for name in links if not _is_own(root / name, plan.request.run_dir)],
        took.facts,
    )


def _entries(copy: Path) -> Iterator[Path]:
    """Give the files and links of a copy."""
    for above, folders, files in os.walk(copy):
        links = (name for name in folders if Path(above, name).is_symlink())
        yield from (Path(above, name) for name in (*files, *links))


def _leads_to(link: Path, original: Path, root: Path) -> str:
    """Return where a link that leads out of the copy is to lead there, from the code's folder."""
    target = link.readlink()
    if target != original and original.readlink().is_absolute():
        return str(target)  # a link of the user's own, by a path that is the same everywhere
    return os.path.relpath(target, root)


def _is_own(path: Path, run_dir: Path) -> bool:
    """Whether something is this machine's own, and is linked only where it is there, too.

    Caches, environments, what tools keep in hidden folders; and where runs are.
    """
    marks = ("CACHEDIR.TAG", "pyvenv.cfg")
    is_tools = path.name.startswith(".") or any((path / mark).exists() for mark in marks)
    return run_dir.is_relative_to(path) or (path.is_dir() and is_tools)


@contextmanager
def _brought(connection: Connection, code: _Code, plan: Plan) -> Iterator[Place]:
    """Bring the code into the run's folder there, and give its place.

    After an error nothing is left of it there, where no run was made of it.
    """
    profile, run_dir = plan.request.profile, plan.request.run_dir
    venv = profile.venv and f"{profile.venv}/bin/python"
    folder, python = str(profile.folder), profile.python or venv or "python3"
    inner = _like(run_dir, code.inner)
    here = here_and_now(plan.program.file.path)
    mark = {"recipe": code.recipe, "inner": code.inner, "snapshot": code.facts}
    mark |= {"config": {name: here[name] for name in ("git", "command")}}
    mark |= {"token": secrets.token_hex(8)}
    there: dict[str, Any] = {"run_dir": inner, "links": code.links, "needed": code.needed}
    there |= {"version": __version__, "profile": _profile(plan), "mark": mark}
    told = connection.ask(folder, python, "prepare", **there)
    _check(told, connection.host, there)
    place = Place(connection.host, told["folder"], told["python"], f"{told['folder']}/{inner}")
    try:
        words = ["-lpt", "--from0", "--files-from=-", f"{code.run.path}/", f"{place.host}:./"]
        connection.copy(*words, folder=place.path, rsync=told["rsync"], names=code.files())
        yield place
    except BaseException:
        with suppress(LauncherError):
            there = {"run_dir": place.path, "mark": mark}
            if not connection.ask(place.folder, place.python, "discard", **there)["there"]:
                RunDir(run_dir).remote.unlink(missing_ok=True)
        raise


def _profile(plan: Plan) -> str | None:
    """Return the text of a profile that was given as a file: it may be no part of the code."""
    file = Path(plan.wishes.profile)
    return file.read_text(encoding="utf-8") if file.suffix == ".toml" else None


def _like(run_dir: Path, inner: str | None) -> str:
    """Return where a run directory is there, from the code's folder: as here from this one."""
    below = os.path.relpath(run_dir, Path.cwd())
    if below.startswith(".."):
        hint = "give a --run-dir below the current folder: its like is made there"
        raise BadInput(f"`{run_dir}` has no like at another host", hint=hint)
    return os.path.normpath(f"{inner or '.'}/{below}")


def _check(told: dict[str, Any], host: str, asked: dict[str, Any]) -> None:
    """Raise BadInput where something is not as it has to be there; then nothing was made."""
    if told.get("error"):
        raise RunDirError(f"at {host}: {told['error']}")
    python, version = told["python"], told["version"]
    if version != __version__:
        has = f"has launcher {version}" if version else "has no launcher"
        hint = f"install {__version__} there (`{python} -m pip install`), or name another `python`"
        raise BadInput(f"{python} at {host} {has}, here it is {__version__}", hint=hint)
    if not told["rsync"]:
        raise BadInput(
            f"there is no `rsync` at {host}", hint="have it installed, or its module loaded"
        )
    if told["taken"]:
        hint = "give another --run-dir, or none to have one made"
        raise RunDirError(f"`{told['folder']}/{asked['run_dir']}` exists at {host}", hint=hint)
    if missing := sorted(asked["links"][name] for name in told["missing"]):
        more = f" and {len(missing) - 9} more" if missing[9:] else ""
        raise BadInput(
            f"missing in {told['folder']} at {host}: {', '.join(missing[:9])}{more}",
            hint="what git ignores is not copied: bring it there, or make it there, even empty",
        )


def _words(plan: Plan, words: Sequence[str], code: _Code, place: Place) -> list[str]:
    """Return the command there: as it was given here, in the copy of the code."""
    own = list(words[: words.index("--")]) if "--" in words else list(words)
    script = plan.program.script
    named = None if script and script.module else plan.wishes.recipe
    is_bundled = named in {path.stem for path in bundled()}
    if named and not is_bundled and (code.inner is None or Path(named).is_absolute()):
        own[own.index(named)] = f"{place.path}/snapshot/{code.recipe}"
    ours = ["--run-dir", place.path, "--staged", "--json"]  # the last of an option counts
    if _profile(plan):
        ours += ["--profile", f"{place.path}/slurm/profile.toml"]
    return ["submit", *own, *ours, *words[len(own) :]]


def _submitted(
    connection: Connection, place: Place, code: _Code, words: list[str]
) -> dict[str, Any]:
    """Return what `launcher submit` said there."""
    inner = f"{place.path}/snapshot/{code.inner}"
    workdir = place.folder if code.inner is None else inner
    try:
        return connection.ask(place.folder, place.python, "submit", workdir=workdir, words=words)
    except LauncherError as error:
        hint = "`launcher status` of it tells; where it knows nothing, submit again"
        what = f"nobody knows whether the job was queued at {place.host} ({place.path})"
        raise LauncherError(f"{what}: {error.message}", hint=hint) from error


def _refused(told: dict[str, Any], host: str) -> LauncherError:
    """Return what `launcher submit` refused there."""
    kind = BadInput if told.get("exit_code") == BadInput.exit_code else LauncherError
    return kind(f"at {host}: {told.get('error')}", hint=told.get("hint"))
