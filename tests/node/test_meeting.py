"""How the processes of a run find each other: nobody else can join, and no port can be taken."""

import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed import (  # type: ignore[attr-defined]  # exported dynamically
    PrefixStore,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters
from training import RECIPES, Run, clean_environment, family, started, wait_for

from launcher.node.meeting import Alone, Meeting
from launcher.processes import MEETING, STORE


def parameters(machines: int, run_id: str = "job-7-0") -> RendezvousParameters:
    return RendezvousParameters("meeting", "", run_id, machines, machines)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(MEETING, str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())  # nothing is left of a meeting


def meet(machines: int) -> tuple[list[Meeting], list[RendezvousInfo], Path]:
    """Let machines meet, the last ones first; returns them, what they know, and what was told."""
    meetings = [Meeting(parameters(machines), "localhost", rank) for rank in range(machines)]
    found: dict[int, RendezvousInfo] = {}
    threads = [
        threading.Thread(target=lambda r=rank: found.update({r: meetings[r].next_rendezvous()}))
        for rank in reversed(range(machines))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return meetings, [found[rank] for rank in range(machines)], meetings[0]._file


@pytest.mark.parametrize("machines", [2, 3])
def test_machines_meet_at_a_port_and_under_a_secret_that_only_their_owner_knows(
    folder: Path, machines: int
) -> None:
    meetings, found, file = meet(machines)
    assert file.parent == folder
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.rank for one in found] == list(range(machines))
    assert {one.world_size for one in found} == {machines}
    found[0].store.set("word", "heard")
    assert {one.store.get("word") for one in found} == {b"heard"}
    # Whoever only knows port and id reads nothing under the id.
    place = found[0].bootstrap_store_info
    assert place is not None
    stranger = TCPStore("localhost", place.master_port, is_master=False)
    assert not PrefixStore("job-7-0", stranger).check(["word"])
    for one in reversed(meetings):
        assert one.shutdown()


def test_two_meetings_under_one_id_have_ports_and_secrets_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.setenv(MEETING, str(tmp_path / name))
        meetings, found, file = meet(2)
        told.append((file.read_text(), found))  # the store lives on
        meetings[0].shutdown()
        (tmp_path / name).rmdir()
    assert told[0][0] != told[1][0]
    assert folder == tmp_path


def test_a_machine_alone_needs_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE, "")
    before = set(psutil.Process().net_connections())
    alone = Alone(parameters(1))
    assert alone.next_rendezvous() is alone.next_rendezvous()
    assert set(psutil.Process().net_connections()) == before


@pytest.mark.slow
@pytest.mark.floors
def test_on_one_machine_there_is_no_store_that_another_user_could_join(tmp_path: Path) -> None:
    words = ["step_s=0.05", "epochs=1000", "batch_size=9", "--nproc", "3", "--run-dir", "r"]
    with started("run", RECIPES / "trouble.py", *words, cwd=tmp_path) as run:
        wait_for(lambda: bool(Run(tmp_path / "r").rows))
        listening = [
            sum(one.status == psutil.CONN_LISTEN for one in process.net_connections())
            for process in [psutil.Process(run.pid), *family(run)]
        ]
    assert set(listening) == {0, 1}
    assert listening.count(1) == 3  # gloo's, of each worker; a store would be one more


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_on_gpus_meet_in_the_same_file_as_those_on_the_cpu(
    world: int, tmp_path: Path
) -> None:
    # Accelerate leaves rank and world size to the address there; gloo stands in for NCCL.
    program = (
        "import torch, torch.distributed as dist\n"
        "from launcher.ranks.context import _place_to_meet\n"
        "dist.init_process_group('gloo', **_place_to_meet(on_cpu=False))\n"
        "total = torch.ones(()); dist.all_reduce(total); print(int(total), dist.get_rank())\n"
        "dist.destroy_process_group()"
    )
    shared = {STORE: str(tmp_path / "store"), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=clean_environment() | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=250)[0].split() for process in started]
    assert said == [[str(world), str(rank)] for rank in range(world)]
