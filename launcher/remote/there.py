"""What runs on a login node, by the Python there: it is sent as text, needing nothing of launcher.

So that an older launcher there, or none, can be told of. The standard library only; `asked` is what
it was told on stdin, and the last line that it prints is the answer.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

_MARK = ".staged.json"  # see `launcher.slurm.submit`: the code of this run was brought


def prepare(asked: dict[str, Any]) -> dict[str, Any]:
    """Tell what there is; where nothing is wrong, make a run's folder for the code to come."""
    told = {
        "version": _version(),
        "python": sys.executable,
        "folder": str(Path.cwd()),
        "rsync": shutil.which("rsync"),
        "missing": [name for name in asked["needed"] if not Path(asked["links"][name]).exists()],
        "taken": os.path.lexists(asked["run_dir"]),
    }
    is_right = told["version"] == asked["version"] and told["rsync"]
    if is_right and not told["missing"] and not told["taken"]:
        _make(Path.cwd() / asked["run_dir"], asked)
    return told


def _version() -> "str | None":
    try:
        from launcher import __version__  # noqa: PLC0415  # of the one that is there
    except ImportError:
        return None
    return __version__


def _make(run_dir: Path, asked: dict[str, Any]) -> None:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    run_dir.mkdir()  # of two at once one fails
    try:
        _fill(run_dir, asked)
    except OSError:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _fill(run_dir: Path, asked: dict[str, Any]) -> None:
    (run_dir / _MARK).touch(0o600)  # a command may hold what config.json keeps to its owner
    (run_dir / _MARK).write_text(json.dumps(asked["mark"]), encoding="utf-8")
    if asked["profile"]:
        (run_dir / "slurm").mkdir()
        (run_dir / "slurm" / "profile.toml").write_text(asked["profile"], encoding="utf-8")
    snapshot = run_dir / "snapshot"
    snapshot.mkdir()
    for name, leads_to in asked["links"].items():
        if name in asked["needed"] or Path(leads_to).exists():
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(os.path.normpath(Path.cwd() / leads_to))


def submit(asked: dict[str, Any]) -> None:
    """Run `launcher submit --json` in the copy of the code; no list of processes has its words."""
    os.chdir(asked["workdir"])
    sys.argv = ["launcher", *asked["words"]]
    runpy.run_module("launcher", run_name="__main__", alter_sys=True)


def discard(asked: dict[str, Any]) -> dict[str, Any]:
    """Remove what `prepare` has made and nothing has become of: its mark is still there."""
    run_dir = Path(asked["run_dir"])
    mark = run_dir / _MARK
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asked["mark"]:
        for name in ("snapshot", "slurm"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "snapshot.diff").unlink(missing_ok=True)
        mark.unlink()
        run_dir.rmdir()
    return {"there": run_dir.exists()}


def _answer(asked: dict[str, Any]) -> None:
    do = {"prepare": prepare, "submit": submit, "discard": discard}[asked["do"]]
    try:
        told = do(asked)
    except OSError as error:
        told = {"error": str(error)}
    if told is not None:
        print(json.dumps(told))


if "asked" in globals():
    _answer(globals()["asked"])
