"""What a node notes of its ranks and GPUs."""

import json
import time
from pathlib import Path

import pytest

from launcher.launch import notes
from launcher.launch.notes import Noted, told
from launcher.run.mark import Marker


class Quiet:
    """A watch that sees nothing hang."""

    def verdict(self) -> str | None:
        return None


def noted(path: Path, monkeypatch: pytest.MonkeyPatch, *, on_gpu: bool = False) -> Noted:
    monkeypatch.setattr(notes, "_AGAIN_S", 0.2)
    marks = {rank: path / f"rank-{rank}.mark" for rank in (2, 3)}
    Marker(marks[3]).step(7)
    monkeypatch.setattr(notes, "gpus", lambda: int(on_gpu))
    return Noted(Quiet(), path / "node-1.json", marks, cpu=False)


def look(watch: Noted, path: Path) -> dict[str, object]:
    """What is noted after a while."""
    path.unlink(missing_ok=True)
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        assert watch.verdict() is None
        time.sleep(0.02)
    return dict(json.loads(path.read_text()))


def test_a_node_notes_the_steps_of_those_ranks_that_have_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(noted(tmp_path, monkeypatch), tmp_path / "node-1.json")
    assert found["ranks"] == {"3": 7}
    assert found["gpus"] == []


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo '97, 40000, 81559'; echo '[N/A], 5, 6'", [(97.0, 41.9, 85.5)]),
        ("exit 1", []),
        ("sleep 60", []),
    ],
)
def test_gpus_are_asked_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: list[tuple[float, ...]]
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    watch = noted(tmp_path, monkeypatch, on_gpu=True)
    began = time.monotonic()
    try:
        look(watch, tmp_path / "node-1.json")
        found = look(watch, tmp_path / "node-1.json")["gpus"]
    finally:
        watch.close()
    assert [tuple(gpu.values()) for gpu in found] == gpus  # type: ignore[attr-defined]
    assert time.monotonic() - began < 15


def test_a_machine_without_nvidia_smi_notes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = noted(tmp_path, monkeypatch, on_gpu=True)
    assert look(watch, tmp_path / "node-1.json")["ranks"] == {"3": 7}
    watch.close()


def test_a_disk_that_is_lost_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = noted(tmp_path, monkeypatch)
    (tmp_path / "node-1.json").mkdir()
    for _ in range(5):
        assert watch.verdict() is None
        time.sleep(0.1)


def test_lines_of_nvidia_smi_become_gigabytes() -> None:
    assert told("0, 0, 16384\n100, 1000, 16384\n") == [
        {"use": 0.0, "memory_gb": 0.0, "total_gb": 17.2},
        {"use": 100.0, "memory_gb": 1.0, "total_gb": 17.2},
    ]
