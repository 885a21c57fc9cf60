"""A real SLURM cluster on one machine: each host is a network namespace on a bridge.

The controller (`ctl`) is a host like the nodes, so two clusters share no port and nothing listens
outside the bridge. All files lie below the caller's folder. Whatever lives in a cluster's
namespaces is killed at exit; what a killed test run could not take down, the next one does.
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PREFIX = "lsc"  # of bridges (lsc0), of namespaces and links (lsc0-n1)
CONTROLLER = "ctl"
UP = {"IDLE", "MIXED", "ALLOCATED", "COMPLETING"}
TOOLS = ("ip", "nsenter", "unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
REMEDY = "apt-get install -y --no-install-recommends slurm-wlm munge iproute2"

# Times are in seconds. AuthInfo's cred_expire (120 by default) is both how long a job may take
# from its allocation to its start and how long a requeued job waits: it makes tests quick, and
# makes launches fail when it is too short for a busy machine. SlurmdTimeout is when a silent node
# is given up; its jobs are requeued then. KillWait lies between SIGTERM and SIGKILL. MinJobAge is
# how long `scontrol show job` knows an ended job. RealMemory (MiB) and CPUs are on paper only.
CONFIG = """\
ClusterName={name}
SlurmctldHost={controller}({network}.2)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort=6817
SlurmdPort=6818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdTimeout=15
KillWait=5
MinJobAge=3600
{extra}
{node_lines}
PartitionName=low Nodes={node_list} Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={node_list} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
# slurmd 22.05 starts its cgroup plugin whatever the other plugins are.
CGROUP_CONFIG = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


class Process(NamedTuple):
    """A process on a node: `pid` is the one every process of this machine sees."""

    pid: int
    command: str


@dataclass
class Cluster:
    """A running cluster; `nodes` are its host names, `env` makes SLURM's commands talk to it."""

    name: str
    folder: Path
    nodes: list[str]
    addresses: dict[str, str]
    env: dict[str, str]
    daemons: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    def run(self, *argv: str | Path, timeout_s: float = 60) -> str:
        """The output of a client command; RuntimeError with its stderr when it fails."""
        done = subprocess.run(
            [str(word) for word in argv],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, script_path: Path, *options: str) -> int:
        """The id of a new job; options come before the script, as for sbatch."""
        return int(self.run("sbatch", "--parsable", *options, script_path).split(";")[0])

    def job(self, job: int) -> dict[str, str]:
        """What `scontrol show job` says of it: JobState, Restarts, Reason, NodeList, ..."""
        return _fields(self.run("scontrol", "show", "job", "-o", str(job)))

    def state(self, job: int) -> str:
        """RUNNING, COMPLETING and so on, in words as scontrol writes them."""
        return self.job(job)["JobState"]

    def wait(self, job: int, *states: str, timeout_s: float) -> str:
        """The first of `states` that the job is seen in, looking every 0.3 s."""
        deadline = time.monotonic() + timeout_s
        while (now := self.job(job))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is not {states} after {timeout_s} s but {now}")
            time.sleep(0.3)
        return now["JobState"]

    def node_state(self, node: str) -> str:
        """IDLE, ALLOCATED, DOWN and so on; a star after it means: does not answer."""
        return _fields(self.run("scontrol", "show", "node", "-o", node))["State"]

    def cut(self, node: str) -> None:
        """Take the node's link down: packets vanish, no connection is reset."""
        _ip("link", "set", f"{self.name}-{node}", "down")

    def heal(self, node: str) -> None:
        """Take the node's link up again."""
        _ip("link", "set", f"{self.name}-{node}", "up")

    def processes(self, node: str) -> list[Process]:
        """Who lives on the node apart from slurmd; a running step's slurmstepd does."""
        found = []
        for pid in _pids(f"{self.name}-{node}"):
            with suppress(OSError):  # it ended in between
                if Path(f"/proc/{pid}/comm").read_text().strip() != "slurmd":
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    found.append(Process(pid, b" ".join(words).decode(errors="replace").strip()))
        return found

    def kill_node(self, node: str) -> None:
        """SIGKILL for slurmd and all else on the node. Its kernel lives on and closes the
        connections: for a loss of power `cut` it first."""
        _kill(lambda: _pids(f"{self.name}-{node}"))
        for daemon in self.daemons.pop(node, []):
            daemon.wait()

    def start_node(self, node: str, timeout_s: float = 60) -> None:
        """Start slurmd and wait until the controller counts the node as up."""
        self.start(node, "slurmd", "-D", "-N", node)
        self.wait_for_node(node, timeout_s)

    def wait_for_node(self, node: str, timeout_s: float) -> None:
        """Wait until slurmd listens and the controller counts the node as up."""

        def up() -> bool:  # after a restart the controller may not know yet that it was down
            written = (self.folder / f"slurmd-{node}.pid").read_text().strip()
            started = int(written or 0) == self.daemons[node][-1].pid
            return started and self.node_state(node).split("+")[0] in UP

        _until(up, f"slurmd of {node} has not registered", timeout_s, self.folder / f"{node}.log")

    def start(self, host: str, *argv: str) -> None:
        """Start a daemon on a host, with the cluster's /etc/hosts and a host name of its own.

        `ip netns exec` would remount /sys, and slurmd then finds no cgroup file system.
        """
        script = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        space = ["nsenter", f"--net=/run/netns/{self.name}-{host}", "unshare", "--uts", "--mount"]
        with (self.folder / f"{host}.log").open("ab") as log:
            daemon = subprocess.Popen(
                [*space, "sh", "-c", script, "sh", str(self.folder / "hosts"), host, *argv],
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then take the cluster down
            )
        self.daemons.setdefault(host, []).append(daemon)


@contextmanager
def slurm_cluster(
    folder: Path, nodes: int = 2, cpus: int = 2, extra: Sequence[str] = ()
) -> Iterator[Cluster]:
    """A cluster of `nodes` hosts n1, n2, ... with `cpus` each, all its files below `folder`.

    `extra` are lines for slurm.conf, before the partitions: `PartitionName=DEFAULT GraceTime=10`.
    """
    names = [f"n{number}" for number in range(1, nodes + 1)]
    slot = _claim()
    hosts = [CONTROLLER, *names]
    cluster = Cluster(
        name=f"{PREFIX}{slot}",
        folder=folder.resolve(),
        nodes=names,
        addresses={host: f"198.18.{slot}.{2 + place}" for place, host in enumerate(hosts)},
        env={"SLURM_CONF": str(folder.resolve() / "slurm.conf")},
    )
    try:
        _write_files(cluster, f"198.18.{slot}", cpus, extra)
        _add_network(cluster, f"198.18.{slot}")
        _start_daemons(cluster)
        yield cluster
    finally:
        _tear_down(cluster.name)
        for daemons in cluster.daemons.values():
            for daemon in daemons:
                daemon.wait()  # killed: only its entry in the process table is left


def missing() -> str | None:
    """Why no cluster can run here, with the remedy; None when one can."""
    if os.geteuid() != 0:
        return "SLURM's test cluster needs root: it makes network namespaces"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(absent)} in PATH: {REMEDY}"
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        return "no cgroup v1 at /sys/fs/cgroup: slurmd 22.05 needs it where systemd does not run"
    attempt = "ip link add name x type bridge && ip link add name y type veth && mount --bind / /"
    trial = ["unshare", "--net", "--uts", "--mount", "sh", "-c", attempt]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"no namespaces or bridges here: {done.stderr.strip()}" if done.returncode else None


def _write_files(cluster: Cluster, network: str, cpus: int, extra: Sequence[str]) -> None:
    folder = cluster.folder
    if len(str(folder / "munge.sock")) > 90:  # the kernel takes 107 characters, slurmd needs some
        raise ValueError(f"too long for the path of a socket: {folder}")
    for part in ("state", *(f"spool-{node}" for node in cluster.nodes)):
        (folder / part).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    text = CONFIG.format(
        name=cluster.name,
        controller=CONTROLLER,
        network=network,
        folder=folder,
        extra="\n".join(extra),
        node_list=",".join(cluster.nodes),
        node_lines="\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={cluster.addresses[node]} "
            f"CPUs={cpus} RealMemory=16384 State=UNKNOWN"
            for node in cluster.nodes
        ),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUP_CONFIG)
    lines = [f"{address} {host}" for host, address in cluster.addresses.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))


def _add_network(cluster: Cluster, network: str) -> None:
    _ip("address", "add", f"{network}.1/24", "dev", cluster.name)
    _ip("link", "set", cluster.name, "up")
    for host, address in cluster.addresses.items():
        space = f"{cluster.name}-{host}"
        _ip("netns", "add", space)
        _ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("link", "set", space, "master", cluster.name, "up")


def _start_daemons(cluster: Cluster) -> None:
    folder, log = cluster.folder, cluster.folder / f"{CONTROLLER}.log"
    options = {"key": "key", "socket": "sock", "pid": "pid", "seed": "seed"}
    files = [
        f"--{option}{'' if option == 'socket' else '-file'}={folder}/munge.{ending}"
        for option, ending in options.items()
    ]
    # --force: for munged a folder that others can't enter is an error; here all is root.
    cluster.start(CONTROLLER, "munged", "--foreground", "--force", *files)
    _until((folder / "munge.sock").exists, "munged has made no socket", 30, log)
    cluster.start(CONTROLLER, "slurmctld", "-D")
    for node in cluster.nodes:
        cluster.start(node, "slurmd", "-D", "-N", node)
    for node in cluster.nodes:
        cluster.wait_for_node(node, timeout_s=60)


def _claim() -> int:
    """The number of a new bridge. Its alias is the pid of its owner; those of the dead are removed.

    The lock keeps two runs from removing the same one, of which the faster then makes it anew.
    """
    lock = os.open("/run", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for alias in Path("/sys/class/net").glob(f"{PREFIX}*/ifalias"):
            owner = alias.read_text().strip()
            if owner and not Path(f"/proc/{owner}").exists():
                _tear_down(alias.parent.name)
        for slot in range(256):
            with suppress(FileExistsError):
                _ip("link", "add", f"{PREFIX}{slot}", "type", "bridge")
                _ip("link", "set", f"{PREFIX}{slot}", "alias", str(os.getpid()))
                return slot
    finally:
        os.close(lock)
    raise RuntimeError("all 256 test clusters are taken")


def _tear_down(name: str) -> None:
    """Remove what is there of a cluster: processes, links, namespaces, bridge."""
    _kill(lambda: _pids(f"{name}-*"))
    for space in [path.name for path in Path("/run/netns").glob(f"{name}-*")]:
        with suppress(RuntimeError):  # was not made yet. Goes with the namespace, but later
            _ip("link", "delete", space)
        _ip("netns", "delete", space)
    _ip("link", "delete", name)


def _pids(space: str) -> list[int]:
    """Processes in the namespaces of that name (a glob pattern), zombies left out."""
    wanted = {path.stat().st_ino for path in Path("/run/netns").glob(space)}
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # it ended in between, or is a zombie
            if path.stat().st_ino in wanted:
                found.append(int(path.parts[2]))
    return found


def _kill(find: Callable[[], list[int]]) -> None:
    """SIGKILL until nobody is found: a process may fork while the others are being killed."""

    def gone() -> bool:
        for pid in (pids := find()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    _until(gone, "killed processes are still there", 30)


def _until(done: Callable[[], bool], trouble: str, timeout_s: float, log: Path | None = None) -> None:
    """Try every 0.1 s; an error counts as not done, and is told when the time is up."""
    deadline, cause = time.monotonic() + timeout_s, ""
    while True:
        try:
            if done():
                return
        except (OSError, RuntimeError) as error:
            cause = f": {error}"
        if time.monotonic() > deadline:
            tail = "\n".join(log.read_text().splitlines()[-30:]) if log else ""
            raise TimeoutError(f"{trouble} after {timeout_s} s{cause}\n{tail}")
        time.sleep(0.1)


def _ip(*argv: str) -> None:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    if "File exists" in done.stderr:
        raise FileExistsError(f"ip {' '.join(argv)}: {done.stderr}")
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr}")


def _fields(line: str) -> dict[str, str]:
    """`A=1 B=c` of scontrol as a dictionary; the first one wins where a key comes twice."""
    return dict(reversed(re.findall(r"(\S+?)=(\S*)", line)))
