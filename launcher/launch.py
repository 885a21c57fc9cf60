"""Start the processes of a run, pass stop requests on, and say what failed. Never imports torch."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import FrameType

from launcher.errors import BadInput, LauncherError, Stopped, TrainingFailed
from launcher.processes import children, kill_tree
from launcher.record import Record
from launcher.run_dir import RunDir, read_json, write_json

_POLL_S = 0.05
_ASK_AGAIN_S = 1.0  # a worker that has just started does not hear yet


@dataclass(frozen=True)
class Nodes:
    """Which machines and processes a run has."""

    nproc: int  # processes on each machine
    nnodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None  # HOST:PORT of machine 0, where there are several
    cpu: bool = False

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return self.nproc * self.nnodes


def gpus() -> int:
    """Return how many NVIDIA GPUs this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA ignores all that follows an invalid entry
        return len(list(takewhile(lambda name: name.strip() not in ("", "-1"), visible.split(","))))
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def check(nodes: Nodes) -> None:
    """Raise BadInput for processes and machines that cannot be."""
    if not nodes.cpu and 0 < gpus() < nodes.nproc:
        raise BadInput(
            f"--nproc {nodes.nproc} asks for more processes than there are GPUs: {gpus()}",
            hint="give --cpu to train on the CPU, or fewer processes",
        )
    if nodes.nnodes > 1 and not nodes.endpoint:
        raise BadInput(
            f"--nnodes {nodes.nnodes} needs --rdzv-endpoint HOST:PORT",
            hint="name the machine with --node-rank 0 and a free port on it, the same everywhere",
        )
    if not 0 <= nodes.node_rank < nodes.nnodes:
        raise BadInput(f"--node-rank {nodes.node_rank} is not one of 0 to {nodes.nnodes - 1}")
    host, _, port = (nodes.endpoint or "localhost:1").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"--rdzv-endpoint {nodes.endpoint} is not of the form HOST:PORT")


def command(
    nodes: Nodes, run: RunDir, spec: RunDir, mixed_precision: str, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts this machine's processes.

    One process needs no agent. Several come from `accelerate launch`, with every choice made
    explicitly: a configuration file in the user's home would otherwise be picked up silently.
    """
    worker = ["launcher.worker", str(run.path), str(spec.path)]
    if nodes.world_size == 1 and not extra:
        return [sys.executable, "-m", *worker]
    arguments = {
        "--num_processes": nodes.world_size,
        "--num_machines": nodes.nnodes,
        "--machine_rank": nodes.node_rank,
        "--mixed_precision": mixed_precision,
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": _threads(nodes),
        "--max_restarts": 0,
        "--log_dir": run.logs / f"node-{nodes.node_rank}-agent",
    }
    if nodes.nnodes == 1:
        arguments |= {"--rdzv_backend": "loopback", "--main_process_port": 0}
    else:
        host, _, port = str(nodes.endpoint).rpartition(":")
        arguments |= {"--rdzv_backend": "static"}
        arguments |= {"--main_process_ip": host, "--main_process_port": int(port)}
    words = [str(word) for pair in arguments.items() for word in pair]
    words += ["--same_network"] + (["--multi_gpu"] if nodes.world_size > 1 else ["--cpu"])
    agent = [sys.executable, "-m", "launcher.agent", str(run.exits(nodes.node_rank))]
    return [*agent, *words, *extra, "-m", *worker]


def environment(nodes: Nodes, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this machine's processes.

    The rendezvous id is fresh: two runs with the same id on the same port join into one world.
    Machines that meet at an endpoint must share it, and take the endpoint.
    """
    added = {
        "OMP_NUM_THREADS": base.get("OMP_NUM_THREADS", str(_threads(nodes))),
        "PET_RDZV_ID": secrets.token_hex(8) if nodes.nnodes == 1 else str(nodes.endpoint),
        "PYTHONUNBUFFERED": "1",
    }
    if nodes.cpu or gpus() == 0:
        added["ACCELERATE_USE_CPU"] = "true"
    return {**base, **added}


def _threads(nodes: Nodes) -> int:
    """Threads for each process: this machine's cores shared out."""
    return max(1, len(os.sched_getaffinity(0)) // nodes.nproc)


class Supervisor:
    """Runs one command to its end and passes stop requests on to its workers.

    The first Ctrl-C, SIGTERM or SIGUSR1 asks the workers to stop after the step; a second Ctrl-C
    or SIGTERM ends everything at once.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.forced = False

    def run(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Return the command's exit code; its standard error goes to `log`.

        The command has a session of its own, so that the terminal's Ctrl-C reaches only this
        process; it ignores SIGUSR1 until a worker says otherwise, since torchrun dies of it.
        """
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with log.open("ab") as agent_log:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stderr=agent_log,
                start_new_session=True,
            )
        with self._listening():
            try:
                self._wait(process, is_agent="launcher.agent" in argv)
            finally:
                if process.poll() is None or self.forced:
                    kill_tree(process.pid)
                    process.wait()
        return process.returncode

    def _wait(self, process: "subprocess.Popen[bytes]", *, is_agent: bool) -> None:
        asked_at = 0.0
        while process.poll() is None and not self.forced:
            if self.requests and time.monotonic() - asked_at > _ASK_AGAIN_S:
                asked_at = time.monotonic()
                workers = children(process.pid, recursive=False) if is_agent else [process]
                for worker in workers:
                    _ask_to_stop(worker.pid)
            time.sleep(_POLL_S)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.requests and number != signal.SIGUSR1:
            self.forced = True
        elif not self.requests:
            print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        self.requests += 1


def _ask_to_stop(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)


def verdict(run: RunDir, nodes: Nodes, exit_code: int) -> LauncherError | None:
    """Return what went wrong in a run that has ended, None when it completed."""
    records = Record.read_all(run, nodes.world_size)
    result = read_json(run.result) or {}
    all_completed = bool(records) and all(record.state == "completed" for record in records)
    # The result is rank 0's, and other machines may not share its disk.
    written_here = nodes.node_rank == 0
    if exit_code == 0 and all_completed and (result or not written_here):
        return None
    if any(record.users_mistake for record in records):
        mistaken = next(record for record in records if record.users_mistake)
        return BadInput(mistaken.error, hint=mistaken.hint)
    exits = read_json(run.exits(nodes.node_rank)) or {}
    if nodes.world_size == 1:
        exits.setdefault("0", exit_code)
    failed = first_failure(records, run, exits)
    if failed is None and any(record.state == "stopped" for record in records):
        stopped = next(record for record in records if record.state == "stopped")
        return Stopped(stopped.error, hint=stopped.hint)
    return failed or TrainingFailed(
        f"the run ended with exit code {exit_code} before any process could say why",
        hint=_tail(run.agent(nodes.node_rank)),
    )


def first_failure(
    records: list[Record], run: RunDir, exits: Mapping[str, int]
) -> TrainingFailed | None:
    """Return what failed first, with its last lines; `exits` are exit codes by rank.

    First comes an error of a rank's own, then a process that died unheard (killed, out of memory,
    crashed in C), last a rank that only lost a peer. A process that the agent ended is no cause.
    """
    failed = sorted((r for r in records if r.state == "failed"), key=lambda r: r.time)
    own = [r for r in failed if r.first_cause]
    unheard = [r for r in records if r.state == "running" and exits.get(str(r.rank)) != -15]
    unheard.sort(key=lambda r: str(r.rank) not in exits)
    if not (candidates := own + unheard + failed):
        return None
    first = candidates[0]
    log = f"the full log is {os.path.relpath(run.log(first.rank))}"
    if first.error and not first.traceback:  # an error of ours, which says all there is to say
        return TrainingFailed(first.error, hint=first.hint or log)
    what = first.error or _death(exits.get(str(first.rank)))
    lines = "\n".join(first.users_frames.splitlines()[-10:]) or _tail(run.log(first.rank))
    return TrainingFailed(
        f"rank {first.rank} on {first.host} failed first: {what}\n{lines}".rstrip(), hint=log
    )


def _death(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed by SIGKILL (did the machine run out of memory?)"
    if exit_code is not None and exit_code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(-exit_code, f'signal {-exit_code}')}"
    return "it ended without a word" + (f" (exit code {exit_code})" if exit_code else "")


def _tail(path: Path, count: int = 10) -> str:
    """Return the last lines of a log, or the first of a crash that Python reported there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    crashes = [at for at, line in enumerate(lines) if line.startswith("Fatal Python error")]
    return "\n".join(lines[crashes[-1] :][:count] if crashes else lines[-count:])


def launch(run: RunDir, spec: RunDir, nodes: Nodes, extra: Sequence[str] = ()) -> None:
    """Run all processes of this machine to their end; raises how it ended unless it completed."""
    told = spec.read_config()
    argv = command(nodes, run, spec, told["hyperparameters"]["mixed_precision"], extra)
    supervisor = Supervisor()
    started = time.time()
    code = supervisor.run(argv, environment(nodes, os.environ), run.agent(nodes.node_rank))
    shutil.rmtree(run.logs / f"node-{nodes.node_rank}-agent", ignore_errors=True)
    if supervisor.forced:
        error: LauncherError | None = TrainingFailed("ended at once, on a second request")
    else:
        error = verdict(run, nodes, code)
    if error is None:
        return
    if isinstance(error, BadInput):
        shutil.rmtree(run.path)  # nothing was trained: nothing is left
        if run.path.parent.name == "runs":
            with suppress(OSError):  # others' runs are in it
                run.path.parent.rmdir()
    else:
        write_result(run, nodes, error, time.time() - started)
    raise error


def write_result(run: RunDir, nodes: Nodes, error: LauncherError, seconds: float) -> None:
    """Write the result.json of a run that stopped or failed, as far as metrics.jsonl knows."""
    last = run.last_report()
    write_json(
        run.result,
        {
            "state": "stopped" if isinstance(error, Stopped) else "failed",
            "epoch": last.get("epoch", 0),
            "step": last.get("step", 0),
            "world_size": nodes.world_size,
            "train_loss": None,
            "test_loss": None,
            "test_accuracy": None,
            "test_correct": None,
            "test_samples": None,
            "seconds": seconds,
            "samples_per_second": None,
            "error": error.message,
        },
    )
