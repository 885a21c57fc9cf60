"""What is asked of the operating system, and how paths are told."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from training import clean_environment

from launcher import processes
from launcher.processes import HERE, cores, shown


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


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "1"}, 1),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "64"}, 4),
        ({"SLURM_CPUS_PER_TASK": ""}, 4),
        ({"SLURM_CPUS_ON_NODE": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4"}, 2),
    ],
)
def test_no_more_cores_are_used_than_slurm_gave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: Mapping[str, str], expected: int
) -> None:
    monkeypatch.setattr(processes, "_CGROUPS", tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cores() == expected


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 4),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/of/the/host", {"cpu.max": "100000 100000"}, 1),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/x/y", {"cpu/x/cpu.cfs_quota_us": "100000",
                                "cpu/x/cpu.cfs_period_us": "50000"}, 2),
        ("5:cpuset:/", {"cpu.max": "100000 100000"}, 4),
    ],
)  # fmt: skip
def test_a_containers_quota_counts_as_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cgroup: str,
    files: Mapping[str, str],
    expected: int,
) -> None:
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/\n{cgroup}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(processes, "_CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "_OWN_CGROUPS", tmp_path / "cgroup")
    assert cores() == expected


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group that may use half a core, of the version that the machine has."""
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    root = first if first.is_dir() else second
    group = root / f"launcher-{os.getpid()}"
    file, text = ("cpu.cfs_quota_us", "50000") if root == first else ("cpu.max", "50000 100000")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error}): run the tests as root")
    try:
        (group / file).write_text(text)
        yield group
    finally:
        group.rmdir()


def test_a_process_in_a_real_control_group_knows_its_quota(half_a_core: Path) -> None:
    script = (
        f"import os; open({str(half_a_core / 'cgroup.procs')!r}, 'w').write(str(os.getpid()));"
        "from launcher.processes import cores; print(cores())"
    )
    env = clean_environment()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout == "1\n", done.stderr
