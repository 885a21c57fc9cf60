"""A second make of test cluster, set up as large sites are; see `slurm_cluster` for the first.

What differs: processes are tracked in cgroups, so that a signal to a step reaches its tasks' top
processes alone, and nothing that a step started outlives it; an accounting database makes `sacct`
answer, and enforces limits; a prolog and an epilog come around each job, and give it a TMPDIR of
its own; arrays are small; jobs are contained from their allocation on (an `extern` step).
"""

import shutil

import slurm_cluster
from slurm_cluster import Cluster

TOOLS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr", "sacct")
REMEDY = "apt-get update && apt-get install -y --no-install-recommends mariadb-server slurmdbd"
MAX_ARRAY = 6  # tasks 0 to 5

CONFIG = """\
ProctrackType=proctrack/cgroup
PrologFlags=Contain
Prolog={folder}/prolog
Epilog={folder}/epilog
TaskProlog={folder}/task-prolog
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=associations,limits,qos
MaxArraySize={max_array}
"""
# The freezer's hierarchy is one for the whole machine: a node sees its own part as all of it.
NODE = """\
set -e
mount -t cgroup -o freezer none "$1"
mkdir -p "$1/$2"
mount --bind "$1/$2" "$1"
shift 2
exec "$@"
"""
DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=ctl
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
SlurmUser=root
PidFile={folder}/slurmdbd.pid
"""
# Each start of a job begins and ends like this on each node, also where nobody asked it to.
SCRIPTS = {
    "prolog": "mkdir -p {folder}/tmp/$SLURMD_NODENAME-$SLURM_JOB_ID",
    "epilog": "rm -r {folder}/tmp/$SLURMD_NODENAME-$SLURM_JOB_ID",
    "task-prolog": "echo export TMPDIR={folder}/tmp/$SLURMD_NODENAME-$SLURM_JOB_ID",
}


class StrictCluster(Cluster):
    """A cluster of the second make; the account of everybody is `root`."""

    itself = None  # all hosts have the same names

    def prepare(self) -> None:
        """Start the database, and tell it of the cluster and of a QOS `short` of two minutes."""
        values = {"folder": self.folder, "address": self.addresses["ctl"], "max_array": MAX_ARRAY}
        with (self.folder / "slurm.conf").open("a") as file:
            file.write(CONFIG.format(**values))
        with (self.folder / "cgroup.conf").open("a") as file:
            file.write(f"CgroupMountpoint={self.folder}/cgroup\n")
        (self.folder / "cgroup/freezer").mkdir(parents=True)
        for name, line in SCRIPTS.items():
            (self.folder / name).write_text(f"#!/bin/sh\n{line.format(**values)}\n")
            (self.folder / name).chmod(0o755)
        self._start_database()
        (self.folder / "slurmdbd.conf").write_text(DATABASE.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        self.start("ctl", "slurmdbd", "-D")
        add = ("sacctmgr", "-i", "add")
        self.until(lambda: bool(self.run(*add, "cluster", self.name)), "slurmdbd answers", 60)
        self.run(*add, "qos", "short", "MaxWall=2")
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=short")

    def _start_database(self) -> None:
        data, plain = self.folder / "database", ("--no-defaults", "--user=root")
        small = (f"--datadir={data}", "--innodb-log-file-size=4M", "--skip-name-resolve")
        run = ("mariadb-install-db", *plain, *small, "--skip-test-db")
        self.run(*run, "--auth-root-authentication-method=normal")
        socket = self.folder / "database.sock"
        only_here = ("--skip-grant-tables", "--bind-address=127.0.0.1", f"--socket={socket}")
        fast = ("--innodb-flush-log-at-trx-commit=0", f"--pid-file={self.folder}/database.pid")
        self.start("ctl", "mariadbd", *plain, *small, *only_here, *fast)
        self.until(socket.exists, "mariadbd listens", 60)

    def start(self, host: str, *argv: str) -> None:
        """Start a daemon; a slurmd with a freezer of its own."""
        if argv[0] == "slurmd":
            own = (str(self.folder / "cgroup/freezer"), f"{self.name}-{host}")
            argv = ("sh", "-c", NODE, "sh", *own, *argv)
        super().start(host, *argv)


def missing() -> str | None:
    """Why no such cluster can run here, with the remedy; None when one can."""
    if reason := slurm_cluster.missing():
        return reason
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(absent)} in PATH: {REMEDY}"
    try:
        slurm_cluster.freezer("nobody", "thaw")
    except RuntimeError as error:
        return f"a kernel with the freezer of cgroup v1 is needed, and root: {error}"
    return None
