"""The test cluster itself: what the other SLURM tests rely on. Takes 45 s, mostly waiting."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import PREFIX, Cluster, missing, slurm_cluster

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

BOTH = ("--nodes=2", "--ntasks-per-node=1", "--exclusive", "--open-mode=append")
SLEEPER = "echo start ${SLURM_RESTART_COUNT:-0}\nsrun sh -c 'echo task; exec sleep 600'"
TALK = """\
import os, socket, time
if os.environ["SLURM_NODEID"] == "0":
    with socket.create_server(("", 5000)) as server:  # its own name leads it to loopback
        peer, address = server.accept()
        print(peer.recv(100).decode(), "from", address[0])
else:
    for attempt in range(300):
        try:
            peer = socket.create_connection(("n1", 5000), timeout=10)
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    peer.sendall(("hello of " + socket.gethostname()).encode())
"""


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: paths of sockets end at 107 characters."""
    return tmp_path_factory.mktemp("t")


def script(folder: Path, *lines: str) -> Path:
    path = folder / "job.sh"
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return path


def output_with(path: Path, words: str, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while not path.exists() or words not in path.read_text():
        assert time.monotonic() < deadline, f"no {words!r} in {path}"
        time.sleep(0.2)
    return path.read_text()


def test_srun_of_a_two_node_job_prints_two_host_names(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    job = cluster.submit(script(tmp_path, "srun hostname"), *BOTH, f"--output={out}")
    assert cluster.wait(job, "COMPLETED", timeout_s=60) == "COMPLETED"
    assert sorted(out.read_text().split()) == cluster.nodes == ["n1", "n2"]


def test_srun_from_outside_a_job_runs_on_the_nodes(cluster: Cluster) -> None:
    assert sorted(cluster.run("srun", "--nodes=2", "hostname").split()) == cluster.nodes


def test_the_nodes_of_a_job_reach_each_other_by_name(cluster: Cluster, tmp_path: Path) -> None:
    out, talk = tmp_path / "out.txt", tmp_path / "talk.py"
    talk.write_text(TALK)
    lines = script(tmp_path, f"srun '{sys.executable}' '{talk}'")
    job = cluster.submit(lines, *BOTH, f"--output={out}")
    cluster.wait(job, "COMPLETED", timeout_s=90)
    assert out.read_text() == f"hello of n2 from {cluster.addresses['n2']}\n"


def test_a_preempted_job_is_requeued_with_restart_count_1(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    low = cluster.submit(script(tmp_path, SLEEPER), *BOTH, f"--output={out}")
    output_with(out, "task\ntask\n")
    high = cluster.submit(script(tmp_path, "srun true"), *BOTH, "-phigh", "--output=/dev/null")
    cluster.wait(high, "COMPLETED", timeout_s=90)
    cluster.wait(low, "RUNNING", timeout_s=90)
    assert "start 0\n" in output_with(out, "start 1\n")
    assert cluster.job(low)["Restarts"] == "1"
    cluster.run("scancel", str(low))
    cluster.wait(low, "CANCELLED", timeout_s=60)
    assert [cluster.processes(node) for node in cluster.nodes] == [[], []]


def test_a_killed_node_makes_its_job_requeue_within_90_s(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    job = cluster.submit(script(tmp_path, SLEEPER), *BOTH, f"--output={out}")
    output_with(out, "task\ntask\n")
    assert "sleep 600" in [process.command for process in cluster.processes("n2")]
    cluster.kill_node("n2")
    assert cluster.processes("n2") == []
    cluster.wait(job, "PENDING", timeout_s=90)
    assert cluster.job(job)["Restarts"] == "1"
    cluster.start_node("n2")
    cluster.wait(job, "RUNNING", timeout_s=90)
    cluster.run("scancel", str(job))
    cluster.wait(job, "CANCELLED", timeout_s=60)


def test_a_cut_node_is_silent_until_it_is_healed(cluster: Cluster) -> None:
    slurmd = (cluster.addresses["n1"], 6818)
    cluster.cut("n1")
    with pytest.raises(OSError, match=r"timed out|No route"):
        socket.create_connection(slurmd, timeout=1)
    cluster.heal("n1")
    socket.create_connection(slurmd, timeout=30).close()


def test_two_clusters_at_once_leave_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    with slurm_cluster(tmp_path / "other", nodes=1, cpus=1) as other:
        assert other.name != cluster.name
        out = tmp_path / "out.txt"
        lines = script(tmp_path, "setsid nohup sleep 600 &", "echo started", "sleep 600")
        other.submit(lines, f"--output={out}")
        output_with(out, "started")
        spaces = {path.stat().st_ino for path in Path("/run/netns").glob(f"{other.name}-*")}
        assert len(spaces) == 2
        assert left_behind(other.name, tmp_path, spaces) != []
    assert left_behind(other.name, tmp_path, spaces) == []
    assert sorted(cluster.run("srun", "--nodes=2", "hostname").split()) == cluster.nodes


def test_a_failed_start_tells_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    with (
        pytest.raises(TimeoutError, match="NoSuchOption"),
        slurm_cluster(tmp_path / "broken", extra=["NoSuchOption=1"]),
    ):
        pytest.fail("it started")
    assert left_behind("no bridge", tmp_path, set()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    killed = tmp_path / "killed"
    code = (
        "import os, pathlib, slurm_cluster\n"
        f"with slurm_cluster.slurm_cluster(pathlib.Path({str(killed)!r}), nodes=1) as cluster:\n"
        "    print(cluster.name, flush=True)\n"
        "    os.kill(os.getpid(), 9)"
    )
    here = Path(__file__).parent
    run = [sys.executable, "-c", code]
    name = subprocess.run(run, cwd=here, stdout=subprocess.PIPE, text=True, check=False).stdout
    spaces = {path.stat().st_ino for path in Path("/run/netns").glob(f"{name.strip()}-*")}
    assert len(spaces) == 2
    assert left_behind("no bridge", killed, spaces) != []
    with slurm_cluster(tmp_path / "next", nodes=1) as cluster:
        assert cluster.name.startswith(PREFIX)
        assert all(path.exists() for path in owners())
        assert left_behind("no bridge", killed, set()) == []  # numbers of namespaces are used anew


def owners() -> list[Path]:
    """The processes that bridges belong to."""
    aliases = Path("/sys/class/net").glob(f"{PREFIX}*/ifalias")
    return [Path("/proc") / pid for alias in aliases if (pid := alias.read_text().strip())]


def left_behind(name: str, folder: Path, spaces: set[int]) -> list[str]:
    """Links, namespaces, mounts and processes of a cluster that lived in that folder."""
    found = [str(path) for path in Path("/sys/class/net").iterdir() if path.name.startswith(name)]
    found += [str(path) for path in Path("/run/netns").glob(f"{name}-*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "ns/net").stat().st_ino in spaces
            environment = (process / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if process.name != str(os.getpid()) and (inside or os.fsencode(folder) in environment):
            found.append(f"{process}: {(process / 'cmdline').read_bytes()!r}")
    return found
