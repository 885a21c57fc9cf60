"""The way to a login node: what a shell there makes of words, and what ssh cannot do."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import BadInput
from launcher.remote.connection import host_of, in_shell

# What a command line may hold: neither NUL, nor what is no character.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ODD = ["'", '"', "$HOME", "`id`", "a b", "!x", "*", "~", "a\nb", "\\", "-n", "", "é\u2028"]


def said(line: str, shell: str, home: Path) -> list[str]:
    """The words that a command in a login shell got: each ends with a NUL."""
    env = {"PATH": os.environ["PATH"], "SHELL": shell, "HOME": str(home), "LC_ALL": "C.UTF-8"}
    done = subprocess.run([shell, "-c", line], env=env, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@settings(deadline=None, max_examples=25)  # each starts a shell
@given(words=st.lists(WORDS | st.sampled_from(ODD), min_size=1, max_size=30))
def test_a_shell_there_gives_a_command_the_words_that_were_meant(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    line = in_shell(["printf", r"%s\0", *words], "/")
    assert said(line, "/bin/sh", tmp_path_factory.getbasetemp()) == words


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("folder", ["~", "~/a b's", "~/$x", "/usr"])
def test_the_home_there_is_meant_by_a_tilde_at_the_start_and_by_no_other(
    tmp_path: Path, shell: str, folder: str
) -> None:
    inner = folder.removeprefix("~/") if folder.startswith("~/") else ""
    (tmp_path / inner).mkdir(exist_ok=True)
    line = in_shell(["sh", "-c", r'printf "%s\0" "$PWD" "$ODD"'], folder, {"ODD": "a 'b' ~"})
    where = folder if folder.startswith("/") else str(tmp_path / inner)
    assert said(line, shell, tmp_path) == [where.rstrip("/"), "a 'b' ~"]


@pytest.mark.parametrize("host", ["", "-oProxyCommand=id", "a b", "a:b", "a\nb"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(BadInput, match="is no host"):
        host_of(host)
