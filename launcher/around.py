"""What the processes of a script are told of its run, and what another run must not hear."""

import os
from collections.abc import Mapping

RUN_DIR, START = "LAUNCHER_RUN_DIR", "LAUNCHER_START"  # environment variables
AGENT = "LAUNCHER_AGENT"  # the pid of the process that has started it
_OF_WANDB = ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SERVICE")
_OF_A_SCRIPT = (RUN_DIR, START, AGENT, *_OF_WANDB)


def without_script(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what belongs to the run of a script that is around this."""
    return {name: value for name, value in base.items() if name not in _OF_A_SCRIPT}


def leave_script() -> None:
    """Forget what this process was told as part of a script's run: it begins another."""
    if RUN_DIR in os.environ:
        for name in _OF_A_SCRIPT:
            os.environ.pop(name, None)
