"""One session of W&B's client for one run directory: the only module that imports wandb."""

import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb

from launcher.files import read_json
from launcher.run.directory import RunDir
from launcher.run.told import is_script
from launcher.run.wandb import config_of, history_row, is_on, position, summary_of
from launcher.run.weights import files_of

_INIT_S, _PATIENT_INIT_S = 5.0, 30.0  # how long the server may take to answer
_FINISH_S, _PATIENT_FINISH_S = 7.0, 600.0  # how long the last rows may take
_IMAGES, _MOST_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp"), 64  # of one test
_LOOKS = 3  # at what has arrived, a second apart


class Rows:
    """The rows of a metrics.jsonl as they come, each once, though it is cut back and goes on."""

    def __init__(self, path: Path, after: int = -1) -> None:
        """Leave out rows up to the position `after`."""
        self._path, self._last = path, after
        self._inode = self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the rows that were not there before, as far as they are whole."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0  # cut back by a run that goes on
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(self._unseen(map(json.loads, whole.splitlines())))

    def _unseen(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if position(row) > self._last:
                self._last = position(row)
                yield row


def _private_settings(patient: bool) -> dict[str, str]:
    """Return settings that come and go between W&B's versions: an unknown variable is no error."""
    return {
        "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.5",  # seconds SIGKILL may cost, since 0.31
        "WANDB_X_DISABLE_STATS": str(patient),  # the machine's load is of interest while it trains
        "WANDB_X_STATS_PID": str(os.getppid()),
        "WANDB_X_STATS_TRACK_PROCESS_TREE": "True",
    }


class Session:
    """From init to finish. Its methods raise whatever the client raises."""

    def __init__(
        self, run: RunDir, mode: Literal["online", "offline"], *, patient: bool = False
    ) -> None:
        """Start or resume the run on W&B; `patient` where somebody waits for just this."""
        self._run = run
        self._told = run.read_config()
        names = self._told["tracking"]
        os.environ.update(_private_settings(patient))
        self._client = wandb.init(
            id=names["run_id"],
            mode=mode,
            resume="allow" if mode == "online" else None,
            name=names.get("name") or run.path.name,
            project=names["project"],
            entity=names["entity"],
            group=names["group"],
            tags=names["tags"] or None,
            notes=names["notes"],
            dir=os.environ.get("WANDB_DIR") or str(run.path),
            settings=wandb.Settings(
                console="off",  # all output would be copied and uploaded
                init_timeout=_PATIENT_INIT_S if patient else _INIT_S,
                finish_timeout=_PATIENT_FINISH_S if patient else _FINISH_S,
                finish_timeout_raises=True,
            ),
        )
        # Not at init, where a page that is there would keep its own: the world may have changed.
        page: Any = self._client.config  # which has no types
        page.update(config_of(self._told), allow_val_change=True)
        self._client.define_metric("trainer/step")
        self._client.define_metric("*", step_metric="trainer/step")
        if not is_on("WANDB_DISABLE_CODE"):
            code = run.script if is_script(self._told) else run.recipe
            self._client.save(glob.escape(str(code)), base_path=str(run.path), policy="now")
        # The server says how far it is; an offline session records everything anew.
        self._rows = Rows(run.metrics, after=self._client.starting_step - 1)
        self.url = self._client.url if mode == "online" else None
        self.sent = 0  # rows of this session

    def log(self) -> None:
        """Send the rows that are new."""
        for row in self._rows.new():
            sent = {**history_row(row), **self._images(row), "_timestamp": row["time"]}
            self._client.log(sent, step=position(row), commit=True)
            self.sent += 1

    def _images(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the images that `after_test` has left of a test; its row comes after them."""
        folder = self._run.path / "after_test" / f"step-{row['step']}"
        images: dict[str, Any] = {}
        for path in sorted(folder.rglob("*")) if row["split"] == "test" else []:
            if path.suffix.lower() in _IMAGES and len(images) < _MOST_IMAGES:
                try:
                    name = f"after_test/{path.relative_to(folder).with_suffix('')}"
                    images[name] = wandb.Image(str(path))
                except Exception as error:  # noqa: BLE001  # what PIL finds in it, or its lack
                    print(f"{path} is left out: {error}", file=sys.stderr)
        return images

    def finish(self, ending: str) -> None:
        """Send what is left, with the summary, and say how the run ended."""
        self.log()
        result = read_json(self._run.result) or {}
        best_by = self._told["hyperparameters"].get("best_by")
        self._client.summary.update(summary_of(Rows(self._run.metrics).new(), result, best_by))
        if ending == "finished" and self._told["hyperparameters"].get("log_model"):
            self._log_model()
        if ending == "preempted":
            self._client.mark_preempting()
        self._client.finish(exit_code=0 if ending == "finished" else 1)

    def _log_model(self) -> None:
        artifact = wandb.Artifact(f"model-{self._client.id}", type="model")
        for path in files_of(self._run.weights):
            artifact.add_file(str(path))
        self._client.log_artifact(artifact, aliases=["final"])

    def arrived(self) -> bool:
        """Whether the server has every row, by its own word: the client succeeds when it fails."""
        entity, path = self._client.entity, f"{self._client.project}/{self._client.id}"
        wanted = len(Rows(self._run.metrics).new())
        for look in range(_LOOKS):
            time.sleep(1 if look else 0)
            with suppress(wandb.Error):  # the server has gone since
                server = wandb.Api(overrides={"entity": entity}, timeout=5)
                if int(server.run(f"{entity}/{path}").historyLineCount) >= wanted:
                    return True
        return False

    def supersede(self) -> None:
        """Delete what earlier offline sessions of this run recorded: this one has all of it.

        Only in the run directory: in a WANDB_DIR another run may have had the same WANDB_RUN_ID.
        """
        own = Path(self._client.dir).parent
        if not own.is_relative_to(self._run.path):
            return
        for folder in own.parent.glob(f"offline-run-*-{self._client.id}"):
            if folder != own:
                shutil.rmtree(folder, ignore_errors=True)
