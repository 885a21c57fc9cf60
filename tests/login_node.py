"""A login node on this machine: a real sshd on the loopback, with keys of its own and its users'.

`ssh` reads the configuration of the user who runs it from their home, wherever HOME leads: a
program of that name, first in PATH, adds the test's own.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TOOLS = ("ssh", "ssh-keygen", "rsync")
PACKAGES = "openssh-server openssh-client rsync"
REMEDY = f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}"
_SSHD = "/usr/sbin/sshd"

# No password, no PAM: keys alone. SetEnv is what a site's login shell would set.
_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
{variables}
"""
_CLIENT = """\
Host login
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
Host nobody
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/other_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
Host stranger
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user_key
    UserKnownHostsFile /dev/null
    GlobalKnownHostsFile /dev/null
Host silent
    HostName 127.0.0.1
    Port {closed}
"""


@dataclass(frozen=True)
class Login:
    """A running sshd; `env` makes `ssh login` lead to it, by a key."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    env: dict[str, str]

    def living(self) -> list[psutil.Process]:
        """Processes of sessions, and what those have started; the server itself is left out."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def runs(self, word: str) -> bool:
        """Whether a command with a word lives there."""
        for one in self.living():
            with suppress(psutil.Error):  # it ended in between
                if word in one.cmdline():
                    return True
        return False


def missing() -> str | None:
    """Why no login node can be here, with the remedy; None when one can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    absent += [] if Path(_SSHD).exists() else ["sshd"]
    if absent:
        return f"no {', '.join(absent)}: {REMEDY}"
    return None if os.geteuid() == 0 else "sshd needs root: run the tests as root"


@contextmanager
def login_node(folder: Path, variables: Mapping[str, str]) -> Iterator[Login]:
    """A login node whose sessions have `variables`."""
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its children in
    for name in ("host_key", "user_key", "other_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port, closed = _port(), _port()
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
    told = " ".join(["SetEnv", *(f'{name}="{value}"' for name, value in variables.items())])
    values = {"folder": folder, "port": port, "closed": closed}
    values["variables"] = told if variables else ""
    (folder / "sshd_config").write_text(_SERVER.format(**values))
    (folder / "ssh_config").write_text(_CLIENT.format(**values))
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    with (folder / "sshd.log").open("wb") as log:
        words = [_SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(words, stderr=log, start_new_session=True)
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield Login(folder, process, {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"})
    finally:
        ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        process.wait(30)
        for one in ours[1:]:
            if one.is_running():
                one.kill()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no sshd: {log.read_text()}")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
