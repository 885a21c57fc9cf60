"""Processes talk to each other where they can all be reached."""

import os
import socket

import psutil
import pytest

from launcher.ranks.interface import choose_interface

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture
def network() -> tuple[str, str]:
    """The name and the address of an interface that others may reach."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return name, one.address
    pytest.skip("this machine has no network but loopback: give it one")


@pytest.mark.parametrize("before", [None, "lo", "ib0"])
@pytest.mark.parametrize("machines", [1, 2, 3])
def test_loopback_is_for_one_machine_and_what_is_named_for_several(
    machines: int, before: str | None, network: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, address = network
    for variable, value in (("WORLD_SIZE", 2 * machines), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("MASTER_ADDR", address)
    for variable in NAMES:  # `setenv` first: what it was comes back at the end
        monkeypatch.setenv(variable, before or "")
        monkeypatch.delenv(variable) if before is None else None
    choose_interface()
    chosen = [os.environ.get(variable) for variable in NAMES]
    if before == "ib0":
        assert chosen == ["ib0", "ib0"]
    else:
        assert chosen == (["lo", "lo"] if machines == 1 else [name, None])


@pytest.mark.parametrize("master", ["127.0.1.1", "127.0.0.1"])
def test_machine_0_whose_name_leads_to_itself_takes_no_loopback_but_where_all_do(
    master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", master)
    monkeypatch.setenv(NAMES[0], "lo")
    choose_interface()
    chosen = os.environ.get(NAMES[0])
    assert (chosen == "lo") == (master == "127.0.0.1")
