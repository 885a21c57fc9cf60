"""Folders that are made and removed again, and nothing that this process did not make."""

from pathlib import Path

import pytest

from launcher.files import make_folders, make_new_folder, remove_empty


def test_only_the_folders_that_were_not_there_are_made_and_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = make_folders(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b"]
    assert make_folders(tmp_path / "a" / "b" / "c") == []
    remove_empty(made)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_folder_with_somebodys_file_stays(tmp_path: Path) -> None:
    made = make_folders(tmp_path / "a" / "b")
    (tmp_path / "a" / "mine").touch()
    remove_empty(made)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "mine"]


@pytest.mark.parametrize("make", [make_folders, make_new_folder])
def test_folders_that_cannot_be_made_leave_none(make: object, tmp_path: Path) -> None:
    assert callable(make)
    name = "x" * 300
    with pytest.raises(OSError, match="File name too long"):
        make(tmp_path / "a" / "b" / name)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        make(tmp_path / "file" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


def test_a_new_folder_is_never_one_that_is_there(tmp_path: Path) -> None:
    assert make_new_folder(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]
    with pytest.raises(FileExistsError):
        make_new_folder(tmp_path / "a" / "b")
