"""The batch script of a job as a child of this process, which passes requests to stop on to it."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from launcher.errors import Stopped
from launcher.processes import die_with_parent, kill_tree


class Scripts:
    """The batch script of a job, again where it wants to be requeued."""

    def __init__(self, script: Path, wants_more: Callable[[], bool] = lambda: False) -> None:
        """`wants_more` tells whether the script has asked to be requeued, and forgets it."""
        self._script, self._wants_more = script, wants_more
        self._process: subprocess.Popen[bytes] | None = None
        self.requests = 0  # to stop

    def run(self, env: Mapping[str, str]) -> int:
        """Run the script until it does not come back; none is started after a request to stop."""
        restarts, code = 0, Stopped.exit_code
        while not self.requests:
            code = self._once(dict(env) | {"SLURM_RESTART_COUNT": str(restarts)})
            if not self._wants_more():
                break
            restarts += 1
        return code

    def _once(self, env: Mapping[str, str]) -> int:
        # A session of its own: a terminal's Ctrl-C is heard here, and passed on.
        self._process = subprocess.Popen(
            ["bash", str(self._script)],
            env=env,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509  # there is no other thread that matters
        )
        return self._process.wait()

    def hear(self, _number: int, _frame: FrameType | None) -> None:
        """Ask the script to stop, as SLURM does; the second time it is ended at once."""
        self.requests += 1
        if self._process and self._process.poll() is None:
            if self.requests > 1:
                kill_tree(self._process.pid)
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
