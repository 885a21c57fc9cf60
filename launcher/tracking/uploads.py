"""Send runs to W&B after the fact, and start its sweeps: what `launcher sync` and `sweep` do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, TrainingFailed
from launcher.files import read_json
from launcher.processes import shown
from launcher.run import lock
from launcher.run.directory import RunDir
from launcher.run.wandb import has_credentials
from launcher.tracking.mirror import environment

_AGENT = re.compile(r"wandb agent (\S+)")


def is_uploaded(run: RunDir) -> bool:
    """Whether an earlier upload of a run is known to have been complete."""
    return (read_json(run.wandb_state) or {}).get("complete", False) is True


def sync(run: RunDir) -> dict[str, Any]:
    """Send what W&B lacks of a run: `complete` by the server's word, rows `sent`, `url`, `error`.

    Sending again what is there sends nothing. Raises BadInput for a run that is still going on.
    """
    if holder := lock.holder(run.lock):
        raise BadInput(
            f"`{run.path}` is in use by {holder}", hint="upload it when the run has ended"
        )
    run.logs.mkdir(parents=True, exist_ok=True)
    with run.wandb_log.open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", "launcher.node.start", "mirror", str(run.path), "sync"],
            env=environment(os.environ),
            stdout=subprocess.PIPE,
            stderr=log,
            check=False,
        )
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        log_path = shown(run.wandb_log)
        return {"complete": False, "error": f"W&B's client died, see {log_path}"}


def check_credentials() -> None:
    """Raise BadInput where nobody has logged in to W&B."""
    if not has_credentials():
        raise BadInput(
            "there are no credentials for W&B",
            hint="`wandb login` keeps them, or set WANDB_API_KEY",
        )


def start_sweep(file: Path, project: str | None) -> str:
    """Register a sweep with W&B; returns the path that its agents take."""
    words = [sys.executable, "-m", "wandb", "sweep", *(["--project", project] if project else [])]
    done = subprocess.run(
        [*words, str(file)], env=_sweep_environment(), capture_output=True, text=True, check=False
    )
    found = _AGENT.search(done.stderr + done.stdout)
    if done.returncode or not found:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BadInput(
            f"W&B does not take `{file}` as a sweep: {said[-1] if said else 'no reason'}"
        )
    return found[1]


def run_agent(sweep: str, count: int | None) -> None:
    """Run trials of a sweep until there are no more, or `count`; raises where the agent fails."""
    words = [sys.executable, "-m", "wandb", "agent", *(["--count", str(count)] if count else [])]
    code = subprocess.run([*words, sweep], env=_sweep_environment(), check=False).returncode
    if code:
        raise TrainingFailed(f"W&B's agent ended with exit code {code}")


def _sweep_environment() -> dict[str, str]:
    """Return an environment in which a sweep's `command: [launcher, …]` is this launcher."""
    env = environment(os.environ)
    scripts = str(Path(sys.executable).parent)
    return env | {"PATH": f"{scripts}{os.pathsep}{env.get('PATH', os.defpath)}"}
