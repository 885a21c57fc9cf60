"""The run directory: every path of a run, atomic writes, and the files shipped with the package."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RunDirError


@dataclass(frozen=True)
class RunDir:
    """One training of one recipe: the folder that holds all of it."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was when the run was made."""
        return self.path / "recipe.py"

    @property
    def config(self) -> Path:
        """Everything that is needed to repeat the run."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, one line a report."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """How the run ended; written at its end."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folders of checkpoints."""
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        """Who writes to the run directory now."""
        return self.path / "lock.json"

    @property
    def logs(self) -> Path:
        """What each process said, and how it ended."""
        return self.path / "logs"

    @property
    def snapshot(self) -> Path:
        """The code as it was when the run was submitted (see `launcher.snapshot`)."""
        return self.path / "snapshot"

    @property
    def snapshot_diff(self) -> Path:
        """How that code differs from its git commit."""
        return self.path / "snapshot.diff"

    @property
    def wandb_state(self) -> Path:
        """What is known of the run's upload to W&B: its address, and whether all has arrived."""
        return self.path / "wandb.json"

    @property
    def wandb_log(self) -> Path:
        """What W&B's client said."""
        return self.logs / "wandb.log"

    def log(self, rank: int) -> Path:
        """What one rank said."""
        return self.logs / f"rank-{rank}.log"

    def record(self, rank: int) -> Path:
        """Who a rank is and how it ended (see `launcher.record.Record`)."""
        return self.logs / f"rank-{rank}.json"

    def mark(self, rank: int) -> Path:
        """How far a rank is (see `launcher.progress`)."""
        return self.logs / f"rank-{rank}.mark"

    def trace(self, rank: int) -> Path:
        """What some steps of a rank spent their time on, for Perfetto."""
        return self.path / f"trace-rank-{rank}.json"

    def agent(self, node_rank: int) -> Path:
        """What the agent of one node said: `accelerate launch` and torchrun."""
        return self.logs / f"node-{node_rank}.log"

    def exits(self, node_rank: int) -> Path:
        """Exit codes of the processes whose failure ended one node, by global rank."""
        return self.logs / f"node-{node_rank}-exits.json"

    def node_error(self, node_rank: int) -> Path:
        """What was wrong with one node, where no rank was the cause."""
        return self.logs / f"node-{node_rank}-error.json"

    def create(self, config: Mapping[str, Any], recipe_source: str) -> None:
        """Make the folder with its recipe and configuration.

        Raises RunDirError when it already holds a run or cannot be written.
        """
        taken = RunDirError(
            f"`{self.path}` already holds a run",
            hint="give another --run-dir, or none to have one made",
        )
        try:
            if self.config.exists() or self.metrics.exists() or self.result.exists():
                raise taken
            self.logs.mkdir(parents=True, exist_ok=True)
            # Of two runs at once, one gets the folder, and only its recipe gets into it.
            with written(self.recipe) as recipe:
                recipe.write_bytes(recipe_source.encode())
                try:
                    _write_new_json(self.config, config)
                except FileExistsError as error:
                    raise taken from error
        except OSError as error:
            raise RunDirError(
                f"run directory `{self.path}` cannot be written: {error.strerror}",
                hint="give a folder that you may write with --run-dir",
            ) from error

    def remove(self) -> None:
        """Delete a run that never trained: its own files, and folders only where they are empty.

        A run that has reported anything, or has a checkpoint, stays as it is.
        """
        if self.last_report() or any(self.checkpoints.glob("step-*")):
            return
        own = [self.recipe, self.config, self.metrics, self.result, self.lock]
        own += [self.snapshot_diff, self.wandb_log, self.path / "report.html"]
        own += [*self.logs.glob("rank-*"), *self.logs.glob("node-*.*")]
        with suppress(OSError):  # a name of ours that is somebody's folder stays
            for file in own:
                file.unlink(missing_ok=True)
            shutil.rmtree(self.snapshot, ignore_errors=True)
        folders = [self.checkpoints, self.logs, self.path]
        folders += [self.path.parent] if self.path.parent.name == "runs" else []
        for folder in folders:
            with suppress(OSError):  # it is not empty: what is in it is not ours
                folder.rmdir()

    def read_config(self) -> dict[str, Any]:
        """Return config.json; raises RunDirError when there is none that can be read."""
        return read_config(self.config)

    def last_report(self) -> dict[str, Any]:
        """Return the newest line of metrics.jsonl, {} when there is none."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return _json_object(lines[-1]) if lines else {}
        except (OSError, ValueError):
            return {}


def read_config(path: Path) -> dict[str, Any]:
    """Return a config.json; raises RunDirError when it cannot be read."""
    try:
        config = _json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"`{path}` is not the config.json of a run: {error}") from error
    if not isinstance(config.get("hyperparameters"), dict):
        raise RunDirError(f"`{path}` is not the config.json of a run: it has no hyperparameters")
    return config


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is none that can be read."""
    try:
        return _json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004  # as for any other wrong text
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; a number that JSON lacks (NaN) is an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_new_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically where there is no file; raises FileExistsError."""
    beside = path.with_name(f".new-{path.name}.{os.getpid()}.tmp")
    write_json(beside, value)
    try:
        path.hardlink_to(beside)  # unlike a rename, a link fails where the name is taken
        sync(path.parent)
    finally:
        beside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside it, flushed to disk, renamed over it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with written(path) as beside:
        beside.write_bytes(content)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to; when done it is flushed to disk and renamed to `path`.

    A reader sees the old file or the new one, whole; after an error the old one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def assets(kind: str) -> Path:
    """Return the folder `recipes` or `slurm`: packed in the wheel, else of the checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "_assets" / kind
    return packed if packed.is_dir() else package.parent / kind
