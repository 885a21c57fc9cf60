"""The pure parts of a launch: its command, its environment, what it refuses, and what it says."""

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch as accelerate
from accelerate.commands.config import config_args
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from launcher.errors import BadInput
from launcher.launch.launch import (
    Nodes,
    check,
    command,
    environment,
    threads_of,
)
from launcher.processes import cores
from launcher.run.directory import RunDir

pytestmark = pytest.mark.warm

RUN = RunDir(Path("/runs/r"))
SPEC = RunDir(Path("/runs/r/logs/node-1-spec"))
TWO_MACHINES = Nodes(nproc=2, nnodes=2, node_rank=1, endpoint="[fd00::1]:29500")


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
        "launcher.node.start",
        "worker",
        "/runs/r",
        "/runs/r",
    ]


def options(argv: list[str]) -> dict[str, str]:
    """The options of an agent's command that have a value."""
    return {a: b for a, b in pairwise(argv) if a.startswith("--")}


@pytest.mark.parametrize("nproc", [2, 3, 8])
def test_several_processes_come_from_accelerate_on_loopback(nproc: int) -> None:
    argv = command(Nodes(nproc=nproc), RUN, RUN, "bf16")
    start = [sys.executable, "-m", "launcher.node.start"]
    assert argv[:5] == [*start, "agent", "/runs/r/logs/node-0-exits.json"]
    assert argv[5] == str(nproc)  # all are forked
    assert argv[-5:] == ["-m", "launcher.node.start", "worker", "/runs/r", "/runs/r"]
    told = options(argv)
    assert told["--num_processes"] == str(nproc)
    assert told["--num_machines"] == "1"
    assert told["--mixed_precision"] == "bf16"
    assert told["--max_restarts"] == "0"
    assert (told["--rdzv_backend"], told["--main_process_port"]) == ("loopback", "0")
    assert "--multi_gpu" in argv


def test_several_machines_meet_at_the_endpoint() -> None:
    argv = command(TWO_MACHINES, RUN, SPEC, "no")
    assert argv[4] == "/runs/r/logs/node-1-exits.json"
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
    assert argv[3] == "agent"
    assert argv[-7:-5] == extra
    assert argv.index("--num_processes") < len(argv) - 7
    assert ("--multi_gpu" in argv) == (nproc > 1)


def test_cores_are_shared_out_unless_the_user_has() -> None:
    assert environment(Nodes(nproc=1), {})["OMP_NUM_THREADS"] == str(cores())
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


def test_a_place_in_another_world_is_not_passed_on() -> None:
    """As Kubeflow, srun, mpirun and torchrun leave it to what they start."""
    place = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_NAME NODE_RANK"
    place += " MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID PET_NNODES PMI_RANK PMI_SIZE"
    place += " OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_RANK MPI_LOCALNRANKS"
    mine = {"NCCL_DEBUG": "INFO", "MY_RANK": "1", "SLURM_PROCID": "1", "PET": "cat"}
    passed = environment(Nodes(nproc=2), dict.fromkeys(place.split(), "7") | mine)
    assert not passed.keys() & set(place.split())
    assert passed.items() >= mine.items()


def test_the_allocator_is_set_up_for_training_unless_the_user_has() -> None:
    name = "MALLOC_TRIM_THRESHOLD_"
    assert int(environment(Nodes(nproc=2), {})[name]) > 1 << 30
    assert environment(Nodes(nproc=2), {name: "1"})[name] == "1"
    assert environment(Nodes(nproc=2), {}, shard=True)[name] == str(1 << 20)  # nothing is kept


@pytest.mark.parametrize(
    ("visible", "nodes", "extra", "forks"),
    [
        ("", Nodes(nproc=2), [], "2"),
        ("", TWO_MACHINES, [], "2"),
        ("0,1", Nodes(nproc=2), [], "0"),
        ("0,1", Nodes(nproc=2, cpu=True), [], "2"),
        ("", Nodes(nproc=2), ["--numa_affinity"], "0"),
    ],
)
def test_workers_are_forked_only_where_there_is_no_gpu_and_no_option_of_the_users(
    visible: str, nodes: Nodes, extra: list[str], forks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert command(nodes, RUN, RUN, "no", extra)[5] == forks


# What a configuration in the user's home may say of each of its fields.
AT_HOME: dict[str, Any] = {
    "compute_environment": "AMAZON_SAGEMAKER",
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "use_cpu": True,
    "debug": True,
    "num_processes": 7,
    "machine_rank": 5,
    "num_machines": 9,
    "gpu_ids": "3,5",
    "main_process_ip": "10.9.8.7",
    "main_process_port": 1,
    "rdzv_backend": "etcd",
    "same_network": False,
    "main_training_function": "train",
    "enable_cpu_affinity": True,
    "fp8_config": {"backend": "TE"},
    "deepspeed_config": {"zero_stage": 3},
    "fsdp_config": {"fsdp_version": 2},
    "parallelism_config": {"parallelism_config_tp_size": 2},
    "megatron_lm_config": {"megatron_lm_tp_degree": 2},
    "mpirun_config": {"mpirun_hostfile": "hosts"},
    "ipex_config": {"ipex": True},
    "downcast_bf16": True,
    "tpu_name": "mine",
    "tpu_zone": "here",
    "tpu_use_cluster": True,
    "tpu_use_sudo": True,
    "command_file": "commands",
    "commands": ["ls"],
    "tpu_vm": ["one"],
    "tpu_env": ["A=B"],
    "dynamo_config": {"dynamo_backend": "INDUCTOR"},
}


def as_accelerate_takes_it(argv: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settled options of `accelerate launch`, and the environment of what it starts."""
    parser = accelerate.launch_command_parser()
    args, _, _ = accelerate._validate_launch_command(parser.parse_args(argv[6:]))
    args.main_process_port = args.main_process_port or 29500  # not another free one each time
    if args.multi_gpu:
        return vars(args), prepare_multi_gpu_env(args)
    return vars(args), prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.floors
@pytest.mark.filterwarnings("ignore:Port")
@pytest.mark.parametrize("nodes", [Nodes(nproc=2), Nodes(1, 2, 1, "127.0.0.1:29500"), Nodes(1)])
def test_no_field_of_a_configuration_in_the_users_home_counts(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "default_config.yaml"
    for module in (accelerate, config_args):
        monkeypatch.setattr(module, "default_config_file", str(home))
    argv = command(nodes, RUN, RUN, "no", ["--max_restarts", "0"])
    alone = as_accelerate_takes_it(argv)
    known = {field.name for field in fields(config_args.ClusterConfig)}  # by this Accelerate
    assert known <= AT_HOME.keys()
    for name in known:
        home.write_text(json.dumps({"distributed_type": "NO", name: AT_HOME[name]}))
        assert as_accelerate_takes_it(argv) == alone, name


def test_what_configures_accelerate_is_not_passed_on() -> None:
    base = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "HOME": "/root"}
    passed = environment(Nodes(nproc=2, cpu=True), base)
    assert {name for name in passed if name.startswith("ACCELERATE_")} == {"ACCELERATE_USE_CPU"}


@pytest.mark.parametrize(
    ("told", "omp", "expected"),
    [
        ({}, "7", 7),
        ({}, "3,2", 3),
        ({}, "", cores()),
        ({}, "0", cores()),
        ({}, "many", cores()),
        ({"threads": 5, "world_size": 1}, "7", 5),
        ({"threads": 5, "world_size": 2}, "7", 7),  # other bytes in any case
        ({"threads": None, "world_size": 1}, "7", 7),
    ],
)
def test_threads_are_those_that_a_run_began_with(
    told: Mapping[str, Any], omp: str, expected: int
) -> None:
    assert threads_of(Nodes(1), told, {"OMP_NUM_THREADS": omp}) == expected
