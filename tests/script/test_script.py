"""What is started of a script, and where a module is."""

import os
import sys
from pathlib import Path

import pytest

from launcher.errors import BadInput
from launcher.script.script import Script, file_of_module, words


def test_words_come_at_later_starts_once_there_is_something_to_go_on_from(tmp_path: Path) -> None:
    saved = tmp_path / "ckpt"
    script = Script("/x/train.py", args=["--lr", "1"], on_resume=["--go", "on"])
    assert script.command(1) == [sys.executable, "/x/train.py", "--lr", "1"]
    assert script.command(2)[2:] == ["--lr", "1", "--go", "on"]
    watched = Script("/x/train.py", progress=str(saved), on_resume=["--go"])
    assert watched.command(2)[2:] == []
    saved.mkdir()
    assert watched.command(2)[2:] == []
    (saved / "deep").mkdir()
    (saved / "deep" / "state").touch()
    assert watched.command(2)[2:] == ["--go"]
    assert watched.command(1)[2:] == []


def test_the_newest_file_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    script = Script("train.py", progress=str(tmp_path))
    assert script.newest() is None
    for moment, name in enumerate(("b", "a", "c/d")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + moment, 1000 + moment))
    newest = script.newest()
    assert newest
    assert newest.path == str(tmp_path / "c/d")
    (tmp_path / "c/d").write_text("more")
    os.utime(tmp_path / "c/d", (1002, 1002))
    assert script.newest() != newest
    alone = Script("train.py", progress=str(tmp_path / "a")).newest()
    assert alone
    assert alone.path == str(tmp_path / "a")


def test_a_module_is_found_as_python_finds_it_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pkg/__init__.py", "pkg/sub/train.py", "pkg/__main__.py", "one.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("raise SystemExit('was run')\n")
    before = sys.path.copy()
    assert file_of_module("one") == tmp_path / "one.py"
    assert file_of_module("pkg.sub.train") == tmp_path / "pkg/sub/train.py"
    assert file_of_module("pkg") == tmp_path / "pkg/__main__.py"
    assert file_of_module("json.tool").name == "tool.py"
    for name in ("pkg.sub", "pkg.nowhere", "one.train", "sys", ""):
        with pytest.raises(BadInput, match="there is no module"):
            file_of_module(name)
    assert sys.path == before
    assert "pkg" not in sys.modules


def test_words_are_split_as_a_shell_does() -> None:
    assert words("--from 'the last' -x") == ["--from", "the last", "-x"]
    assert words(None) == []
    with pytest.raises(BadInput, match="No closing quotation"):
        words("'")
