"""Marks of progress: seen from outside at once, and what they tell of a hang."""

from pathlib import Path

import pytest

from launcher import mark, supervise
from launcher.mark import Mark, Marker
from launcher.supervise import HangWatch


def test_what_one_process_marks_another_reads(tmp_path: Path) -> None:
    assert mark.read(tmp_path / "m") is None
    marker = Marker(tmp_path / "m")
    assert mark.read(tmp_path / "m") == Mark(0, 0, 0)
    marker.tick()
    marker.tick()
    marker.step(7)
    marker.beat()
    assert mark.read(tmp_path / "m") == Mark(2, 7, 1)


def test_without_a_path_marking_is_harmless() -> None:
    marker = Marker(None)
    marker.tick()
    marker.step(1)


def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int = 2
) -> tuple[list[Marker], HangWatch]:
    monkeypatch.setattr(supervise, "_LOOK_S", 0.0)
    markers = [Marker(tmp_path / str(rank)) for rank in range(ranks)]
    return markers, HangWatch({rank: tmp_path / str(rank) for rank in range(ranks)}, 0.05)


def until_a_verdict(watch: HangWatch, looks: int = 200) -> str | None:
    import time

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


def test_before_the_first_step_nothing_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers, watch = watched(tmp_path, monkeypatch)
    markers[0].step(1)
    assert until_a_verdict(watch, looks=60) is None


@pytest.mark.parametrize("sign", ["tick", "beat"])  # of getting on; of waiting for a disk
def test_a_sign_of_life_of_one_rank_keeps_the_run_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    markers, watch = watched(tmp_path, monkeypatch)
    for marker in markers:
        marker.step(1)
    for _ in range(60):
        getattr(markers[0], sign)()
        assert until_a_verdict(watch, looks=1) is None
