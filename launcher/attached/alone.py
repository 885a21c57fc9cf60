"""A script that nobody has launched: python or torchrun starts it, and it makes its own run."""

import inspect
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from launcher.attached.place import Place
from launcher.errors import BadInput, RunDirError
from launcher.files import make_folders, warn_of_disk, write_json
from launcher.processes import shown
from launcher.run import config, lock, wandb
from launcher.run.checkpoint_files import all_of
from launcher.run.directory import RunDir
from launcher.run.record import Record
from launcher.run.told import is_script
from launcher.run.wandb import ENDINGS
from launcher.script.config import describe
from launcher.script.script import Script
from launcher.tracking.mirror import Mirror

_PATIENCE_S, _LOOK_S = 60.0, 0.1  # for rank 0, which makes the run


def run_of(folder: Path | None, place: Place) -> RunDir:
    """Return the run directory of a script that nobody has launched; rank 0 makes it.

    Raises BadInput where several processes were not told which, and RunDirError where it is
    another run's, or cannot be made or seen.
    """
    if folder is None and place.world_size > 1:
        raise BadInput(
            f"`launcher.attach` has no run directory for {place.world_size} processes",
            hint="`launcher run` makes one; under torchrun and others, say which: attach(dir=…)",
        )
    name = Path(str(_script() or "script")).stem
    run = RunDir((folder or config.new_run_path(name)).absolute())
    if place.rank == 0:
        _make(run, name, place)
    else:
        _wait_for(run)
    return run


def _script() -> Path | None:
    """Return the file that this process runs, None in an interpreter or a notebook."""
    with suppress(TypeError, KeyError):
        return Path(inspect.getfile(sys.modules["__main__"])).absolute()
    return None


def _make(run: RunDir, name: str, place: Place) -> None:
    told = _told(run)
    if told is None:
        _refuse_taken(run)
        path = _script()
        nodes = max(1, place.world_size // place.here)
        script = Script(
            file=str(path) if path else None,
            args=sys.argv[1:],
            nproc=place.here if place.world_size > 1 else None,
        )
        tracking = wandb.tracking(name)
        where = path or Path.cwd() / name
        source = path.read_text(encoding="utf-8", errors="surrogateescape") if path else ""
        world = place.world_size
        told = describe(script, name, where, world_size=world, nodes=nodes, tracking=tracking)
        try:
            make_folders(run.path)
            run.fill(told, source)
        except OSError as error:
            raise RunDirError(f"`{run.path}` cannot be written: {error.strerror}") from error


def _told(run: RunDir) -> dict[str, Any] | None:
    """Return what is known of a run that goes on, None where there is none."""
    if not run.config.exists():
        return None
    try:
        told = run.read_config()
        if is_script(told):
            return told
    except RunDirError:
        pass
    raise RunDirError(
        f"`{run.config}` is not that of a script's run",
        hint="give attach(dir=…) another folder",
    )


def _refuse_taken(run: RunDir) -> None:
    """Raise RunDirError where a folder has something under a name that a run's own files have."""
    own = [run.config, run.script, run.metrics, run.result, run.lock, run.wandb_state]
    taken = [path for path in own if path.exists() or path.is_symlink()]
    taken += [one.path for one in all_of(run.checkpoints)] + run.process_files()
    if taken:
        raise RunDirError(
            f"`{taken[0]}` is there already, and is no run's",
            hint="give attach(dir=…) a folder without it",
        )


def _wait_for(run: RunDir) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not run.config.exists():
        if time.monotonic() > deadline:
            raise RunDirError(
                f"rank 0 has made no run in `{run.path}`, as far as is seen from here",
                hint="all machines need to see the same run directory",
            )
        time.sleep(_LOOK_S)


class Keeper:
    """What the launcher does for a run, done by its rank 0 where there is no launcher."""

    def __init__(self, run: RunDir, place: Place) -> None:
        """Hold the run's lock; raises RunDirError where somebody else does."""
        self._run, self._place = run, place
        self._began = time.time()
        self._stack = ExitStack()
        self._stack.enter_context(lock.held(run))
        self._mirror: Mirror | None = None
        run.result.unlink(missing_ok=True)  # how the last session ended
        warn_of_disk(run.path)

    def mirror(self) -> None:
        """Have the rows mirrored to W&B from the first on."""
        self._mirror = Mirror.of(self._run)

    def end(self, record: Record, step: int) -> None:
        """Leave result.json, and tell W&B how the run ended."""
        state = "completed" if record.state == "running" else record.state
        told: dict[str, Any] = {"state": state, "step": step}
        told |= {"world_size": self._place.world_size}
        told |= {"exit_code": record.exit_code, "seconds": time.time() - self._began}
        write_json(self._run.result, told | ({"error": record.error} if record.error else {}))
        if self._mirror:
            self._mirror.close(ENDINGS[state])
        self._stack.close()
        print(f"{state} after {step} steps, {shown(self._run.path)}", file=sys.stderr)
