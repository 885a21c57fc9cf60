"""A copy of the code as it is now, for a job that may wait in a queue while its author goes on.

Copied is what counts as code: in a git tree the tracked files as they lie there and the untracked
ones that git doesn't ignore, submodules too; elsewhere the folder of the recipe (of its package, if
it has one) without hidden folders, caches, virtual environments and run directories. Whatever else
lies beside it (data, `runs`, `.venv`) is a link to the original: relative paths lead as before.

Untracked files that look like credentials (`.env`, `*.pem`) are links, too: the job finds them, and
the run directory, which people share, holds no copy. What is tracked is copied.
"""

import json
import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from launcher.errors import BadInput, RunDirError
from launcher.files import make_new_folder, read_json, remove_empty, sync, write_bytes
from launcher.recipe.source import package
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.credentials import looks_secret

MAX_FILES = 20_000
MAX_BYTES = 200_000_000

# A link to the first would make git take the copy for the original; into the second Python writes.
_NEVER_LINKED = (".git", "__pycache__")
_PLACEHOLDERS = (".gitkeep", ".gitignore")  # alone in a folder they keep it for what is ignored
_HINT = "mend that, or give --no-snapshot to run the code as it is when the job starts"


class Snapshot(NamedTuple):
    """Where a run's copy of the code is, and what it is a copy of."""

    root: Path
    workdir: Path  # stands for the current folder: it is that folder itself outside of the tree
    recipe_path: Path  # of the copy
    facts: dict[str, Any]  # for config.json: commit, dirty, files, bytes, diff


class _Tree(NamedTuple):
    """What counts as code below a folder; names are relative to it."""

    root: Path
    tracked: set[str]
    untracked: set[str]
    diff: bytes  # of the tracked files, against `commit`
    commit: str | None = None
    in_git: bool = True


def take(run: RunDir, recipe_path: Path, module: str | None = None) -> Snapshot:
    """Copy the code that a recipe, a script or a `module` belongs to into the run directory.

    A file that git ignores counts as one outside of git. Raises BadInput where the code is too
    much, or git fails, and RunDirError where it cannot be copied; then nothing is left of it.
    """
    recipe = recipe_path.resolve()
    with _made(run) as beside:
        own = RunDir(run.path.resolve())
        tree = _git_tree(recipe, own, module) or _plain_tree(recipe, own, module)
        sizes = _sizes(tree)
        links = _left_out(tree.root, sizes)
        _check_size(sizes, links)
        for name in sizes:
            _copy(tree.root, name, beside)
        for name in links:
            (beside / name).symlink_to(tree.root / name)
        if tree.in_git:
            write_bytes(run.snapshot_diff, _diff(tree))
    here = Path.cwd()
    inside = here.is_relative_to(tree.root)
    return Snapshot(
        run.snapshot,
        run.snapshot / here.relative_to(tree.root) if inside else here,
        run.snapshot / recipe.relative_to(tree.root),
        {
            "commit": tree.commit,
            "dirty": bool(tree.diff or tree.untracked) if tree.in_git else None,
            "files": len(sizes),
            "bytes": sum(sizes.values()),
            "diff": run.snapshot_diff.name if tree.in_git else None,
        },
    )


def _git_tree(recipe: Path, run: RunDir, module: str | None) -> _Tree | None:
    """Return the git tree that a recipe is part of, the outermost; None where there is none."""
    try:
        root = _git(recipe.parent, "rev-parse", "--show-toplevel").removesuffix("\n")
        while outer := _git(Path(root), "rev-parse", "--show-superproject-working-tree"):
            root = outer.removesuffix("\n")
        tree = _repository(Path(root), run)
    except FileNotFoundError:  # there is no git
        return None
    except subprocess.CalledProcessError as error:
        said = os.fsdecode(error.stderr).strip()
        if "not a git repository" in said:
            return None
        raise BadInput(f"git cannot read the tree of `{recipe}`: {said}", hint=_HINT) from error
    inside = not module or Path.cwd().is_relative_to(root)
    known = os.path.relpath(recipe, root) in tree.tracked | tree.untracked
    return tree if inside and known else None


def _repository(root: Path, run: RunDir, prefix: str = "") -> _Tree:
    """Return what one repository holds, and those within it; names get the prefix."""
    commit: str | None
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD").strip()
        base = commit
    except subprocess.CalledProcessError:  # nothing is committed yet: all is new to an empty tree
        commit, base = None, _git(root, "hash-object", "-t", "tree", os.devnull).strip()
    tracked = _listed(root, "--cached")
    untracked = _listed(root, "--others", "--exclude-standard")
    prefixes = [f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", "--no-relative"]
    plain = ["--binary", "--no-color", "--no-ext-diff", "--no-textconv", *prefixes]
    diff = _git_bytes(root, "diff", *plain, "--ignore-submodules=dirty", base, "--")
    inner = sorted(name for name in tracked | untracked if (root / name / ".git").exists())
    within = [_repository(root / name, run, f"{prefix}{name.rstrip('/')}/") for name in inner]
    return _Tree(
        root,
        {prefix + name for name in tracked.difference(inner)}.union(*(t.tracked for t in within)),
        {prefix + name for name in _outside_of_runs(root, untracked.difference(inner), run)}.union(
            *(t.untracked for t in within)
        ),
        diff + b"".join(t.diff for t in within),
        commit,
    )


def _listed(root: Path, *which: str) -> set[str]:
    output = _git_bytes(root, "ls-files", "-z", *which)
    return {os.fsdecode(name) for name in output.split(b"\0") if name}


def _outside_of_runs(root: Path, names: Iterable[str], run: RunDir) -> Iterator[str]:
    """Leave out files of run directories: a tree may forget to ignore `runs`."""
    runs: dict[PurePath, bool] = {}
    for name in names:
        parents = PurePath(name).parents
        runs |= {one: _is_run(root / one, run) for one in parents if one not in runs}
        if not any(runs[folder] for folder in parents):
            yield name


def _is_run(folder: Path, run: RunDir) -> bool:
    """Whether a folder is a run directory, the new one's own, or one of an array of runs."""
    found = RunDir(folder)
    has_text = found.recipe.exists() or found.script.exists()
    is_run = has_text and "world_size" in (read_json(found.config) or {})
    return is_run or folder == run.path or SlurmFolder.of(found).exists() or found.remote.exists()


def _plain_tree(recipe: Path, run: RunDir, module: str | None) -> _Tree:
    """Return what counts as code where git doesn't know."""
    root, name = (Path.cwd().resolve(), module) if module else package(recipe)
    top = root / name.split(".")[0]  # a package, where it is in one
    found = islice(_walk(top if top.is_dir() else root, run), 10 * MAX_FILES)  # more is too much
    return _Tree(root, set(), {os.path.relpath(path, root) for path in found}, b"", in_git=False)


def _walk(folder: Path, run: RunDir) -> Iterator[str]:
    for entry in list(os.scandir(folder)):
        if not entry.is_dir(follow_symlinks=False):
            yield entry.path
        elif not (
            entry.name.startswith(".")
            or entry.name in ("__pycache__", "node_modules")
            or Path(entry.path, "pyvenv.cfg").exists()
            or _is_run(Path(entry.path), run)
        ):
            yield from _walk(Path(entry.path), run)


def _sizes(tree: _Tree) -> dict[str, int]:
    """Return the files to copy with their sizes in bytes: those that are there, and no secrets."""
    secret = {name for name in tree.untracked if looks_secret(name)}
    sizes = {}
    for name in sorted((tree.tracked | tree.untracked) - secret):
        path = tree.root / name
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # tracked, but deleted
            continue
        is_file = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
        # Where a folder was replaced by a link, its files are elsewhere, and git counts the link.
        if is_file and os.path.realpath(path.parent) == str(path.parent):
            sizes[name] = found.st_size
    code = {parent for name in sizes if not _is_placeholder(name) for parent in _parents(name)}
    is_code = {name: not _is_placeholder(name) or _parents(name)[0] in code for name in sizes}
    return {name: size for name, size in sizes.items() if is_code[name]}


def _is_placeholder(name: str) -> bool:
    return "/" in name and PurePath(name).name in _PLACEHOLDERS


def _parents(name: str) -> list[str]:
    """Return the folders that a name lies in, nearest first; the last is "."."""
    return [str(parent) for parent in PurePath(name).parents]


def _left_out(root: Path, sizes: Iterable[str]) -> list[str]:
    """Return what lies in the folders of the copy without being copied."""
    folders = {".", *(parent for name in sizes for parent in _parents(name))}
    names = {
        os.path.normpath(f"{folder}/{entry.name}")
        for folder in folders
        for entry in os.scandir(root / folder)
        if entry.name not in _NEVER_LINKED
    }
    return sorted(names.difference(sizes, folders))


def _check_size(sizes: dict[str, int], links: list[str]) -> None:
    count, size = len(sizes) + len(links), sum(sizes.values())
    if count <= MAX_FILES and size <= MAX_BYTES:
        return
    of_bytes = size > MAX_BYTES
    shares: Counter[str] = Counter()
    for name in [*sizes, *links]:
        parents = _parents(name)
        entry = f"{parents[-min(3, len(parents))]}/" if len(parents) > 1 else name
        shares[entry] += sizes.get(name, 0) if of_bytes else 1
    words = [
        f"{entry} {part / 1e6:,.1f} MB" if of_bytes else f"{entry} {part:,} files"
        for entry, part in shares.most_common(3)
    ]
    allowed = f"{MAX_BYTES / 1e6:,.0f} MB" if of_bytes else f"{MAX_FILES:,} files"
    raise BadInput(
        f"the code to copy for the job is more than {allowed}: {', '.join(words)}",
        hint="let a .gitignore (in a git repository) name what is no code, and the job will find "
        "it by a link, or give --no-snapshot to run the code as it is when the job starts",
    )


@contextmanager
def _made(run: RunDir) -> Iterator[Path]:
    """Give a folder to fill; it becomes the snapshot when that is done, and nothing before."""
    if run.snapshot.exists() or run.snapshot_diff.exists():
        raise RunDirError(f"`{run.path}` already has a snapshot")
    beside = run.snapshot.with_name(f".{run.snapshot.name}.{os.getpid()}.tmp")
    made: list[Path] = []
    try:
        made = make_new_folder(beside)
        yield beside
        beside.rename(run.snapshot)
        sync(run.path)
    except BaseException as error:
        if made:
            shutil.rmtree(beside, ignore_errors=True)
            run.snapshot_diff.unlink(missing_ok=True)
        remove_empty(made)
        if isinstance(error, OSError):
            what = f"the code cannot be copied to `{run.snapshot}`: {error}"
            raise RunDirError(what, hint=_HINT) from error
        raise


def _copy(root: Path, name: str, target: Path) -> None:
    """Copy a file with its mode and time; a link out of the tree still leads where it led."""
    source, copy = root / name, target / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        leads_to = os.path.normpath(source.parent / source.readlink())
        copy.symlink_to(source.readlink() if Path(leads_to).is_relative_to(root) else leads_to)
    else:
        shutil.copy2(source, copy)


def _diff(tree: _Tree) -> bytes:
    """Return the tracked files' changes, below the names of the untracked ones.

    `git apply` passes over those lines; quoted as in JSON, each name is one line.
    """
    names = [json.dumps(name, ensure_ascii=False) for name in sorted(tree.untracked)]
    return os.fsencode("".join(f"# untracked: {name}\n" for name in names)) + tree.diff


def _git(folder: Path, *words: str) -> str:
    return os.fsdecode(_git_bytes(folder, *words))


def _git_bytes(folder: Path, *words: str) -> bytes:
    # No locks: the user may be at work in this tree. English: an error is told by its words.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # in a hook: of another tree
    env = {name: value for name, value in os.environ.items() if name not in others}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    argv = ["git", "-C", str(folder), *words]
    return subprocess.run(argv, env=env, capture_output=True, check=True).stdout
