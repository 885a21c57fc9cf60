"""The doctor on the nodes of a SLURM job: srun starts this module once on each of them.

Nodes report on standard output, a line of JSON at a time: what is wrong may be the shared folder.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from launcher.doctor.checks import Check, node_checks, wandb
from launcher.doctor.doctor import process_checks, there
from launcher.errors import BadInput
from launcher.files import read_json, write_json
from launcher.launch.launch import Nodes
from launcher.processes import orderly
from launcher.slurm.options import for_site, gpus_of, nodes_of, of_environment, settled, words_of
from launcher.slurm.profile import Profile

_DEFAULTS = {"nodes": "1", "job-name": "launcher-doctor", "time": "10"}

_PATIENCE_S = 30.0  # until a file of another node is seen
_LONGEST = 200  # letters of a text: srun mixes nodes' lines of more than 1,024 bytes
_END_S = 20  # what srun gets to end its job
_WAIT_S = 30  # what the other nodes get when one has ended


def examine(
    given: Mapping[str, str], profile: Profile, nproc: int | None, folder: Path
) -> dict[str, list[Check]]:
    """Return all checks by node, from a job with these options of sbatch that this waits for.

    No `nproc` is one process for each GPU, else 1. Raises BadInput where srun cannot start a job.
    """
    settings = settled(given, profile, _DEFAULTS, of_environment(os.environ)[0])
    nnodes, gpus = nodes_of(settings), gpus_of(settings)
    options = for_site({name: one.value for name, one in settings.items()}, profile)
    options["export"] = "ALL"  # a profile's NONE is for batch scripts
    with there(folder), tempfile.TemporaryDirectory(prefix="doctor-", dir=folder) as place:
        asked = json.dumps({"folder": place, "nproc": nproc or gpus or 1, "cpu": not gpus})
        argv = ["srun", "--ntasks-per-node=1", f"--wait={_WAIT_S}"]
        argv += words_of(options)
        argv += [sys.executable, "-m", "launcher.slurm.doctor", asked]
        output, said = _srun(argv)
    found = _collected(output)
    if not found:
        raise BadInput(f"no node answered: {said}", hint="`sinfo` lists partitions and nodes")
    if len(found) < nnodes:
        detail = f"{len(found)} of {nnodes} nodes answered: {said}"
        found["the others"] = [Check("node", False, detail, "look at srun's words")]
    return found


def _srun(argv: Sequence[str]) -> tuple[str, str]:
    """Return what srun's tasks printed, and srun's own words, which are shown as they come.

    Whatever ends this process in order ends srun, and so its job, too.
    """
    try:
        srun = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise BadInput(
            "there is no srun here", hint="log in to the cluster, or leave --slurm out"
        ) from error
    words: list[str] = []
    with srun:
        listener = threading.Thread(target=_show, args=(srun.stderr, words), daemon=True)
        listener.start()
        try:
            output = srun.stdout.read() if srun.stdout else ""
            srun.wait()
        finally:
            srun.terminate()  # upon which it takes its job out of the queue
            with suppress(subprocess.TimeoutExpired):
                srun.wait(_END_S)
            srun.kill()
            listener.join(_END_S)
    return output, "".join(words).strip()


def _show(stream: IO[str], words: list[str]) -> None:
    """Print lines as they come, and keep them."""
    for line in stream:
        words.append(line)
        print(line, end="", file=sys.stderr, flush=True)


def _collected(output: str) -> dict[str, list[Check]]:
    """Return the checks by node, from lines of JSON among which others may be."""
    found: dict[str, list[Check]] = {}
    for line in output.splitlines():
        if line.startswith('{"node": '):
            told = json.loads(line)
            found.setdefault(told["node"], []).append(Check(**told["check"]))
    for checks in found.values():
        if not any(check.name in ("processes", "shared folder") for check in checks):
            words = "this node ended before its processes could answer"
            checks.append(Check("processes", False, words, "see what other nodes say"))
    return dict(sorted(found.items()))


def on_node(folder: Path, nproc: int, *, cpu: bool, env: Mapping[str, str]) -> None:
    """Check this node, and its processes together with those of the other nodes; print it."""
    node, rank = env.get("SLURMD_NODENAME", socket.gethostname()), int(env["SLURM_NODEID"])
    nnodes = int(env["SLURM_NNODES"])
    _tell(node, [*node_checks(folder), wandb()])
    try:
        endpoint = _endpoint(folder, node) if rank == 0 else _other_endpoint(folder)
    except TimeoutError as error:
        remedy = "give --run-dir a folder on a file system that all nodes mount"
        _tell(node, [Check("shared folder", False, str(error), remedy)])
        return
    nodes = Nodes(nproc, nnodes, rank, endpoint, cpu, meeting=folder)
    _tell(node, process_checks(nodes, folder))


def _endpoint(folder: Path, node: str) -> str:
    """Choose where the nodes meet, for the others to read."""
    endpoint = f"{node}:0"
    write_json(folder / "endpoint.json", {"endpoint": endpoint})
    return endpoint


def _other_endpoint(folder: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while (told := read_json(folder / "endpoint.json")) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"`{folder}` is not what it is on the first node")
        time.sleep(0.2)
    return str(told["endpoint"])


def _tell(node: str, checks: Sequence[Check]) -> None:
    for check in checks:
        short = replace(check, detail=check.detail[:_LONGEST], remedy=check.remedy[:_LONGEST])
        line = json.dumps({"node": node, "check": asdict(short)}, ensure_ascii=False)
        sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    with orderly(SystemExit(128 + signal.SIGTERM)):
        on_node(Path(told["folder"]), told["nproc"], cpu=told["cpu"], env=os.environ)
