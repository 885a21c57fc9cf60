"""Marks of progress: seen from outside at once, and what they tell of a hang."""

import time
from pathlib import Path

import pytest

from launcher.launch import supervise
from launcher.launch.supervise import HangWatch
from launcher.run import mark
from launcher.run.mark import Mark, Marker


def test_what_one_process_marks_another_reads(tmp_path: Path) -> None:
    assert mark.read(tmp_path / "m") is None
    marker = Marker(tmp_path / "m")
    assert mark.read(tmp_path / "m") == Mark(0, 0, 0)
    marker.tick()
    marker.tick()
    marker.step(7)
    assert mark.read(tmp_path / "m") == Mark(2, 7, 0)
    with marker.waiting():
        assert mark.read(tmp_path / "m") == Mark(2, 7, 0, waiting=1)


def test_a_rank_beats_while_it_waits_for_a_disk_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark, "BEAT_S", 0.01)
    marker = Marker(tmp_path / "m")
    with marker.beating():
        time.sleep(0.2)
    beats = mark.read(tmp_path / "m")
    assert beats
    assert beats.beats > 3
    time.sleep(0.05)
    assert mark.read(tmp_path / "m") == beats


def test_without_a_path_marking_is_harmless() -> None:
    marker = Marker(None)
    marker.tick()
    marker.step(1)


def watched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_timeout_s: float = 60,
    timeout_s: float = 0.05,
) -> tuple[list[Marker], HangWatch]:
    monkeypatch.setattr(supervise, "_LOOK_S", 0.0)
    paths = {rank: tmp_path / str(rank) for rank in range(2)}
    markers = [Marker(path) for path in paths.values()]
    return markers, HangWatch(paths, timeout_s, start_timeout_s)


def until_a_verdict(watch: HangWatch, looks: int = 200) -> str | None:
    for _ in range(looks):
        if verdict := watch.verdict():
            return verdict
        time.sleep(0.002)
    return None


def test_the_rank_that_is_behind_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    markers, watch = watched(tmp_path, monkeypatch)
    for marker in markers:
        marker.step(41)
        marker.tick()
    markers[0].tick()
    verdict = until_a_verdict(watch)
    assert verdict
    assert "rank 1 was behind, in step 41" in verdict


def test_a_first_step_has_another_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    markers, patient = watched(tmp_path, monkeypatch)
    _, watch = watched(tmp_path, monkeypatch, start_timeout_s=0.1)
    with markers[0].waiting():  # for data that rank 1 prepares
        assert until_a_verdict(patient, looks=60) is None
        said = until_a_verdict(watch)
    assert said == "no progress for 0.1 s: rank 1 was not ready for its first step"


def test_what_is_waited_for_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervise, "_SAY_IN_LOG_S", 0.0)
    monkeypatch.setattr(supervise, "_LONG_S", 0.0)
    _, watch = watched(tmp_path, monkeypatch)
    until_a_verdict(watch, looks=5)
    said = capsys.readouterr().err
    assert said.count("start_timeout=60 ends a run that does nothing") == 1
    assert "importing" not in said  # all ranks are there, and say themselves what they do
    late = supervise.HangWatch({0: tmp_path / "not-there"}, 60, 60)
    until_a_verdict(late, looks=5)
    assert capsys.readouterr().err.count("importing torch and the recipe (") == 1


def test_a_tick_of_one_rank_keeps_the_run_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers, watch = watched(tmp_path, monkeypatch)
    for marker in markers:
        marker.step(1)
    for _ in range(60):
        markers[0].tick()
        assert until_a_verdict(watch, looks=1) is None


def test_a_disk_that_one_rank_waits_for_has_the_limit_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark, "BEAT_S", 0.01)
    markers, watch = watched(tmp_path, monkeypatch, start_timeout_s=2, timeout_s=0.5)
    for marker in markers:
        marker.step(1)
    with markers[0].beating(), markers[1].waiting():
        assert until_a_verdict(watch, looks=60) is None
        said = until_a_verdict(watch, looks=3000)
    assert said
    assert "waited for a disk for" in said
    assert "rank 0 was behind, in step 1" in said


def test_a_machine_that_waits_for_another_leaves_the_verdict_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers, watch = watched(tmp_path, monkeypatch, start_timeout_s=0.1)
    for marker in markers:
        marker.step(1)
    with markers[0].waiting(), markers[1].waiting():
        assert until_a_verdict(watch, looks=100) is None
    assert until_a_verdict(watch)
