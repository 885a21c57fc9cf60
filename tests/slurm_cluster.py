"""A real SLURM cluster on one machine: each host is a network namespace on a bridge.

This is the plain make; `strict_cluster` has another, set up as large sites are.

The controller (`ctl`) is a host like the nodes, so two clusters share no port and nothing listens
outside the bridge. Whatever lives in a cluster's namespaces is killed at exit; what a killed test
run could not take down, the next one does. Only `ip netns`'s mount of /run/netns stays.
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
from typing import ClassVar, NamedTuple

PREFIX = "lsc"  # of bridges (lsc0), of namespaces and links (lsc0-n1)
TOOLS = ("ip", "nsenter", "unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
REMEDY = "apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge iproute2"

# Times are in seconds. A requeued job waits for cred_expire + 1; 5 is the least, below it counts as
# the default of 120. It is also what a job may take from its allocation to its start on a busy
# machine. A silent node is given up about MessageTimeout + SlurmdTimeout later, and its jobs are
# requeued. KillWait lies between SIGTERM and SIGKILL. MinJobAge is how long scontrol knows an ended
# job. CPUs and RealMemory (MiB) exist on paper only.
CONFIG = """\
ClusterName={name}
SlurmctldHost=ctl({network}.2)
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MessageTimeout=5
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
{extra}
NodeName=n[1-{nodes}] NodeAddr={network}.[3-{last}] CPUs={cpus} RealMemory=16384 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=grace Nodes=ALL MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=cheap Nodes=ALL MaxTime=60 PriorityTier=1 PreemptMode=CANCEL
"""


class Process(NamedTuple):
    """A process on a node; its pid is valid on the whole machine."""

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
    itself: ClassVar[str | None] = "127.0.1.1"  # where a host finds its own name, as on Debian

    def run(self, *argv: str | Path, timeout_s: float = 60) -> str:
        """The output of a client command; RuntimeError with its stderr when it fails."""
        return _run(*argv, env={**os.environ, **self.env}, wait_s=timeout_s)

    def submit(self, script_path: Path, *options: str) -> int:
        """The id of a new job."""
        return int(self.run("sbatch", "--parsable", *options, script_path).split(";")[0])

    def job(self, job: int) -> dict[str, str]:
        """What `scontrol show job` says of it: JobState, Restarts, Reason, NodeList, ..."""
        return _fields(self.run("scontrol", "show", "job", "-o", str(job)))

    def state(self, job: int) -> str:
        """RUNNING, COMPLETING and so on, in scontrol's words."""
        return self.job(job)["JobState"]

    def wait(self, job: int, *states: str, timeout_s: float) -> str:
        """The first of `states` that the job is seen in; who waits for long looks once a second."""
        deadline, pause_s = time.monotonic() + timeout_s, 0.1
        while (now := self.job(job))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is not {states} after {timeout_s} s but {now}")
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, 1)
        return now["JobState"]

    def node_state(self, node: str) -> str:
        """IDLE, ALLOCATED, DOWN+NOT_RESPONDING and so on."""
        return _fields(self.run("scontrol", "show", "node", "-o", node))["State"]

    def cut(self, node: str) -> None:
        """Take the node's link down: packets vanish, no connection is reset."""
        _ip(f"link set {self.name}-{node} down")

    def heal(self, node: str) -> None:
        """Take the node's link up again; jobs start on it some seconds later."""
        _ip(f"link set {self.name}-{node} up")

    def processes(self, node: str) -> list[Process]:
        """Who lives on the node apart from slurmd; the slurmstepd of a running step does."""
        found = []
        for pid in _pids(f"{self.name}-{node}"):
            with suppress(OSError):  # it ended in between
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append(Process(pid, words.decode(errors="replace").strip()))
        return [one for one in found if not one.command.startswith("slurmd ")]

    def kill_node(self, node: str) -> None:
        """SIGKILL for all on the node. Connections get closed: for a loss of power `cut` first."""
        _kill(f"{self.name}-{node}")
        for daemon in self.daemons.pop(node, []):
            daemon.kill()  # it may have been about to enter the namespace
            daemon.wait()

    def stop_controller(self) -> None:
        """End slurmctld, as an upgrade or a move to another machine does; jobs run on."""
        daemon = self.daemons["ctl"].pop()
        daemon.terminate()
        daemon.wait()

    def start_controller(self) -> None:
        """Start slurmctld; it reads its state and answers some seconds later."""
        self.start("ctl", "slurmctld", "-D")

    def start_node(self, node: str, timeout_s: float = 60) -> None:
        """Start slurmd and wait until the controller counts the node as up."""
        self.start(node, "slurmd", "-D", "-N", node)
        pid = self.daemons[node][-1].pid

        def up() -> bool:  # after a quick restart the controller has not missed it: look at both
            ready = int((self.folder / f"slurmd-{node}.pid").read_text()) == pid
            return ready and self.node_state(node).split("+")[0] in {"IDLE", "MIXED", "ALLOCATED"}

        self.until(up, f"slurmd of {node} is up", timeout_s)

    def prepare(self) -> None:
        """Do what another make needs before its controller starts; munged listens already."""

    def start(self, host: str, *argv: str) -> None:
        """Start a daemon on a host, with the cluster's /etc/hosts and a host name of its own."""
        script = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self.name}-{host}", "unshare", "--uts", "--mount"]
        line = [*enter, "sh", "-c", script, "sh", str(self.folder / f"hosts-{host}"), host, *argv]
        env = {**os.environ, **self.env}
        with (self.folder / f"{host}.log").open("ab") as log:  # in a session that gets no Ctrl-C
            one = subprocess.Popen(line, env=env, stdout=log, stderr=log, start_new_session=True)
        self.daemons.setdefault(host, []).append(one)

    def until(self, done: Callable[[], bool], goal: str, timeout_s: float) -> None:
        """Wait for a goal; TimeoutError with the logs, at once when a daemon has died."""
        deadline, cause = time.monotonic() + timeout_s, ""
        while True:
            ends = [one.poll() for ones in self.daemons.values() for one in ones]
            try:
                if done():
                    return
            except (OSError, RuntimeError, ValueError) as error:
                cause = str(error)
            if any(end is not None for end in ends) or time.monotonic() > deadline:
                logs = [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
                raise TimeoutError("\n".join([f"not so: {goal} {cause}", *logs]))
            time.sleep(0.1)


@contextmanager
def slurm_cluster(
    folder: Path,
    nodes: int = 2,
    cpus: int = 2,
    extra: Sequence[str] = (),
    make: type[Cluster] = Cluster,
) -> Iterator[Cluster]:
    """A cluster of `nodes` hosts n1, n2, ... with `cpus` each, all its files below `folder`.

    `extra` are lines of slurm.conf: `KillWait=20`, `PartitionName=DEFAULT GraceTime=10`.
    """
    slot = _claim()
    network, folder = f"198.18.{slot}", folder.resolve()
    names = [f"n{number}" for number in range(1, nodes + 1)]
    addresses = {host: f"{network}.{2 + place}" for place, host in enumerate(["ctl", *names])}
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    cluster = make(f"{PREFIX}{slot}", folder, names, addresses, env)
    try:
        _write_files(cluster, network, cpus, extra)
        _add_network(cluster, network)
        files = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "seed")]
        files.append(f"--socket={folder}/munge.sock")  # -f: where only root may enter, too
        cluster.start("ctl", "munged", "-F", "-f", *files)
        cluster.until((folder / "munge.sock").exists, "munged listens", 30)
        cluster.prepare()
        cluster.start_controller()
        for node in names:
            cluster.start_node(node)
        yield cluster
    finally:
        _tear_down(cluster.name)
        for host in list(cluster.daemons):
            cluster.kill_node(host)  # all are dead: this takes them off the process table


def missing() -> str | None:
    """Why no cluster can run here, with the remedy; None when one can."""
    if os.geteuid() != 0:
        return "SLURM's test cluster makes network namespaces: run the tests as root"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(absent)} in PATH: {REMEDY}"
    try:
        _run("unshare", "--net", "--uts", "--mount", "sh", "-c", "ip link add name x type bridge")
    except RuntimeError as error:
        return f"run this in a virtual machine or a privileged container: {error}"
    return None


def _write_files(cluster: Cluster, network: str, cpus: int, extra: Sequence[str]) -> None:
    folder, count, more = cluster.folder, len(cluster.nodes), "\n".join(extra)
    if len(str(folder)) > 75:  # 107 for a socket like spool-n1/n1_12.4294967291
        raise ValueError(f"too long for the path of a socket: {folder}")
    for part in ("state", *(f"spool-{node}" for node in cluster.nodes)):
        (folder / part).mkdir(parents=True)
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    values = {"network": network, "folder": folder, "cpus": cpus, "extra": more}
    config = CONFIG.format(name=cluster.name, nodes=count, last=count + 2, **values)
    (folder / "slurm.conf").write_text(config)
    # Unused, but slurmd loads it; unlike the others this one starts without a cgroup file system.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for own in cluster.addresses:
        known = cluster.addresses | ({own: cluster.itself} if cluster.itself else {})
        lines = [f"{address} {host}" for host, address in known.items()]
        (folder / f"hosts-{own}").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))


def _add_network(cluster: Cluster, network: str) -> None:
    _ip(f"address add {network}.1/24 dev {cluster.name}")
    for host, address in cluster.addresses.items():
        space = f"{cluster.name}-{host}"
        _ip(f"netns add {space}")
        _ip(f"link add {space} up master {cluster.name} type veth peer name eth0 netns {space}")
        _ip(f"-n {space} address add {address}/24 dev eth0")
        _ip(f"-n {space} link set eth0 up")
        _ip(f"-n {space} link set lo up")


def _claim() -> int:
    """The number of a new bridge, after removing those whose owner (alias: its pid) is gone."""
    with Path("/etc/hosts").open() as lock:  # two runs may want to take, or remove, the same one
        fcntl.flock(lock, fcntl.LOCK_EX)
        for alias in Path("/sys/class/net").glob(f"{PREFIX}*/ifalias"):
            with suppress(OSError):  # its owner is removing it
                owner = alias.read_text().strip()
                if owner and not Path(f"/proc/{owner}").exists():
                    _tear_down(alias.parent.name)
        slot = next(n for n in range(256) if not Path(f"/sys/class/net/{PREFIX}{n}").exists())
        _ip(f"link add {PREFIX}{slot} up type bridge")
        _ip(f"link set {PREFIX}{slot} alias {os.getpid()}")
        return slot


def _tear_down(name: str) -> None:
    """Remove what is there of a cluster: processes, links, namespaces, bridge."""
    _kill(f"{name}-*")
    with suppress(RuntimeError):  # no freezer: none of the clusters that use it was here
        freezer(f"{name}-", "remove")
    for link in Path("/sys/class/net").glob(f"{name}-*"):
        _ip(f"link delete {link.name}")  # it would go with its namespace, but later
    for space in Path("/run/netns").glob(f"{name}-*"):
        _ip(f"netns delete {space.name}")
    _ip(f"link delete {name}")


def _pids(spaces: str) -> list[int]:
    """Processes in the namespaces whose names fit a glob pattern, zombies left out."""
    wanted = {path.stat().st_ino for path in Path("/run/netns").glob(spaces)}
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # it ended in between, or is a zombie
            if path.stat().st_ino in wanted:
                found.append(int(path.parts[2]))
    return found


def _kill(spaces: str) -> None:
    """SIGKILL until nobody is left: a process may fork while others are being killed."""
    deadline = time.monotonic() + 30
    while pids := _pids(spaces):
        if time.monotonic() > deadline:
            raise TimeoutError(f"killed, but still there after 30 s: {pids}")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        if time.monotonic() > deadline - 29:  # SLURM was killed in the middle of killing a step
            with suppress(RuntimeError):
                freezer(spaces.removesuffix("*"), "thaw")


def freezer(prefix: str, what: str) -> None:
    """Thaw, or remove, the cgroups of hosts: a frozen process hears SIGKILL when it is thawed.

    RuntimeError where the kernel has no freezer of cgroup v1.
    """
    do = {"thaw": 'echo THAWED > "$1/freezer.state"', "remove": 'rmdir "$1"'}[what]
    script = """
        mount -t cgroup -o freezer none /sys/fs/cgroup || exit
        find /sys/fs/cgroup -depth -type d -path "/sys/fs/cgroup/$1*" -exec sh -c "$2" sh {} \\;
    """
    _run("unshare", "--mount", "sh", "-c", script, "sh", prefix, do)


def _ip(line: str) -> None:
    _run("ip", *line.split())


def _run(*argv: str | Path, env: dict[str, str] | None = None, wait_s: float = 60) -> str:
    line = [str(word) for word in argv]
    ran = subprocess.run(line, env=env, capture_output=True, text=True, timeout=wait_s, check=False)
    if ran.returncode:
        raise RuntimeError(f"{line} ended with {ran.returncode}: {ran.stderr}{ran.stdout}")
    return ran.stdout


def _fields(line: str) -> dict[str, str]:
    return dict(reversed(re.findall(r"(\S+?)=(\S*)", line)))  # the first one of a key wins
