"""All checks of a machine, and of the processes that a run would have there.

What needs torch (GPUs, processes, an all-reduce) is done by processes that are started exactly as
those of a run (see `launcher.node.probe`).
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from launcher.doctor.checks import CLOCKS_S, Check, node_checks, wandb
from launcher.errors import BadInput, NodeFailed
from launcher.files import make_folders, read_json, remove_empty, seen_file
from launcher.gpus import gpus
from launcher.launch.launch import Nodes, command, environment
from launcher.processes import kill_tree
from launcher.run.directory import RunDir
from launcher.run.node_marks import note

PROBE_TIMEOUT_S = 300.0  # torch may come from a slow network file system
_POLL_S = 0.1
_NO_ANSWER = "no answer in"


def process_checks(
    nodes: Nodes,
    shared: Path,
    timeout_s: float = PROBE_TIMEOUT_S,
    on_devices: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Start this machine's processes as a run would, have them talk, and judge what they report.

    Collective over machines: each calls it with its own `node_rank`. `shared` is a folder that all
    should see. `on_devices` is called when all processes here have used their devices.
    """
    with tempfile.TemporaryDirectory(prefix="launcher-doctor-") as place:
        results = RunDir(Path(place))
        results.logs.mkdir()
        began = time.monotonic()
        trouble = _probe(nodes, results, shared, timeout_s, on_devices)
        seconds = time.monotonic() - began
        there = _reports(nodes, results)
    return [
        _judge_devices(nodes, there, trouble),
        _judge_processes(nodes, there, trouble, seconds),
        *_judge_talk(nodes, there, shared),
    ]


def _reports(nodes: Nodes, results: RunDir) -> list[dict[str, Any]]:
    """Return what the processes of this machine have reported so far."""
    first = nodes.node_rank * nodes.nproc
    ranks = range(first, first + nodes.nproc)
    found = (read_json(results.path / f"rank-{rank}.json") for rank in ranks)
    return [report for report in found if report]


def _probe(
    nodes: Nodes,
    results: RunDir,
    shared: Path,
    timeout_s: float,
    on_devices: Callable[[], None],
) -> str:
    """Start the processes and wait for their end; returns what was wrong, '' if nothing was."""
    argv = command(nodes, results, RunDir(shared), "no", what="probe")
    env = environment(nodes, os.environ)
    env["PET_RDZV_ID"] += "-probe"  # a run may follow at the same port
    log = results.logs / "probe.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline, used = time.monotonic() + timeout_s, False
    try:
        while (code := process.poll()) is None:
            if time.monotonic() > deadline:
                return f"{_NO_ANSWER} {timeout_s:g} s"
            if not used and (used := _have_used_devices(nodes, results)):
                on_devices()
            time.sleep(_POLL_S)
    finally:
        kill_tree(process.pid)
        process.wait()
        if nodes.node_rank == 0:  # its owner may have been killed
            seen_file(shared, env).unlink(missing_ok=True)
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if "Error: " in line]
    exits = read_json(results.exits(nodes.node_rank)) or {"0": code}
    deaths = [f"rank {rank} ended with exit code {number}" for rank, number in exits.items()]
    return errors[0] if errors else "; ".join(deaths)


def _have_used_devices(nodes: Nodes, results: RunDir) -> bool:
    reports = _reports(nodes, results)
    return len([one for one in reports if one["stage"] != "device"]) == nodes.nproc


def _judge_devices(nodes: Nodes, reports: Sequence[dict[str, Any]], trouble: str) -> Check:
    if not reports:  # they could not even import what they need, or met nobody
        remedy = "can torch and accelerate be imported there? see `processes`"
        own = not trouble.startswith(_NO_ANSWER)
        return Check("devices", False, f"no process came so far: {trouble}", remedy, own)
    broken = [report for report in reports if report["stage"] == "device"]
    if broken:
        detail = "; ".join(f"rank {r['rank']}: {r.get('error', 'no answer')}" for r in broken)
        remedy = "look at `nvidia-smi` and `dmesg`; --exclude keeps jobs off this node"
        return Check("devices", False, detail, remedy, True)
    names = [report["device"] for report in reports]
    expected = 0 if nodes.cpu else min(gpus(), nodes.nproc)
    if names.count("cpu") > nodes.nproc - expected:
        remedy = "install torch for this machine's driver, or give --cpu"
        detail = f"there are {gpus()} GPUs, but torch cannot use them"
        return Check("devices", False, detail, remedy, True)
    words = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    return Check("devices", True, words)


def _judge_processes(
    nodes: Nodes, reports: Sequence[dict[str, Any]], trouble: str, seconds: float
) -> Check:
    asked = nodes.world_size
    met = [r for r in reports if "pids" in r]
    came = len(set(zip(met[0]["hosts"], met[0]["pids"], strict=True))) if met else 0
    worlds = {r["world_size"] for r in met}
    if came == asked and worlds == {asked} and len(met) == nodes.nproc and not trouble:
        detail = f"{came} of {asked} came up in {seconds:.1f} s"
        return Check("processes", True, detail, figures={"s": seconds})
    stages = {r["rank"]: r["stage"] for r in reports if r["stage"] != "done"}
    where = "".join(f"; rank {rank} came as far as `{stages[rank]}`" for rank in sorted(stages))
    remedy = "`launcher doctor --nproc 1` leaves out the network; see `host name` and firewalls"
    detail = f"{came} of {asked} met" + (f": {trouble}" if trouble else "") + where
    return Check("processes", False, detail, remedy)


def _judge_talk(nodes: Nodes, reports: Sequence[dict[str, Any]], shared: Path) -> list[Check]:
    """Judge what all processes found together; nothing where they did not meet."""
    facts = next((report for report in reports if report["stage"] == "done"), None)
    if facts is None or nodes.world_size == 1:
        return []
    speed, latency_s = facts["bytes_per_s"], facts["latency_s"]
    detail = (
        f"{facts['bytes'] / 1e6:.0f} MB at {speed / 1e6:,.0f} MB/s, 4 bytes in "
        f"{1e3 * latency_s:.2f} ms"
    )
    figures = {"bytes_per_s": speed, "s": latency_s}
    checks = [Check("all-reduce", True, detail, figures=figures)]
    if nodes.nnodes > 1:
        checks += [_judge_clocks(facts), _judge_shared(facts, shared)]
    return checks


def _judge_clocks(facts: dict[str, Any]) -> Check:
    middle = statistics.median(facts["clocks"])
    off = {h: c - middle for h, c in zip(facts["hosts"], facts["clocks"], strict=True)}
    spread_s = max(off.values()) - min(off.values())
    words = ", ".join(f"{host} {seconds:+.1f} s" for host, seconds in off.items())
    detail = f"at most {spread_s:.2f} s apart" + (f": {words}" if spread_s >= CLOCKS_S else "")
    remedy = "have all nodes set by NTP (chrony): logs, locks and rendezvous go by it"
    return Check("clocks", spread_s < CLOCKS_S, detail, remedy, figures={"s": spread_s})


def _judge_shared(facts: dict[str, Any], shared: Path) -> Check:
    blind = {h for h, seen in zip(facts["hosts"], facts["seen"], strict=True) if not seen}
    if not blind:
        return Check("shared folder", True, f"all nodes see `{shared}`")
    detail = f"`{shared}` on {facts['hosts'][0]} is another one on {', '.join(sorted(blind))}"
    remedy = "give a run directory on a file system that all nodes mount"
    return Check("shared folder", False, detail, remedy)


def examine(nodes: Nodes, folder: Path) -> list[Check]:
    """Return all checks of this machine, and of its processes with those of other machines."""
    with there(folder):
        own = node_checks(folder)
        return [*own, wandb(), *process_checks(nodes, folder)]


def vet(run: RunDir, nodes: Nodes, node: str) -> None:
    """Check a node of a job before it trains; each node calls it.

    Raises NodeFailed where something is wrong, and says whether it may be this node's own fault.
    """
    checks = node_checks(run.path)
    if all(check.ok for check in checks):  # else the others need not wait for its processes
        note(run, nodes.node_rank, "sound", node)
        able = partial(note, run, nodes.node_rank, "able", node)
        checks = process_checks(nodes, run.path, on_devices=able)
    failed = [check for check in checks if not check.ok]
    if not failed:
        if nodes.node_rank == 0:  # how fast the network is belongs to the log, once
            print("; ".join(f"{check.name}: {check.detail}" for check in checks), flush=True)
        return
    reason = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    own_fault = any(check.blames for check in failed)
    message = f"node {node} failed its checks: {reason}"
    raise NodeFailed(message, hint=failed[0].remedy, own_fault=own_fault)


@contextmanager
def there(folder: Path) -> Iterator[None]:
    """Have a folder for as long as it is needed; what somebody puts there meanwhile keeps it."""
    try:
        made = make_folders(folder)
    except OSError as error:
        raise BadInput(f"`{folder}` cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        remove_empty(made)
