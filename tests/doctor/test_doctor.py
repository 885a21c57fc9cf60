"""The doctor: each check finds what it looks for, with real processes and a real cluster."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from slurm_cluster import Cluster
from training import clean_environment, started, wait_for

from launcher.cli.main import main
from launcher.doctor import checks, doctor
from launcher.doctor.checks import Check
from launcher.doctor.doctor import examine, process_checks, vet
from launcher.errors import NodeFailed
from launcher.launch import launch
from launcher.launch.launch import Nodes
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm import doctor as doctor_slurm

pytestmark = pytest.mark.warm


def on_slurm(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.slurm(test))


@pytest.fixture(autouse=True)
def _nothing_of_a_surrounding_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)


def cli(*words: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, words)], catch_exceptions=False)


def named(found: list[Check], name: str) -> Check:
    return next(check for check in found if check.name == name)


def test_a_sound_machine_passes_its_own_checks_in_a_moment(tmp_path: Path) -> None:
    began = time.monotonic()
    found = checks.node_checks(tmp_path)
    assert time.monotonic() - began < 2
    names = ["versions", "host name", "port", "disk", "file system", "clock"]
    assert [check.name for check in found] == names
    assert all(check.ok for check in found), found
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a file system of its own: run the tests as root, where mount is allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails(small_disk: Path) -> None:
    found = checks.disk(small_disk)
    assert not found.ok
    assert found.detail == f"`{small_disk}` cannot be written: No space left on device"
    assert "free space" in found.remedy
    assert list(small_disk.iterdir()) == []


def test_a_read_only_disk_fails(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = checks.node_checks(small_disk)
    assert [check.name for check in found if not check.ok] == ["disk", "file system", "clock"]
    assert "Read-only file system" in named(found, "disk").detail
    assert all(check.remedy for check in found if not check.ok)


def test_a_folder_that_is_not_there_fails(tmp_path: Path) -> None:
    assert "No such file or directory" in checks.disk(tmp_path / "nowhere").detail


def test_a_disk_that_never_answers_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_ANSWER_S", 0.2)
    monkeypatch.setattr(checks, "_write_and_read", lambda _: time.sleep(2))
    assert checks.disk(tmp_path).detail.endswith("no answer in 0.2 s")


@pytest.mark.parametrize("off_s", [-3600, 60, 7])
def test_a_clock_that_is_off_fails(
    off_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + off_s)
    found = checks.clock(tmp_path)
    assert not found.ok
    assert found.figures["s"] == pytest.approx(off_s, abs=2)
    assert f"{found.figures['s']:+.2f} s from that of" in found.detail


def test_a_host_name_without_an_address_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody.invalid")
    found = checks.host_name()
    assert (found.ok, "nobody.invalid has no address" in found.detail) == (False, True)
    assert "/etc/hosts" in found.remedy


def test_a_package_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PACKAGES", ("torch", "no-such-package"))
    assert checks.versions().detail == "no-such-package is not installed"


CREDENTIALS = [
    ({"WANDB_API_KEY": "k" * 40}, "", "credentials for api.wandb.ai"),
    ({}, "machine api.wandb.ai login user password secret", "credentials for api.wandb.ai"),
    ({"WANDB_BASE_URL": "https://w.example/x"}, "machine w.example login u password p", "w.exa"),
    ({}, "machine other.example login user password secret", "no credentials"),
    ({}, "not a netrc file", "no credentials"),
    ({}, "", "no credentials"),
]


@pytest.mark.parametrize(("env", "stored", "words"), CREDENTIALS)
def test_credentials_are_noticed_and_never_shown(
    env: dict[str, str],
    stored: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(stored)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = checks.wandb()
    assert (found.ok, words in found.detail) == (True, True)
    assert "secret" not in found.detail
    assert "kkk" not in found.detail


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.floors), 3])
def test_all_processes_come_up_and_talk(nproc: int, tmp_path: Path) -> None:
    found = examine(Nodes(nproc, cpu=True), tmp_path / "runs")
    assert all(check.ok for check in found), found
    assert named(found, "processes").detail.startswith(f"{nproc} of {nproc} came up in ")
    assert named(found, "devices").detail == f"{nproc} x cpu"
    assert ("all-reduce" in [check.name for check in found]) == (nproc > 1)
    if nproc > 1:
        figures = named(found, "all-reduce").figures
        assert figures["bytes_per_s"] > 1e6
        assert 0 < figures["s"] < 1
    assert list(tmp_path.iterdir()) == []


def with_two_instead_of_three(argv: list[str]) -> list[str]:
    at = argv.index("--num_processes") + 1
    return [*argv[:at], "2", *argv[at + 1 :]]


def as_accelerate_test_would(argv: list[str]) -> list[str]:
    return ["--cpu" if word == "--multi_gpu" else word for word in argv]


WRONG_COUNTS = [(with_two_instead_of_three, "2 of 3 met"), (as_accelerate_test_would, "1 of 3 met")]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "words"), WRONG_COUNTS)
def test_fewer_processes_than_asked_fail(
    change: Callable[[list[str]], list[str]],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = launch.command
    monkeypatch.setattr(doctor, "command", lambda *a, **k: change(command(*a, **k)))
    monkeypatch.chdir(tmp_path)
    done = cli("--nproc", 3, "--cpu", "--json")
    told = json.loads(done.stdout)
    found = {check["name"]: check for node in told["nodes"].values() for check in node}
    assert (done.exit_code, told["ok"], found["processes"]["ok"]) == (1, False, False)
    assert found["processes"]["detail"].startswith(words)


BROKEN_DEVICE = """\
import os, sys
from launcher.node import probe
if os.environ.get("RANK") == "1":
    def broken():
        raise RuntimeError("CUDA error: uncorrectable ECC error")
    probe.use_device = broken
sys.exit(probe.main(sys.argv[1:]))
"""
DIES = "import os; os.environ.get('RANK') == '1' and os.kill(os.getpid(), 9)\n" + BROKEN_DEVICE
HANGS = "import os, time; os.environ.get('RANK') == '1' and time.sleep(600)\n" + BROKEN_DEVICE
NO_TORCH = "import no_such_torch"

TROUBLES = [
    (BROKEN_DEVICE, ["devices", "processes"], "rank 1: RuntimeError: CUDA error: uncorrectable"),
    (DIES, ["processes"], "0 of 2 met: rank 1 ended with exit code -9"),
    (HANGS, ["processes"], "0 of 2 met: no answer in 20 s"),
    (NO_TORCH, ["devices", "processes"], "ModuleNotFoundError: No module named 'no_such_torch'"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "failed", "words"), TROUBLES)
def test_what_happens_to_a_process_is_said(
    program: str,
    failed: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken.py").write_text(program)
    command = launch.command

    def changed(*given: Any, **options: Any) -> list[str]:
        argv = command(*given, **options)
        argv[argv.index("agent") + 2] = "0"  # forks: none, for a program that is not ours
        at = argv.index("launcher.node.start", argv.index("agent"))
        return [*argv[: at - 1], str(tmp_path / "broken.py"), *argv[at + 2 :]]

    monkeypatch.setattr(doctor, "command", changed)
    timeout_s = 20 if program == HANGS else 100
    found = process_checks(Nodes(2, cpu=True), tmp_path, timeout_s)
    # A rank that is not at fault may be ended before it has used its device.
    assert {check.name for check in found if not check.ok} >= set(failed), found
    assert any(words in check.detail for check in found), found
    assert all(check.remedy for check in found if not check.ok)


@pytest.mark.slow
def test_a_sound_node_is_let_train_and_a_bad_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    vet(run, Nodes(2, cpu=True), "n1")
    assert "processes: 2 of 2 came up in " in (said := capsys.readouterr().out)
    assert "all-reduce: 17 MB at " in said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody.invalid")
    with pytest.raises(NodeFailed, match="node n1 failed its checks: host name: nobody") as caught:
        vet(run, Nodes(1, cpu=True), "n1")
    assert "/etc/hosts" in str(caught.value.hint)
    assert caught.value.own_fault


def test_what_may_be_the_networks_fault_blames_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Check("processes", False, "2 of 4 met", "see firewalls")
    monkeypatch.setattr(doctor, "process_checks", lambda *_, **__: [lost])
    with pytest.raises(NodeFailed, match="2 of 4 met") as caught:
        vet(RunDir(tmp_path), Nodes(2, 2, 0, "n1:2000", cpu=True), "n1")
    assert not caught.value.own_fault


def test_a_full_shared_disk_blames_no_node(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "process_checks", lambda *_, **__: [])
    with pytest.raises(NodeFailed, match="No space left on device") as caught:
        vet(RunDir(small_disk), Nodes(1, cpu=True), "n1")
    assert not caught.value.own_fault


FACTS = {"hosts": ["n1", "n2"], "clocks": [100.0, 100.1], "seen": [True, True], "stage": "done"}
TALKS = [
    ({}, []),
    ({"clocks": [100.0, 107.0]}, ["clocks"]),
    ({"seen": [True, False]}, ["shared folder"]),
]


@pytest.mark.parametrize(("change", "failed"), TALKS)
def test_nodes_with_other_clocks_or_disks_fail(
    change: dict[str, Any], failed: list[str], tmp_path: Path
) -> None:
    facts = FACTS | {"bytes": 1, "bytes_per_s": 1.0, "latency_s": 1.0} | change
    found = doctor._judge_talk(Nodes(1, 2, 0, "n1:1"), [facts], tmp_path)
    assert [check.name for check in found if not check.ok] == failed
    assert all("n2" in check.detail for check in found if not check.ok)


def test_the_report_says_ok_or_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Check("disk", True, "fast")
    bad = Check("clock", False, "+60 s", "have it set by NTP")
    monkeypatch.setattr("launcher.cli.doctor.examine", lambda *_: [good, bad])
    done = cli()
    lines = [line.split() for line in done.stdout.splitlines()]
    assert (done.exit_code, lines[0]) == (1, [socket.gethostname()])
    assert lines[1] == ["ok", "disk", "fast"]
    assert lines[2] == ["FAILED", "clock", "+60", "s"]
    assert lines[3] == ["hint:", *bad.remedy.split()]
    monkeypatch.setattr("launcher.cli.doctor.examine", lambda *_: [good, replace(bad, ok=True)])
    assert cli().exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "--nodes is for --slurm"),
        (["--sbatch", "reservation=x"], "--reservation is for --slurm"),
        (["--slurm"], "there is no srun here"),
        (["--slurm", "--nodes", "some"], "--nodes some is not one number"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = cli(*words)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def on(cluster: Cluster, node: str, *words: str) -> None:
    """Run a command where a node's processes live: its mounts, its host name."""
    enter = ["nsenter", "--target", str(cluster.daemons[node][-1].pid), "--mount", "--uts"]
    subprocess.run([*enter, *words], check=True)


def test_what_a_node_tells_fits_into_a_line_of_srun(capfd: pytest.CaptureFixture[str]) -> None:
    long = Check(
        "processes", False, "é" * 5000, "see " * 5000, figures={"s": 1.0, "bytes_per_s": 9.9}
    )
    doctor_slurm._tell("n1", [long, replace(long, detail="short", remedy="")])
    lines = capfd.readouterr().out.splitlines()
    found = doctor_slurm._collected("\n".join(["slurmd says something", *reversed(lines), "{"]))
    assert [check.detail[:5] for check in found["n1"]] == ["short", "é" * 5]
    assert all(len(line.encode()) < 1000 for line in lines), [len(line.encode()) for line in lines]


@on_slurm
def test_the_nodes_of_a_cluster_are_checked_together(cluster: Cluster, tmp_path: Path) -> None:
    done = cli("--slurm", "--nodes", 2, "--nproc", 2, "--partition", "high", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"]) == (0, True), told
    assert sorted(told["nodes"]) == ["n1", "n2"]
    for found in told["nodes"].values():
        details = {check["name"]: check["detail"] for check in found}
        assert details["processes"].startswith("4 of 4 came up")
        assert details["devices"] == "2 x cpu"
        assert {"clocks", "shared folder", "all-reduce"} <= details.keys()
    assert list(tmp_path.iterdir()) == []


@on_slurm
def test_a_partition_that_there_is_not_is_said(cluster: Cluster) -> None:
    done = cli("--slurm", "--partition", "nowhere")
    assert (done.exit_code, "invalid partition" in done.stderr) == (2, True), done.stderr


@on_slurm
def test_a_job_that_waits_is_told_and_goes_with_the_doctor(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ("doctor", "--slurm", "--sbatch", "hold")
    with started(*words, cwd=tmp_path, env=cluster.env) as process:
        assert process.stderr
        while "queued and waiting for resources" not in (line := process.stderr.readline()):
            assert line
        assert cluster.run("squeue", "--noheader", "--format=%j").strip() == "launcher-doctor"
        process.terminate()
        process.wait(60)
    assert process.returncode == 143
    assert cluster.run("squeue", "--noheader") == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cold
@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0, 0.3, 3])
def test_a_doctor_that_is_ended_leaves_nothing_behind(after_s: float, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "runs").mkdir()
    words = ("doctor", "--nproc", "2", "--cpu")
    with started(*words, cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")}) as process:
        wait_for(lambda: any((tmp_path / "runs").iterdir()), every_s=0.001)
        time.sleep(after_s)
        process.terminate()
        process.wait(60)
    assert process.returncode == 143
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["runs", "tmp"]


@on_slurm
def test_a_node_that_sees_another_folder_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    on(cluster, "n2", "mount", "-t", "tmpfs", "none", str(tmp_path / "runs"))
    try:
        done = cli("--slurm", "--nodes", 2, "--json")
    finally:
        on(cluster, "n2", "umount", str(tmp_path / "runs"))
    told = json.loads(done.stdout)
    failed = {
        node: [check["name"] for check in found if not check["ok"]]
        for node, found in told["nodes"].items()
    }
    assert done.exit_code == 1
    lacking = ["disk", "file system", "clock", "shared folder"]
    assert failed == {"n1": ["processes"], "n2": lacking}


@on_slurm
def test_a_node_that_fails_its_checks_is_left_out_of_the_next_start(
    cluster: Cluster, tmp_path: Path
) -> None:
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    on(cluster, "n1", "hostname", "nobody.invalid")
    try:
        words = ["submit", "digits", "epochs=1", "--run-dir", "r", "--partition", "high", "--json"]
        argv = [sys.executable, "-m", "launcher", *words]
        told = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        job = int(json.loads(told.stdout)["jobs"][0])
        state = cluster.wait(job, "COMPLETED", "FAILED", timeout_s=200)
    finally:
        on(cluster, "n1", "hostname", "n1")
    log = (tmp_path / "r" / "slurm" / f"job-{job}.out").read_text()
    assert state == "COMPLETED", log
    assert "node n1 failed its checks: host name" in log
    folder = SlurmFolder(tmp_path / "r" / "slurm")
    assert list(folder.bad_nodes()) == ["n1"]
    first, second = folder.attempts()
    assert (first.nodes, first.verdict, first.bad_nodes) == ("n1", "failed", ["n1"])
    assert (second.nodes, second.verdict) == ("n2", "completed")
    assert cluster.job(job)["ExcNodeList"] == "n1"
