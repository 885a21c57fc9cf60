"""The agent of one node: `accelerate launch` (so torchrun) with its rough edges taken off.

It meets the agents of other machines, and its own processes, as `launcher.node.meeting` says, and
tells in a file which of them failed. Started as `python -m launcher.node.start agent EXITS FORKS
ARGS…`: ARGS are those of `accelerate launch`, and FORKS is how many workers are forked from here:
all, or 0.
"""

import signal
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import PContext, api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

from launcher.files import write_json
from launcher.leave import leave
from launcher.node import probe
from launcher.node.forks import stand_in
from launcher.node.meeting import Alone, Meeting
from launcher.replay import process
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.train import worker

_GRACE_S = 5  # what workers get to end by themselves when another has failed
_POLL_S = 0.05


def main(argv: list[str]) -> NoReturn:
    """Run `accelerate launch` with these arguments; leaves with 0, or 1 where a worker failed."""
    _leave_requests_to_the_launcher()
    exits, forks, *arguments = argv
    _end_survivors_soon(RunDir(Path(arguments[-2])))
    if int(forks):
        what, run, spec = arguments[-3:]
        does = {"worker": worker.main, "replay": process.main, "probe": probe.main}[what]
        stand_in(int(forks), lambda: does([run, spec]))
    asked = launch_command_parser().parse_args(arguments)
    _offer_ways_to_meet(asked)
    try:
        launch_command(asked)
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_json(Path(exits), codes)
        leave(1)
    leave(0)


def _offer_ways_to_meet(asked: Namespace) -> None:
    host, rank = asked.main_process_ip, int(asked.machine_rank or 0)
    rendezvous_handler_registry.register("loopback", Alone)
    rendezvous_handler_registry.register("meeting", lambda told: Meeting(told, host, rank))


def _leave_requests_to_the_launcher() -> None:
    """Hear no request to stop: the launcher tells the workers, and ends the agent by SIGKILL.

    A scheduler tells every process of a job. torchrun would give the workers seconds to end.
    """

    def unheard(signum: int, frame: FrameType | None) -> None:
        """Do nothing: unlike what is ignored, commands that are started hear it again."""

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unheard)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # commands that are started would die of it
    api._terminate_process_handler = unheard  # no other way in all versions


def _end_survivors_soon(run: RunDir) -> None:
    """Give workers seconds, not torchrun's half a minute, to end when another has failed.

    They may be in a long download or batch, which would hold up the news. But one that is saving
    is left to it. The option `--shutdown_timeout` is not used in this case.
    """
    close = PContext.close

    def close_soon(
        context: PContext, death_sig: signal.Signals | None = None, timeout: int = _GRACE_S
    ) -> None:
        workers = [one.proc for one in getattr(context, "subprocess_handlers", {}).values()]
        paths = [run.mark(int(env["RANK"])) for env in context.envs.values()]
        _let_saves_end(paths, lambda: any(process.poll() is None for process in workers))
        close(context, death_sig, min(timeout, _GRACE_S))

    PContext.close = close_soon  # type: ignore[method-assign, assignment]  # no other way


def _let_saves_end(marks: list[Path], somebody_lives: Callable[[], bool]) -> None:
    """Wait while workers give signs of life, as they do while they wait for a disk."""
    beats, before = _beats(marks), None
    while beats != before and somebody_lives():
        deadline = time.monotonic() + 3 * mark.BEAT_S
        while time.monotonic() < deadline and somebody_lives():
            time.sleep(_POLL_S)
        beats, before = _beats(marks), beats


def _beats(marks: list[Path]) -> list[int]:
    return [found.beats for found in map(mark.read, marks) if found]
