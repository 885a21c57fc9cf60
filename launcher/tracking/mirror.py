"""The launcher's hand on W&B: one process beside the training that mirrors the run directory.

Training processes know nothing of it. Whatever W&B does, waiting for it ends in time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from launcher.errors import BadInput, Interrupted, LauncherError, Stopped
from launcher.files import read_json
from launcher.processes import PARENT, kill_tree, shown
from launcher.run.directory import RunDir
from launcher.run.wandb import Ending, Mode, is_scripts_own
from launcher.run.weights import files_of

PATIENCE_S = 12.0  # for W&B at the end of a run; with all that is around it, 15
_HASTE_S = 3.0  # when the user wants out at once
_PER_BYTE_S = 1 / 2e6  # more, for weights that are to be uploaded
_SAY_AFTER_S = 2.0
_LOOK_S = 0.25


class Mirror:
    """A process that sends a run's rows to W&B, or to a file of W&B's, while they are made."""

    def __init__(self, run: RunDir, mode: Mode) -> None:
        """Start it; it does next to nothing before the run has made its first report."""
        self._run, self._mode = run, mode
        run.logs.mkdir(parents=True, exist_ok=True)
        with run.wandb_log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launcher.node.start",
                    "mirror",
                    str(run.path),
                    mode,
                ],
                env=environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=2,  # what it has to say to the user
                stderr=log,
                start_new_session=True,  # no Ctrl-C of the terminal's
            )

    @classmethod
    def of(cls, run: RunDir) -> "Mirror | None":
        """Start it for a run as configured; None where tracking is disabled."""
        mode = run.read_config()["tracking"]["mode"]
        return None if mode == "disabled" else cls(run, mode)

    def close(self, ending: Ending | None, patience_s: float = PATIENCE_S) -> None:
        """Tell how the run ended, None for one that was never trained; wait, and end the process.

        Says where the metrics are when they are not with W&B.
        """
        parameters = (read_json(self._run.config) or {}).get("hyperparameters", {})
        if ending == "finished" and parameters.get("log_model"):
            patience_s += sum(f.stat().st_size for f in files_of(self._run.weights)) * _PER_BYTE_S
        word = f"{ending}\n" if ending else ""
        try:
            self._process.communicate(word.encode(), timeout=_SAY_AFTER_S)
        except subprocess.TimeoutExpired:
            print(f"waiting for W&B, at most {patience_s:.0f} s", file=sys.stderr)
            self._wait(patience_s - _SAY_AFTER_S)
        except KeyboardInterrupt:
            self._wait(0)
        if ending is None or is_scripts_own(read_json(self._run.wandb_state)):
            return
        again = f"`launcher sync {shown(self._run.path)}` uploads it"
        if self._process.returncode != 0:
            log = shown(self._run.wandb_log)
            print(f"WARNING: W&B did not get all of this run; {again} ({log})", file=sys.stderr)
        elif self._mode == "offline":
            print(f"W&B: recorded offline; {again}", file=sys.stderr)

    def _wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            kill_tree(self._process.pid)  # with wandb-core, which may hang
            self._process.wait()


class LateMirror:
    """A mirror that starts with the first row of a script, which may never log any.

    Not where the script has a W&B run of its own: see `launcher.attached.reports`.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._disabled = run.read_config()["tracking"]["mode"] == "disabled"
        self._looked = 0.0
        self._mirror: Mirror | None = None

    def look(self) -> None:
        """Start it where there is a row; called often."""
        if self._mirror or self._disabled or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        if has_rows(self._run) and not is_scripts_own(read_json(self._run.wandb_state)):
            self._mirror = Mirror.of(self._run)

    def close(self, ending: Ending | None, patience_s: float = PATIENCE_S) -> None:
        """Close it as a `Mirror` is, where it was started, or would have been."""
        self._looked = 0.0
        self.look()
        if self._mirror:
            self._mirror.close(ending, patience_s)


def close(mirror: Mirror | LateMirror, error: LauncherError | None) -> None:
    """Tell W&B how a run ended: nothing of one that was never trained."""
    ending: Ending | None = "failed" if error else "finished"
    if isinstance(error, BadInput | Stopped):
        ending = "preempted" if isinstance(error, Stopped) else None
    mirror.close(ending, _HASTE_S if isinstance(error, Interrupted) else PATIENCE_S)


def has_rows(run: RunDir) -> bool:
    """Whether a run has reported anything."""
    with suppress(OSError):
        return run.metrics.stat().st_size > 0
    return False


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that talks to W&B.

    WANDB_DEBUG would write the API key to its logs, WANDB_SERVICE point to somebody else's process,
    and error reports would go, by name, to a server that a cluster may not reach.
    """
    dropped = ("WANDB_DEBUG", "WANDB_SERVICE", "WANDB_MODE")
    kept = {key: value for key, value in base.items() if key not in dropped}
    return {
        **kept,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_X_DISABLE_VIEWER": "true",  # a question to the server that can take minutes
        PARENT: str(os.getpid()),
    }
