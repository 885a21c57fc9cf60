"""The versions that pyproject.toml promises: each has a reason, and is what is installed here."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = Path(__file__).parent.parent
TEXT = (PROJECT / "pyproject.toml").read_text()
PROMISED = tomllib.loads(TEXT)["project"]
PYTHONS = [
    name.rpartition(" ")[2]
    for name in PROMISED["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
]


def test_every_dependency_has_a_floor_no_ceiling_and_a_reason() -> None:
    listed = TEXT.partition("\ndependencies = [\n")[2].partition("\n]")[0].splitlines()
    assert len(listed) == len(PROMISED["dependencies"])
    for line, text in zip(listed, PROMISED["dependencies"], strict=True):
        assert re.match(r'    "[^"]+", +# \S.{5}', line), line
        assert [one.operator for one in Requirement(text).specifier] == [">="], line


def test_the_pythons_that_are_promised_start_with_the_oldest_that_is_let_in() -> None:
    assert PROMISED["requires-python"] == f">={PYTHONS[0]}"
    assert [f"3.{minor}" for minor in range(11, 11 + len(PYTHONS))] == PYTHONS


@pytest.mark.floors
@pytest.mark.parametrize("text", PROMISED["dependencies"])
def test_what_is_installed_is_what_is_promised(text: str) -> None:
    """A floor below what another package asks for would be a promise that nobody can try."""
    wanted = Requirement(text)
    if wanted.marker and not wanted.marker.evaluate():
        return  # it is for another Python
    installed = version(wanted.name)
    assert installed in wanted.specifier
    if "AT_THE_FLOORS" in os.environ:  # set by .ci/floors
        [floor] = wanted.specifier
        assert installed in SpecifierSet(f"=={floor.version}")
