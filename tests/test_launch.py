"""The pure parts of a launch: its command, its environment, what it refuses, and what it says."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import BadInput, LauncherError, PeerFailed, Stopped, TrainingFailed
from launcher.launch import (
    Nodes,
    check,
    command,
    environment,
    first_failure,
    gpus,
    verdict,
    write_result,
)
from launcher.record import Record
from launcher.run_dir import RunDir, read_json, write_json

RUN = RunDir(Path("/runs/r"))
SPEC = RunDir(Path("/runs/r/logs/node-1-spec"))
TWO_MACHINES = Nodes(nproc=2, nnodes=2, node_rank=1, endpoint="[fd00::1]:29500")


@pytest.mark.parametrize(
    ("visible", "count"),
    [("", 0), ("-1", 0), ("0", 1), ("0,1", 2), ("GPU-8932f937, GPU-12", 2), ("0,1,", 2)],
)
def test_gpus_are_those_that_are_visible(
    visible: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == count


def test_without_a_word_gpus_are_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == len(list(Path("/dev").glob("nvidia[0-9]*")))


@pytest.mark.parametrize(
    ("visible", "nodes"),
    [
        ("0,1", Nodes(nproc=2)),
        ("0,1", Nodes(nproc=3, cpu=True)),
        ("", Nodes(nproc=3)),
        ("", TWO_MACHINES),
        ("", Nodes(nproc=1, nnodes=2, endpoint="here:1")),
    ],
)
def test_what_can_be_is_let_through(
    visible: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check(nodes)


@pytest.mark.parametrize(
    ("visible", "nodes", "message"),
    [
        ("0,1", Nodes(nproc=3), "--nproc 3 asks for more processes than there are GPUs: 2"),
        ("", Nodes(nproc=1, nnodes=2), "--nnodes 2 needs --rdzv-endpoint HOST:PORT"),
        ("", Nodes(1, 2, 2, "here:1"), "--node-rank 2 is not one of 0 to 1"),
        ("", Nodes(1, 2, -1, "here:1"), "--node-rank -1 is not one of 0 to 1"),
        ("", Nodes(1, 2, 0, "here"), "--rdzv-endpoint here is not of the form HOST:PORT"),
        ("", Nodes(1, 2, 0, "here:"), "--rdzv-endpoint here: is not of the form HOST:PORT"),
        ("", Nodes(1, 2, 0, "here:0"), "--rdzv-endpoint here:0 is not of the form HOST:PORT"),
        ("", Nodes(1, 2, 0, "a:65536"), "--rdzv-endpoint a:65536 is not of the form HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused(
    visible: str, nodes: Nodes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(BadInput) as caught:
        check(nodes)
    assert caught.value.message == message


def test_one_process_needs_no_agent() -> None:
    assert command(Nodes(nproc=1), RUN, RUN, "no") == [
        sys.executable,
        "-m",
        "launcher.worker",
        "/runs/r",
        "/runs/r",
    ]


def options(argv: list[str]) -> dict[str, str]:
    """The options of an agent's command that have a value."""
    return {a: b for a, b in pairwise(argv) if a.startswith("--")}


@pytest.mark.parametrize("nproc", [2, 3, 8])
def test_several_processes_come_from_accelerate_on_loopback(nproc: int) -> None:
    argv = command(Nodes(nproc=nproc), RUN, RUN, "bf16")
    assert argv[:4] == [sys.executable, "-m", "launcher.agent", "/runs/r/logs/node-0-exits.json"]
    assert argv[-4:] == ["-m", "launcher.worker", "/runs/r", "/runs/r"]
    told = options(argv)
    assert told["--num_processes"] == str(nproc)
    assert told["--num_machines"] == "1"
    assert told["--mixed_precision"] == "bf16"
    assert told["--max_restarts"] == "0"
    assert (told["--rdzv_backend"], told["--main_process_port"]) == ("loopback", "0")
    assert "--multi_gpu" in argv


def test_several_machines_meet_at_the_endpoint() -> None:
    argv = command(TWO_MACHINES, RUN, SPEC, "no")
    assert argv[3] == "/runs/r/logs/node-1-exits.json"
    assert argv[-2:] == ["/runs/r", "/runs/r/logs/node-1-spec"]
    told = options(argv)
    assert (told["--num_processes"], told["--num_machines"]) == ("4", "2")
    assert told["--machine_rank"] == "1"
    assert told["--rdzv_backend"] == "static"
    assert (told["--main_process_ip"], told["--main_process_port"]) == ("[fd00::1]", "29500")


@pytest.mark.parametrize("nproc", [1, 2])
def test_what_follows_two_dashes_stands_behind_our_own_options(nproc: int) -> None:
    extra = ["--main_process_port", "1234"]
    argv = command(Nodes(nproc=nproc), RUN, RUN, "no", extra)
    assert argv[2] == "launcher.agent"
    assert argv[-6:-4] == extra
    assert argv.index("--num_processes") < len(argv) - 6
    assert ("--multi_gpu" in argv) == (nproc > 1)


def test_cores_are_shared_out_unless_the_user_has() -> None:
    cores = len(os.sched_getaffinity(0))
    assert environment(Nodes(nproc=1), {})["OMP_NUM_THREADS"] == str(cores)
    assert environment(Nodes(nproc=10**6), {})["OMP_NUM_THREADS"] == "1"
    assert environment(Nodes(nproc=1), {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_each_run_has_a_rendezvous_id_that_its_machines_share() -> None:
    ids = {environment(Nodes(nproc=2), {})["PET_RDZV_ID"] for _ in range(10)}
    assert len(ids) == 10
    for _ in range(2):
        assert environment(TWO_MACHINES, {})["PET_RDZV_ID"] == "[fd00::1]:29500"


@pytest.mark.parametrize(
    ("visible", "cpu", "used"), [("0,1", False, None), ("0,1", True, "true"), ("", False, "true")]
)
def test_the_cpu_is_used_when_asked_for_or_without_gpus(
    visible: str, cpu: bool, used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment(Nodes(nproc=2, cpu=cpu), {}).get("ACCELERATE_USE_CPU") == used


def test_the_users_environment_is_passed_on() -> None:
    base = {"HOME": "/root", "MY_DATA": "here"}
    assert environment(Nodes(nproc=2), base).items() >= base.items()
    assert base == {"HOME": "/root", "MY_DATA": "here"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create({"hyperparameters": {}}, "")
    return run


def record(rank: int, error: BaseException | None = None, at: float = 0) -> Record:
    """A rank that died unheard, or at some second of an error."""
    made = Record(rank, "here", 1, "running", 0)
    if error:
        made.end("failed", error)
    made.time = at
    return made


OWN = ValueError("odd")
LOST = PeerFailed("a peer has gone")


@pytest.mark.parametrize(
    ("records", "exits", "words"),
    [
        ([record(0, OWN, 2), record(1, KeyError("x"), 1)], {}, ["rank 1", "KeyError: 'x'"]),
        ([record(0, LOST, 1), record(1, OWN, 2)], {}, ["rank 1", "ValueError: odd"]),
        ([record(0, LOST, 1), record(1)], {"1": -9}, ["rank 1", "killed by SIGKILL"]),
        ([record(0, LOST, 1), record(1)], {"1": -11}, ["rank 1", "killed by SIGSEGV"]),
        ([record(0), record(1)], {"1": 3}, ["rank 1", "without a word (exit code 3)"]),
        ([record(0), record(1)], {"0": -15, "1": -9}, ["rank 1", "killed by SIGKILL"]),
        ([record(0, OWN, 9), record(1)], {"1": -9}, ["rank 0", "ValueError: odd"]),
        ([record(0, LOST, 1)], {}, ["a peer has gone"]),
    ],
)
def test_the_first_cause_is_named(
    records: list[Record], exits: dict[str, int], words: list[str], run: RunDir
) -> None:
    failure = first_failure(records, run, exits)
    assert isinstance(failure, TrainingFailed)
    assert all(word in failure.message for word in words)
    assert failure.hint


@pytest.mark.parametrize("records", [[], [record(0)]])
def test_processes_that_were_only_ended_are_no_cause(records: list[Record], run: RunDir) -> None:
    assert first_failure(records, run, {"0": -15}) is None


def test_a_process_that_died_unheard_speaks_through_its_log(run: RunDir) -> None:
    run.log(0).write_text("".join(f"line {number}\n" for number in range(30)))
    failure = first_failure([record(0)], run, {"0": -11})
    assert failure
    assert "line 29" in failure.message
    assert "line 5\n" not in failure.message


def state(run: RunDir, *records: Record, result: dict[str, Any] | None = None) -> None:
    for one in records:
        one.write(run)
    if result:
        write_json(run.result, result)


def test_a_run_that_completed_has_nothing_to_say(run: RunDir) -> None:
    done = [record(0), record(1)]
    for one in done:
        one.end("completed")
    state(run, *done, result={"state": "completed"})
    assert verdict(run, Nodes(nproc=2), 0) is None


@pytest.mark.parametrize(
    ("records", "kind", "exit_code"),
    [
        ([record(0, BadInput("no", hint="yes")), record(1, LOST)], BadInput, 2),
        ([record(0, Stopped("after step 3")), record(1, Stopped("after step 3"))], Stopped, 75),
        ([record(0, OWN), record(1, Stopped("after step 3"))], TrainingFailed, 1),
        ([], TrainingFailed, 1),
    ],
)
def test_the_verdict_has_the_exit_code_of_what_happened(
    records: list[Record], kind: type[LauncherError], exit_code: int, run: RunDir
) -> None:
    state(run, *records)
    error = verdict(run, Nodes(nproc=2), 1)
    assert isinstance(error, kind)
    assert error.exit_code == exit_code


def test_the_only_process_is_known_by_the_commands_own_exit_code(run: RunDir) -> None:
    state(run, record(0))
    error = verdict(run, Nodes(nproc=1), -9)
    assert error
    assert "killed by SIGKILL" in error.message


def test_an_end_without_any_record_shows_the_agents_words(run: RunDir) -> None:
    run.agent(0).write_text("no such module\n")
    error = verdict(run, Nodes(nproc=2), 1)
    assert error
    assert "exit code 1" in error.message
    assert error.hint == "no such module"


@pytest.mark.parametrize(
    ("error", "word"), [(Stopped("after step 3"), "stopped"), (TrainingFailed("odd"), "failed")]
)
def test_a_run_that_did_not_complete_has_a_result_too(
    error: LauncherError, word: str, run: RunDir
) -> None:
    run.metrics.write_text('{"epoch": 1, "step": 30}\n')
    write_result(run, Nodes(nproc=2), error, 1.5)
    result = read_json(run.result)
    assert result
    assert (result["state"], result["error"]) == (word, error.message)
    assert (result["epoch"], result["step"], result["seconds"]) == (1, 30, 1.5)
    assert result["world_size"] == 2
