"""The network by which the processes of a run talk to each other: which interface they take."""

import os
import socket

import psutil

_HERE, _ELSEWHERE = "127.0.0.1", "192.0.2.1"  # nobody has the latter: it is for documents


def choose_interface() -> None:
    """Give gloo one interface, by what the environment says of this process's world."""
    one_machine = os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")
    choose(None if one_machine else os.environ.get("MASTER_ADDR", _HERE))


def choose(other: str | None) -> None:
    """Give gloo one interface: loopback on one machine, else the one that leads to machine 0.

    `other` is machine 0, None on one machine.

    Left alone it takes whatever the host name resolves to, which is often the wrong one. NCCL,
    which knows its way between machines, gets loopback on one. What the environment names is
    taken, but for loopback between machines: a run on one machine, from which this one was
    started, has left it there.
    """
    loopback, master = _leads_to(_HERE), other or _HERE
    chosen = _leads_to(master)
    if chosen == loopback and master not in (_HERE, "localhost"):
        # Machine 0 by its own name, which Debian has lead to itself.
        chosen = _leads_to(_ELSEWHERE) or _first_but(loopback)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if os.environ.get(variable, "") == loopback != chosen:
            del os.environ[variable]
    if chosen:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", chosen)
        if other is None:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", chosen)


def _leads_to(host: str) -> str | None:
    """Return the interface by which this machine reaches another, None where it does not."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # a datagram socket: nothing is sent
            mine = probe.getsockname()[0]
    except OSError:
        return None
    names = psutil.net_if_addrs().items()
    if mine.startswith("127."):  # Debian's 127.0.1.1 is no interface's address
        mine = _HERE
    return next((name for name, all_of in names if mine in [one.address for one in all_of]), None)


def _first_but(loopback: str | None) -> str | None:
    """Return the first interface that is up and has an address, where no route leads elsewhere."""
    up = {name for name, found in psutil.net_if_stats().items() if found.isup}
    for name, all_of in psutil.net_if_addrs().items():
        if name in up - {loopback} and any(one.family == socket.AF_INET for one in all_of):
            return name
    return None
