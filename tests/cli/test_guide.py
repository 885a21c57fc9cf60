"""`launcher guide`: which pages there are, and how one is shown."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from training import PROJECT, command

from launcher.cli.main import COMMANDS, PAGES, main

LAUNCHER = Path(sys.executable).with_name("launcher")
GUIDE = {page.stem: page.read_text() for page in (PROJECT / "launcher" / "guide").glob("*.md")}


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done.output


def test_the_list_has_each_page_with_what_it_is_about() -> None:
    listed = [line.split(maxsplit=1) for line in said("guide").splitlines()]
    assert [subject for subject, _ in listed] == sorted(GUIDE)
    for subject, about in listed:
        title = GUIDE[subject].partition("\n")[0]
        assert title.lower().replace(" ", "-").startswith(f"#-{subject}:")
        assert title.endswith(f": {about}")
        assert len(about) < 85


@pytest.mark.parametrize("subject", GUIDE)
def test_in_a_pipe_a_page_is_its_text(subject: str) -> None:
    assert said("guide", subject) == GUIDE[subject]


def test_on_a_terminal_a_page_has_headings_and_tables(tmp_path: Path) -> None:
    words = f"stty cols 150; TERM=xterm {LAUNCHER} guide exactness"
    done = command("script", "-qec", words, "/dev/null", cwd=tmp_path)
    assert "\x1b[" in done.stdout
    assert "| ---" not in done.stdout
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert "float32" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("word", "hint"), [("resumee", "did you mean `resume`? "), ("zzz", "there are: agents, ")]
)
def test_a_page_that_there_is_not_is_told_with_the_nearest(word: str, hint: str) -> None:
    answer = said("guide", word, code=2)
    assert f"the guide has no page `{word}`" in answer
    assert f"hint: {hint}" in answer


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"guide"}))
def test_the_help_of_a_command_leads_to_a_page(name: str) -> None:
    assert PAGES[name] in GUIDE
    assert said(name, "--help").rstrip().endswith(f"More: launcher guide {PAGES[name]}")
