"""What W&B is told of a run: its id and names, its rows, its summary. Never imports wandb."""

import netrc
import os
import secrets
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from launcher.errors import BadInput
from launcher.masks import masked
from launcher.run.best import score
from launcher.run.rows import metrics_in

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = ("online", "offline", "disabled")
_OF_OLD: Mapping[str, Mode] = {"dryrun": "offline", "run": "online"}  # words of older clients
Ending = Literal["finished", "failed", "preempted"]
# W&B's word for each state of a result.json.
ENDINGS: Mapping[str, Ending] = {
    "completed": "finished",
    "stopped": "preempted",
    "failed": "failed",
}

# Where each field of metrics.jsonl stands on the run's page; `split` becomes the prefix of others.
_PAGE = {
    "loss": "{split}/loss",
    "accuracy": "{split}/accuracy",
    "samples": "{split}/samples",
    "step": "trainer/step",
    "epoch": "trainer/epoch",
    "epochs": "trainer/epochs",
    "time": "trainer/time",
    "learning_rate": "trainer/learning_rate",
    "learning_rates": "trainer/learning_rates",
    "gradient_norm": "trainer/gradient_norm",
    "samples_per_second": "speed/samples_per_second",
    "step_time": "speed/step_time",
    "data_wait": "speed/data_wait",
    "rank_time_median": "speed/rank_time_median",
    "rank_time_slowest": "speed/rank_time_slowest",
    "slowest_rank": "speed/slowest_rank",
    "rank_time_of": "speed/rank_time_of",
    "gpu_memory": "speed/gpu_memory",
    "steps_in_all": "trainer/steps_in_all",
    "tflops": "speed/tflops",
    "mfu": "speed/mfu",
    "eta_seconds": "speed/eta_seconds",
}
_RECORDED = ("recipe", "world_size", "nodes", "cpu", "versions", "git", "snapshot", "host")
_PROJECT_LENGTH = 128  # W&B takes no longer name


def tracking(
    recipe: str,
    asked: str | None = None,
    *,
    project: str | None = None,
    group: str | None = None,
    tags: Iterable[str] = (),
    env: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Return what config.json keeps about tracking: one id for the run, whatever becomes of it.

    Names come from the arguments, else from W&B's environment variables. Raises BadInput for a
    WANDB_MODE that is unknown.
    """
    return {
        "mode": mode_of(asked, env),
        "name": env.get("WANDB_NAME"),
        "run_id": env.get("WANDB_RUN_ID") or secrets.token_hex(6),
        "project": project or env.get("WANDB_PROJECT") or recipe[:_PROJECT_LENGTH],
        "entity": env.get("WANDB_ENTITY"),
        "group": group or env.get("WANDB_RUN_GROUP"),
        "tags": [*tags] or [tag for tag in env.get("WANDB_TAGS", "").split(",") if tag],
        "notes": env.get("WANDB_NOTES"),
        "sweep_id": env.get("WANDB_SWEEP_ID"),
    }


def mode_of(asked: str | None, env: Mapping[str, str] = os.environ) -> Mode:
    """Return the mode that was asked for, else online where there are credentials, else offline."""
    return asked_for(asked, env) or ("online" if has_credentials(env) else "offline")


def asked_for(option: str | None, env: Mapping[str, str] = os.environ) -> Mode | None:
    """Return the mode that was asked for: by option, variable, or `wandb offline` and the like.

    Raises BadInput for a word that is unknown: it must not mean more than it was to.
    """
    word = option or ("disabled" if is_on("WANDB_DISABLED", env) else env.get("WANDB_MODE", ""))
    word = word.strip().lower() or _settings(env).get("mode", "").strip().lower()
    if not word:
        return None
    mode = _OF_OLD.get(word, word)
    if mode not in MODES:
        raise BadInput(
            f"W&B's mode `{word}` (WANDB_MODE, or its settings file) is not known here",
            hint=f"{', '.join(MODES)}: say which with --tracking",
        )
    return mode


def has_credentials(env: Mapping[str, str] = os.environ) -> bool:
    """Whether `wandb login` was done for the server that W&B would talk to, or a key is set."""
    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(env.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(file).authenticators(urlparse(_server(env)).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server(env: Mapping[str, str]) -> str:
    """Return the address of W&B's server: from the environment, else from `wandb login --host`."""
    return env.get("WANDB_BASE_URL") or _settings(env).get("base_url", "https://api.wandb.ai")


def _settings(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return what W&B's commands keep: for the user and, with more weight, for this folder."""
    user = Path(env.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    here = Path(env.get("WANDB_DIR") or ".")
    found: dict[str, str] = {}
    for folder in (user, here / "wandb", here / ".wandb"):
        parser = ConfigParser(interpolation=None)
        with suppress(OSError, UnicodeDecodeError, ConfigError):
            parser.read(folder / "settings", encoding="utf-8")
            found |= dict(parser["default"]) if parser.has_section("default") else {}
    return found


def is_on(name: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable switches something on; a word that is unknown does, too."""
    return env.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def config_of(told: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the config on the run's page: hyperparameters by their names, and where it ran.

    Secrets are masked; WANDB_DISABLE_GIT leaves out what is known of git.
    """
    parameters = masked(told["hyperparameters"])
    hidden = ("git", "snapshot") if is_on("WANDB_DISABLE_GIT", env) else ()
    recorded = {key: None if key in hidden else told[key] for key in _RECORDED if key in told}
    batches = {
        "global_batch_size": parameters.get("batch_size"),
        "micro_batch_size": parameters.get("micro_batch_size"),
    }
    return recorded | batches | parameters


def history_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics.jsonl as the page shows it; what is null is left out.

    A metric of the recipe's stands beside the loss, under its own name.
    """
    split = row["split"]
    hidden = ("split", "line")
    return {
        _PAGE[field].format(split=split) if field in _PAGE else f"{split}/{field}": value
        for field, value in row.items()
        if field not in hidden and value is not None
    }


def is_scripts_own(state: Mapping[str, Any] | None) -> bool:
    """Whether what is known of a run's upload says that its script has a W&B run of its own."""
    return bool((state or {}).get("own"))


def position(row: Mapping[str, Any]) -> int:
    """Return where a row stands in the history of a run, growing from row to row.

    A test comes after the training report of the same step. It is a function of the row, so what
    has arrived says what is missing, and a row that is sent again is known by its place. A script
    may log several rows of a step, and its rows are counted.
    """
    if "line" in row:
        return int(row["line"])
    return 2 * int(row["step"]) + int(row["split"] == "test")


def summary_of(
    rows: Iterable[Mapping[str, Any]], result: Mapping[str, Any], best_by: str | None = None
) -> dict[str, Any]:
    """Return what the page's summary says beside the last values: the best test, and the end."""
    tests = [row for row in rows if row["split"] == "test" and score(row, best_by) is not None]
    summary = {f"final/{key}": value for key, value in result.items() if value is not None}
    if not tests:
        return summary
    best = max(tests, key=lambda row: score(row, best_by) or 0)
    fields = ("accuracy", "loss", "step", "epoch", *metrics_in(best))
    return summary | {f"best/{field}": best[field] for field in fields if best[field] is not None}
