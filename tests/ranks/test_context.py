"""Each process has a device of its own, or says before anything starts why it cannot."""

import os

import accelerate
import pytest
import torch

from launcher.data import device
from launcher.data.device import claim_gpu, usable_gpus
from launcher.errors import BadInput
from launcher.gpus import SHARED


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of two GPUs, in torch's own words; returns which of them was chosen."""
    devices: list[int] = []
    monkeypatch.delenv(SHARED, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(accelerate.utils, "check_cuda_p2p_ib_support", lambda: True)
    return devices


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_process_takes_the_gpu_of_its_place_on_the_machine(
    local_rank: int, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    claim_gpu()
    assert chosen == [local_rank]


@pytest.mark.parametrize("local_rank", [0, 2])
def test_more_processes_than_gpus_are_refused_by_all_of_them(
    local_rank: int, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(BadInput, match="3 processes on a machine that has 2 GPUs"):
        claim_gpu()
    assert chosen == []


def test_processes_share_gpus_only_where_the_tests_say_so(
    chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv(SHARED, "1")
    claim_gpu()
    assert chosen == [0]


def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "gpus", lambda: 0)
    claim_gpu()


def test_gpus_that_torch_cannot_use_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "gpus", lambda: 4)
    with pytest.raises(BadInput, match="there are 4 GPUs here, but torch") as e:
        usable_gpus()
    assert "--cpu" in str(e.value.hint)


def test_gpus_that_cannot_talk_to_each_other_are_used_all_the_same(
    chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.utils, "check_cuda_p2p_ib_support", lambda: False)
    monkeypatch.setenv("NCCL_IB_DISABLE", "0")
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    claim_gpu()
    assert os.environ["NCCL_P2P_DISABLE"] == "1"
    assert os.environ["NCCL_IB_DISABLE"] == "0"  # what the user says stays
