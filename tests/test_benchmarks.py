"""The benchmarks run; how fast they find anything is not for a test to say."""

import re
import sys
from pathlib import Path

import pytest
from training import PROJECT, command


@pytest.mark.slow
def test_the_benchmark_of_speed_prints_its_table(tmp_path: Path) -> None:
    names = "limit 1,launcher 2"
    words = ["--work=small", "--rounds=1", f"--only={names}"]
    script = PROJECT / "tests" / "benchmarks" / "speed.py"
    done = command(sys.executable, script, *words, cwd=tmp_path, timeout_s=250)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[-2:] == ["x", "limit"]
    assert [" ".join(row.split()[:2]) for row in rows] == names.split(",")
    assert all(float(number) > 0 for row in rows for number in row.split()[2:])


@pytest.mark.slow
def test_the_benchmark_of_precision_prints_its_table(tmp_path: Path) -> None:
    words = ["--work=small", "--rounds=1", "--only=bf16"]
    script = PROJECT / "tests" / "benchmarks" / "precision.py"
    done = command(sys.executable, script, *words, cwd=tmp_path, timeout_s=250)
    assert done.returncode == 0, done.stderr
    machine, header, *rows = done.stdout.splitlines()
    assert "bf16 units:" in machine
    assert header.split() == ["small", "step", "ms", "x", "plain"]
    assert [row.split()[0] for row in rows] == ["plain", "bf16"]
    assert all(float(number) > 0 for row in rows for number in row.split()[1:])


@pytest.mark.slow
def test_the_benchmark_of_scripts_prints_its_table(tmp_path: Path) -> None:
    script = PROJECT / "tests" / "benchmarks" / "scripts.py"
    done = command(sys.executable, script, "--rounds=1", cwd=tmp_path, timeout_s=250)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["first", "line", "met", "end"]
    assert [row.split()[0] for row in rows] == ["torchrun", "launcher"]
    assert all(float(number) > 0 for row in rows for number in row.split()[1:])


@pytest.mark.slow
def test_the_benchmark_of_sharding_says_what_a_save_blocks(tmp_path: Path) -> None:
    script = PROJECT / "tests" / "benchmarks" / "sharded.py"
    words = ["--small", "--rounds=1", "--only=saves"]
    done = command(sys.executable, script, *words, cwd=tmp_path, timeout_s=250)
    assert done.returncode == 0, done.stderr
    gathered, shares = re.findall(r"(\d+) ms", done.stdout)
    assert int(gathered) > 0
    assert int(shares) > 0
