"""The way to a login node: the user's own ssh and rsync, with their configuration, keys and agent.

Nothing here asks for a password, or answers a question about a host's key: what ssh cannot do by
itself is an error, in its own words.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launcher.errors import BadInput, LauncherError
from launcher.masks import clean
from launcher.remote import there
from launcher.tied import TIED

LOST = 255  # ssh's exit code where there is no connection, or none any more
_NO_PYTHON = (126, 127)  # a shell's exit codes where a program cannot be run, or is not there
_VANISHED = 24  # rsync's exit code where all is well but for files that are there no longer
_READY = "launcher: connected"
# No question is asked, and a connection that is dead is noticed. What a user's configuration may
# have for logins (a command, forwarded ports) is left out.
_OPTIONS = [
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=30"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
    *("-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes"),
]
# The program comes on stdin with what it is asked: no shell has a limit for it, and no list of
# processes shows it.
_BOOT = "import json, sys; a = json.loads(sys.stdin.read()); exec(a.pop('program'), {'asked': a})"


def host_of(name: str) -> str:
    """Return a host as ssh takes it; raises BadInput for what would be an option, or two words."""
    if not name or name.startswith("-") or ":" in name or any(c.isspace() for c in name):
        hint = "LOGIN or USER@LOGIN, as `ssh` takes it; ports and the like go into ~/.ssh/config"
        raise BadInput(f"`{name}` is no host", hint=hint)
    return name


def in_shell(words: Iterable[str], folder: str, env: Mapping[str, str] | None = None) -> str:
    """Return a command line for whatever shell a user has there: a login's, with its PATH.

    `~/` at the start of the folder, and of the first word, is the home there.
    """
    first, *rest = words
    given = [f"{name}={value}" for name, value in (env or {}).items()]
    start = ["exec", *(["env", *map(shlex.quote, given)] if given else []), _at_home(first)]
    line = " ".join([*start, *map(shlex.quote, rest)])
    return f'exec "$SHELL" -lc {shlex.quote(f"cd {_at_home(folder)} && {line}")}'


def _at_home(path: str) -> str:
    """Quote a path but for what a shell puts in the place of `~`."""
    if path == "~" or path.startswith("~/"):
        return path[:2] + (shlex.quote(path[2:]) if path[2:] else "")
    return shlex.quote(path)


def pass_on(host: str, line: str, *, on_terminal: bool = False) -> int:
    """Run a command there that speaks for itself; returns its exit code.

    It ends with this process: on a terminal it is hung up, else the end of its stdin tells it (see
    `launcher.tied`). Raises LauncherError where there is no connection.
    """
    how = "-t" if on_terminal else "-T"
    words = [_program("ssh"), *_OPTIONS, how, host_of(host), line]
    with subprocess.Popen(words, stdin=None if on_terminal else subprocess.PIPE) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code == LOST:
        raise LauncherError(f"no connection to {host}, or it was lost", hint=_hint(host, ""))
    return code


def output_of(host: str, line: str) -> str:
    """Return what a command there prints; raises LauncherError where it fails."""
    words = [_program("ssh"), *_OPTIONS, "-nT", host_of(host), line]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise LauncherError(f"no answer from {host}", hint=_hint(host, ""))
    return done.stdout


def tied_env(*, on_terminal: bool) -> dict[str, str]:
    """Return what a command there needs in its environment in order to end with `pass_on`."""
    return {} if on_terminal else {TIED: "0"}


class Connection:
    """One connection for several commands; closed at the end, and with this process.

    Where the user has one open to that host (ControlMaster in ~/.ssh/config), it is used, and left
    open: so a login that asks for more than a key can be made beforehand.
    """

    def __init__(self, host: str) -> None:
        self.host = host_of(host)
        self._ssh = [_program("ssh"), *_OPTIONS]
        self._rsync = _program("rsync")
        self._master: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._files = tempfile.TemporaryDirectory(prefix="launcher-", dir=_short())  # 0700
        try:
            own = [*self._ssh, "-O", "check", self.host]
            if subprocess.run(own, capture_output=True, check=False).returncode:
                self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        """Open a connection, which lives as long as this process holds the pipe to its command."""
        self._ssh += ["-S", f"{self._files.name}/s"]
        words = [*self._ssh, "-MT", self.host, f"echo '{_READY}'; exec cat >/dev/null"]
        said = Path(self._files.name, "said")
        with said.open("wb") as errors:
            self._master = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,  # a Ctrl-C is for this process, which has to tidy up there
            )
        assert self._master.stdout
        for line in self._master.stdout:  # a login's greetings may come before
            if line.strip() == _READY:
                return
        self._master.wait()
        raise self._lost(said.read_text(errors="replace").strip())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._master:
            for pipe in (self._master.stdin, self._master.stdout):
                if pipe:
                    pipe.close()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
        self._files.cleanup()

    def ask(self, folder: str, python: str, what: str, **asked: Any) -> dict[str, Any]:
        """Have `there` do something in a folder by a Python there; returns what it answers.

        Its warnings are passed on. Raises BadInput where the folder or the Python is not there,
        LauncherError where there is no connection any more, and where the answer is none.
        """
        text = Path(there.__file__).read_text(encoding="utf-8")
        line = in_shell([python, "-c", _BOOT], folder)
        told = json.dumps({"program": text, "do": what, **asked})
        done = subprocess.run(
            [*self._ssh, "-T", self.host, line],
            input=told,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if (answer := _answer(done.stdout)) is not None:
            for line in done.stderr.splitlines():
                if line.startswith("warning: "):
                    print(clean(line), file=sys.stderr)
            return answer
        said = done.stderr.strip() or done.stdout.strip()
        if done.returncode == LOST:
            raise self._lost(said)
        if done.returncode in _NO_PYTHON:
            hint = "name one that has launcher: `python` in the profile"
            raise BadInput(f"no Python `{python}` at {self.host}: {said}", hint=hint)
        if "cd: " in said:
            hint = "make it there (`git clone`, `mkdir`), or name another: `folder` in the profile"
            raise BadInput(f"no folder `{folder}` at {self.host}: {said}", hint=hint)
        raise LauncherError(f"`{python}` at {self.host} ended with {done.returncode}: {said}")

    def copy(
        self,
        *words: str,
        folder: str,
        rsync: str = "rsync",
        names: Iterable[str] = (),
        may_vanish: bool = False,
    ) -> None:
        """Run rsync over this connection; `names` go to its `--files-from`.

        `HOST:./` is the folder there: rsync would take `[1]` in a path for a pattern. `may_vanish`:
        files that are deleted there meanwhile are none that are missing here. Raises LauncherError
        with rsync's words where not all was copied.
        """
        ssh = ["-e", shlex.join(self._ssh)]
        ssh += [f"--rsync-path=cd {shlex.quote(folder)} && {shlex.quote(rsync)}"]
        told = b"".join(os.fsencode(name) + b"\0" for name in names)
        argv = [self._rsync, "--protect-args", *ssh, *words]
        done = subprocess.run(argv, input=told, capture_output=True, check=False)
        if done.returncode and not (may_vanish and done.returncode == _VANISHED):
            said = os.fsdecode(done.stderr).strip()
            raise LauncherError(
                f"rsync between here and {self.host} ended with {done.returncode}: {said}",
                hint="once that is mended, give the command again",
            )

    def _lost(self, said: str) -> LauncherError:
        return LauncherError(f"no connection to {self.host}: {said}", hint=_hint(self.host, said))


def _program(name: str) -> str:
    if path := shutil.which(name):
        return path
    hint = "install your system's openssh-client and rsync: runs go to a host by them"
    raise BadInput(f"there is no `{name}` here", hint=hint)


def _short() -> str:
    """Return where temporary files go, by a short path: that of a socket may have 100 letters."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < 60 else "/tmp"  # noqa: S108  # in a folder of its own


def _hint(host: str, said: str) -> str:
    """Return what to do where ssh has no connection."""
    if "verification failed" in said:
        return f"`ssh {host}` once by hand shows the host's key, and takes it if you say so"
    if "denied" in said:
        return (
            "a key or an agent has to do (`ssh-add`), for no password is asked here; or log in "
            "by hand with ControlMaster in ~/.ssh/config: that connection is used"
        )
    return f"`ssh {host} true` has to work, without a question"


def _answer(said: str) -> dict[str, Any] | None:
    """Return the JSON object of the last line; greetings of a login may come before."""
    try:
        found = json.loads((said.splitlines() or [""])[-1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
