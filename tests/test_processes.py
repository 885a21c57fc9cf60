"""What is asked of the operating system, and how paths are told."""

from pathlib import Path

import pytest

from launcher.processes import HERE, shown


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runs/r", "runs/r"),
        ("it's mine", "'it'\"'\"'s mine'"),
        ("$(id)/r", "'$(id)/r'"),
        ("-r", "./-r"),
        ("..r", "..r"),
        (".", "."),
    ],
)
def test_a_path_is_shown_as_a_shell_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / path) == words


def test_a_path_outside_of_the_current_folder_is_shown_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "r" / "snapshot"  # where a job runs
    workdir.mkdir(parents=True)
    monkeypatch.chdir(workdir)
    assert shown(tmp_path / "r") == str(tmp_path / "r")
    assert shown(tmp_path / "r" / "logs" / "rank-0.log") == f"{tmp_path}/r/logs/rank-0.log"
    monkeypatch.setenv(HERE, str(tmp_path))  # the command was given elsewhere
    assert shown(tmp_path / "r") == "r"
