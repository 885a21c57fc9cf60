"""README and guide are true: their commands run and say what is shown, their programs train.

A block whose first line is a comment with the name of a file is that file. Of a page all files are
written first, then its commands and other programs run from top to bottom, in an empty folder.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml  # type: ignore[import-untyped]
from training import PROJECT, Run, clean_environment, command, many_runs

from launcher.cli.main import main
from launcher.recipe.file import find, is_script
from launcher.slurm.profile import load

pytestmark = pytest.mark.warm(scripts=True)

README = PROJECT / "README.md"
CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
GUIDE = {page.stem: page for page in sorted((PROJECT / "launcher" / "guide").glob("*.md"))}
PAGES = {"README": README, **GUIDE}
NAMED = re.compile(r"# ([\w/.-]+\.\w+)\n")
# What needs a cluster, W&B's server or another machine is only parsed.
ELSEWHERE = re.compile(
    r"launcher (sync|sweep|cancel|resubmit|pull|logs .*--follow|submit .*--(here|host)"
    r"|doctor .*--slurm|run .*--nnodes)\b"
)
FIRST = ["pip install uv && uv run launcher run digits --nproc 2", "uv run pytest"]


class Block(NamedTuple):
    """What stands between two fences."""

    kind: str  # console, python, toml, …
    text: str

    @property
    def name(self) -> str | None:
        """The file that it is, None where it is none."""
        named = NAMED.match(self.text)
        return named[1] if named else None


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Every command of a console block with the lines it shows below it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:].partition(" #")[0].strip(), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    return [
        one for block in blocks(page) if block.kind == "console" for one in commands(block.text)
    ]


def words_of(line: str) -> str:
    """A line without what differs from run to run: times, rates, names; numbers are rounded."""
    line = re.sub(r"\d+\.\d s, [\d,]+ samples/s", "S s, R samples/s", line)
    line = re.sub(r"^Time: .*", "Time: …", line)
    line = re.sub(r"\d+ threads? each", "T threads each", line)
    line = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4f}", line)
    return re.sub(r"runs/(\w+)-\d{8}-\d{6}-[0-9a-f]{4}", r"runs/\1-ID", line)


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write the files of a page; returns where they are."""
    written = []
    for block in blocks(page):
        if block.name:
            written.append(folder / block.name)
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(block.text)
    return written


def test_the_two_commands_come_first() -> None:
    assert [line for line, _ in commands_of(README)[:2]] == FIRST


def test_the_check_runs_the_readme_s_test_command() -> None:
    assert f"\n{FIRST[1]}" in (PROJECT / ".ci" / "run").read_text()


def test_the_readme_is_short_and_leads_to_every_page_of_the_guide() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 130
    led_to = re.findall(r"\[[\w-]+\]\(launcher/guide/([\w-]+)\.md\)", text)
    assert set(led_to) == set(GUIDE)


def test_pages_name_only_pages_that_there_are() -> None:
    for page in PAGES.values():
        for subject in re.findall(r"`launcher guide ([a-z-]+)`", page.read_text()):
            assert subject in GUIDE, f"{page.name}: {subject}"


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_of_a_kind_that_is_tested(page: str) -> None:
    for block in blocks(PAGES[page]):
        if block.kind == "python":
            ast.parse(block.text)
        elif block.kind == "yaml":  # the sweep that ships
            shipped = PROJECT / "recipes" / str(block.name)
            assert yaml.safe_load(block.text) == yaml.safe_load(shipped.read_text())
        elif block.kind == "console":
            assert commands(block.text)
        else:  # toml is a site profile, "" a drawing of files
            assert block.kind in ("toml", ""), block.kind


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_run_and_say_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGES[page], tmp_path)
    for number, block in enumerate(blocks(PAGES[page])):
        if block.kind == "python" and not block.name and page != "README":
            program = tmp_path / f"block-{number}.py"
            program.write_text(block.text)
            done = command(sys.executable, program, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        for line, shown in commands(block.text) if block.kind == "console" else []:
            if line in FIRST:
                continue
            if ELSEWHERE.match(line):
                parse(line)
                continue
            queues = re.match("launcher submit (?!.*--(local|dry-run))", line)
            said = set(map(words_of, run(f"{line} --dry-run" if queues else line, tmp_path)))
            for expected in shown:
                assert words_of(expected) in said, f"`{line}` does not say: {expected}"


def run(line: str, folder: Path) -> list[str]:
    """Run a line of shell to its end; returns the lines that it prints."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    name, _, words = line.partition(" ")
    first = str(Path(sys.executable).with_name(name))  # no shell: then it can start warm
    plain = Path(first).exists() and not set(words) & set("$`;&|<>*?#~(){}\n\\")
    first = sys.executable if name == "python" else first
    done = subprocess.run(
        [first, *shlex.split(words)] if plain else ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=clean_environment() | {"PATH": scripts},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout.splitlines()


def parse(line: str) -> None:
    """Parse a command of the launcher as it would be; raises click's error for what is wrong."""
    _, name, *words = shlex.split(line)
    found = main.get_command(click.Context(main), name)
    assert found, line
    found.make_context(name, words)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every recipe of README and guide as a file, beside the bundled ones; without `.py`."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "digits.py").write_text((PROJECT / "recipes" / "digits.py").read_text())
    [readme] = [block for block in blocks(README) if block.kind == "python"]
    (folder / "readme.py").write_text(readme.text)
    files = [file for page in GUIDE.values() for file in write_files(page, folder)]
    found = [file for file in files if file.suffix == ".py" and not is_script(find(str(file)))]
    names = ["digits", "readme", *(file.stem for file in found)]
    return {name: folder / name for name in names}


@pytest.fixture(scope="module")
def trained(
    recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Run]]:
    """All of them trained, by number of processes and name."""
    size = {"epochs": 1, "test_every": 6}
    cases = [{"name": name, "recipe": str(file), **size} for name, file in recipes.items()]
    found = {}
    for world in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        many_runs(folder, world, cases)
        found[world] = {name: Run(folder / name) for name in recipes}
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipes_of_the_guide_learn_alike_in_one_two_and_three_processes(
    trained: dict[int, dict[str, Run]],
) -> None:
    assert len(trained[1]) >= 9
    for name, alone in trained[1].items():
        losses = [row["loss"] for row in alone.rows if row["split"] == "test"]
        assert losses[-1] < losses[0], name
        for world in (2, 3):
            others = trained[world][name].result
            assert others["test_loss"] == pytest.approx(alone.result["test_loss"], rel=1e-5), name
            assert others["test_correct"] == alone.result["test_correct"], name


@pytest.mark.slow
def test_the_readme_s_recipe_is_the_bundled_one(trained: dict[int, dict[str, Run]]) -> None:
    for runs in trained.values():
        assert runs["readme"].weight_bytes == runs["digits"].weight_bytes


@pytest.mark.parametrize("page", GUIDE)
def test_site_profiles_of_the_guide_are_taken(page: str, tmp_path: Path) -> None:
    for file in write_files(GUIDE[page], tmp_path):
        if file.suffix == ".toml":
            assert load(str(file), []).sbatch


def test_files_named_in_the_readme_exist() -> None:
    [tree] = [block.text for block in blocks(README) if not block.kind]
    for line in tree.splitlines():
        assert (PROJECT / line.split()[0]).is_dir()


def paths_in(page: Path) -> Iterator[str]:
    """The files of the project that a page names."""
    for name in re.findall(r"[`(]?((?:[\w.-]+/)+[\w.-]*\w)", page.read_text()):
        if name.split("/")[0] in ("launcher", "tests", "recipes", ".ci"):
            yield name


@pytest.mark.parametrize("page", [CONTRIBUTING, *PAGES.values()], ids=lambda page: page.stem)
def test_files_of_the_project_that_a_page_names_exist(page: Path) -> None:
    for name in paths_in(page):
        assert (PROJECT / name).exists(), name
