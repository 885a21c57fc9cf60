"""Bring what `launcher report` needs of a run at another host: texts, and no checkpoint."""

from pathlib import Path

from launcher.errors import RunDirError
from launcher.remote import place as places
from launcher.remote.connection import Connection

_FILES = ("config.json", "recipe.py", "script.py", "metrics.jsonl", "result.json", "times.jsonl")
_MORE = ("wandb.json", "snapshot.diff")
_FOLDERS = ("logs", "slurm")


def pull(run_dir: Path) -> places.Place:
    """Bring a run's texts, or those of all runs of an array; what is here and not there stays.

    rsync renames each file over the one before when it is whole, so a reader, or a connection that
    breaks, meets no half of one. Raises RunDirError for a run that is here, LauncherError where
    not all could be brought.
    """
    place = places.of(run_dir)
    if place is None:
        hint = "runs of `launcher submit --host` are pulled; any other is where it is"
        raise RunDirError(f"`{run_dir}` is at no other host", hint=hint)
    rules = []
    for above in ("/", "/[0-9]*/"):  # of an array
        rules += [f"--include={above}{name}" for name in (*_FILES, *_MORE)]
        rules += [f"--include={above}{name}/***" for name in _FOLDERS]
    rules += ["--include=/[0-9]*/", "--exclude=*"]
    with Connection(place.host) as connection:
        ways = (f"{place.host}:./", f"{run_dir.absolute()}/")  # `a:b` would be a host
        connection.copy("-rtp", *rules, *ways, folder=place.path, may_vanish=True)
    return place
