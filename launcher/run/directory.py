"""The run directory: every path of a run, who made it, and what of it is whose."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RunDirError
from launcher.files import json_object, json_text, make_folders, remove_empty, written
from launcher.masks import masked_config
from launcher.run.told import is_script, read_config

_BLOCK = 1 << 20  # bytes
_CLAIM = ".new-run.tmp"  # there while a run is being made: of several at once, one makes it
_UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")  # what `written` is about to put there
_OF_A_NODE = re.compile(  # or of a script's processes, which start before they meet
    r"node-\d+(-spec|-agent|-(exits|error|starts)\.json|\.json|\.log)|rank-[1-9]\d*\.(json|log|mark)"
)
_OF_A_PROCESS = re.compile(
    r"rank-\d+\.(json|log|mark)|node-\d+(-exits\.json|-error\.json|-mark\.txt|\.json|\.log)"
    r"|slow\.json"
)


@dataclass(frozen=True)
class RunDir:
    """One training of one recipe or script: the folder that holds all of it."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was when the run was made."""
        return self.path / "recipe.py"

    @property
    def script(self) -> Path:
        """The script as it was when the run was made, where it is no recipe's."""
        return self.path / "script.py"

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
    def plain_weights(self) -> Path:
        """The final weights themselves, of a run whose average is its final weights."""
        return self.path / "model-plain.safetensors"

    @property
    def weights_others(self) -> Path:
        """What of the final state_dict is no dense tensor, where there is any: for `torch.load`."""
        return self.path / "model-others.pt"

    @property
    def checkpoints(self) -> Path:
        """Folders of checkpoints."""
        return self.path / "checkpoints"

    @property
    def times(self) -> Path:
        """What the time of all starts went into (see `launcher.times`)."""
        return self.path / "times.jsonl"

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
        """The code as it was when the run was submitted (see `launcher.slurm.snapshot`)."""
        return self.path / "snapshot"

    @property
    def snapshot_diff(self) -> Path:
        """How that code differs from its git commit."""
        return self.path / "snapshot.diff"

    @property
    def remote(self) -> Path:
        """At which host the run is, where it is not here (see `launcher.remote`)."""
        return self.path / "remote.json"

    @property
    def is_copy(self) -> bool:
        """Whether what is here is what was pulled of a run, or of a run of an array, elsewhere."""
        return any(RunDir(path).remote.exists() for path in (self.path, self.path.parent))

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
        """Who a rank is and how it ended (see `launcher.run.record.Record`)."""
        return self.logs / f"rank-{rank}.json"

    def mark(self, rank: int) -> Path:
        """How far a rank is (see `launcher.run.mark`)."""
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

    def node_mark(self, node_rank: int) -> Path:
        """How far one node of a job came in a start (see `launcher.run.node_marks`)."""
        return self.logs / f"node-{node_rank}-mark.txt"

    def node_note(self, node_rank: int) -> Path:
        """Where one node's ranks are and what its GPUs do, for `launcher watch`."""
        return self.logs / f"node-{node_rank}.json"

    @property
    def slow(self) -> Path:
        """Which ranks are slower than the others (see `launcher.times.slow`)."""
        return self.logs / "slow.json"

    def node_error(self, node_rank: int) -> Path:
        """What was wrong with one node, where no rank was the cause."""
        return self.logs / f"node-{node_rank}-error.json"

    def create(self, config: Mapping[str, Any], source: str) -> list[Path]:
        """Make the run in a folder that is new or empty; returns the folders that were made.

        Raises RunDirError where the folder holds anything, or cannot be written; then it is as it
        was.
        """
        made: list[Path] = []
        try:
            made = make_folders(self.path)
            with self._being_made():
                made = make_folders(self.logs) + made
                self.fill(config, source)
        except BaseException as error:
            remove_empty(made)
            if not isinstance(error, OSError):
                raise
            raise RunDirError(
                f"run directory `{self.path}` cannot be written: {error.strerror}",
                hint="give a folder that you may write with --run-dir",
            ) from error
        return made

    def fill(self, config: Mapping[str, Any], source: str) -> None:
        """Write recipe or script, and configuration, into a folder that this process has made."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with written(self.script if is_script(config) else self.recipe) as beside:  # both or none
            beside.write_bytes(
                source.encode(errors="surrogateescape")
            )  # see `launcher.cli.scripts`
            self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json; one that holds secrets is for its owner alone."""
        private = "hyperparameters" in config and masked_config(config) != config
        with written(self.config, private=private) as beside:
            beside.write_text(json_text(config), encoding="utf-8")

    @contextmanager
    def _being_made(self) -> Iterator[None]:
        """Have the folder for this process alone; raises RunDirError where somebody has it."""
        taken = RunDirError(
            f"`{self.path}` already holds a run",
            hint="give another --run-dir, or none to have one made",
        )
        claim = self.path / _CLAIM
        try:
            claim.touch(exist_ok=False)
        except FileExistsError as error:
            raise taken from error
        try:
            if self.config.exists() or self.metrics.exists() or self.result.exists():
                raise taken
            self.refuse_foreign()
            yield
        finally:
            claim.unlink(missing_ok=True)

    def refuse_foreign(self) -> None:
        """Raise RunDirError where the folder holds something, and that is no run.

        The other machines of a run may have been here first: what they note is in `logs`. Or they
        are just making it.
        """
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if self.config.name in names:
            return
        inner = self.logs.iterdir() if self.logs.is_dir() else []
        if all(_OF_A_NODE.fullmatch(_finished(entry.name)) for entry in inner):
            names.discard(self.logs.name)
        own = {self.config.name, self.recipe.name, self.script.name}
        being_made = {name for name in names if name.startswith(".") and _finished(name) in own}
        if foreign := sorted(names - being_made - {_CLAIM}):
            shown = ", ".join(foreign[:3]) + (", ..." if foreign[3:] else "")
            raise RunDirError(
                f"`{self.path}` is not empty: there is {shown}",
                hint="a run has a folder to itself: give --run-dir one that is new or empty",
            )

    def remove(self, made: Iterable[Path]) -> None:
        """Delete a run that this process created, and that never trained: its own files.

        Of folders only those that were `made`, where they are empty. A run that has reported
        anything, or has a checkpoint, stays as it is.
        """
        reported = self.metrics.is_file() and self.metrics.stat().st_size
        if reported or any(self.checkpoints.glob("step-*")):
            return
        own = [self.config, self.metrics, self.result, self.lock, self.times, self.wandb_log]
        for file in [self.recipe, self.script, *own, *self.process_files()]:
            with suppress(OSError):  # a name of ours that is somebody's folder stays
                file.unlink()
        remove_empty([self.checkpoints, *made])

    def process_files(self) -> list[Path]:
        """Return what the processes of all machines have left in `logs`."""
        there = self.logs.iterdir() if self.logs.is_dir() else []
        return [path for path in there if _OF_A_PROCESS.fullmatch(path.name)]

    def read_config(self) -> dict[str, Any]:
        """Return config.json; raises RunDirError when there is none that can be read."""
        return read_config(self.config)

    def last_report(self) -> dict[str, Any]:
        """Return the newest line of metrics.jsonl that is whole, {} when there is none."""
        with suppress(OSError), self.metrics.open("rb") as file:
            at, later = file.seek(0, os.SEEK_END), b""
            while at:  # from its end: there may be a million lines
                start = max(0, at - _BLOCK)
                file.seek(start)
                first, *lines = (file.read(at - start) + later).split(b"\n")
                for line in reversed(lines if start else [first, *lines]):
                    with suppress(ValueError):
                        return json_object(line.decode())
                at, later = start, first
        return {}


def _finished(name: str) -> str:
    """Return the name that a file has once it is written."""
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else name
