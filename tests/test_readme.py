"""The README is true: its commands run and say what it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from training import PROJECT, clean_environment

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the README with the lines it shows below it."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(BLOCKS).splitlines():
        if line.startswith("$ "):
            found.append((line[2:].partition(" #")[0].strip(), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def words_of(line: str) -> str:
    """A line without what differs from run to run: times, rates and names of runs."""
    line = re.sub(r"\d+\.\d s, [\d,]+ samples/s", "S s, R samples/s", line)
    return re.sub(r"runs/(\w+)-\d{8}-\d{6}-[0-9a-f]{4}", r"runs/\1-ID", line)


def test_the_two_commands_come_first() -> None:
    (first, _), (second, _) = commands()[:2]
    assert first == "pip install uv && uv run launcher run digits --nproc 2"
    assert second == "uv run pytest"


def test_the_check_runs_the_readme_s_test_command() -> None:
    assert f"\n{commands()[1][0]}" in (PROJECT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_launcher_commands_run_and_say_what_is_shown(tmp_path: Path) -> None:
    ran = 0
    for line, shown in commands():
        words = shlex.split(line)
        if words[0] != "launcher":
            assert words[0] in ("pip", "uv"), f"who runs `{line}`?"
            continue
        if words[1] == "submit" and "--local" not in words:
            words.append("--dry-run")  # here is no cluster
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        said = [words_of(line) for line in done.stdout.splitlines()]
        for expected in shown:
            assert words_of(expected) in said, f"`{line}` does not say: {expected}"
        ran += 1
    assert ran >= 5


def test_files_named_in_the_readme_exist() -> None:
    tree = re.search(r"## The files\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert tree
    for line in tree[1].splitlines():
        assert (PROJECT / line.split()[0]).is_dir()
    assert (PROJECT / "slurm" / "README.md").is_file()
