"""A process that has imported what every start imports, and forks itself into what tests start.

    python zygote.py SOCKET PARENT

What it becomes is real: a process of its own, a child of whoever started it, with the command line,
environment, folder, files, signals and end that a new Python would have; and so are those that this
one starts in turn. Only the seconds of importing torch are spared. See `warm` for the other side.
"""

import atexit
import faulthandler
import gc
import json
import os
import pkgutil
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, NoReturn

from new_python import kept, leave, run, set_command_line, take_files

from launcher.around import AGENT
from launcher.processes import die_with_parent

# What these words are in a shell: scripts that a package has installed.
_TOOLS = [str(Path(sys.executable).with_name(n)) for n in ("launcher", "torchrun", "accelerate")]
COVERAGE = "COVERAGE_PROCESS_CONFIG"  # environment variable: coverage.py's, for processes
COVERAGE_LATER = "ZYGOTE_COVERAGE"  # the same, for who waits with it
_HEAVY = ["torch", "torch._dynamo", "torch.distributed.run", "accelerate.commands.launch"]
_HEAVY += ["torchvision", "numpy.random", "jinja2", "rich.progress", "rich.table", "psutil"]
_RUN_AS_MAIN = {"launcher.__main__", "launcher.node.start", "launcher.node.guard"}
# What is read when a process runs, not when its modules are imported: may differ from ours.
_HARMLESS = re.compile(
    r"(WANDB|LAUNCHER|SLURM|SBATCH|PYTEST|COVERAGE|ZYGOTE|PET|TORCHELASTIC|MALLOC|GIT)_\w+"
    r"|(TORCHINDUCTOR|KMP|ACCELERATE)_\w+"
    r"|((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|GLIBC_TUNABLES"
    r"|(OMP|MKL|OPENBLAS)_NUM_THREADS|OMP_WAIT_POLICY|PYTHONUNBUFFERED"
    r"|GLOO_SOCKET_IFNAME|NETRC|NO_PROXY|TMPDIR|PATH|COLUMNS|LINES|NO_COLOR|TERM|PWD|OLDPWD|SHLVL|_"
)
_OF_A_SCRIPT = re.compile(r"PYTHONFAULTHANDLER|(CUDA|HIP)_VISIBLE_DEVICES|TORCH_NCCL_\w+")
_plain_exit = os._exit  # coverage.py's saves what it has seen


@dataclass(frozen=True)
class Start:
    """A process that is to be."""

    words: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    new_session: bool = False
    close_fds: bool = True
    scripts: bool = False  # whether what it starts may be warm, too, where it is the launcher
    passed: Sequence[int] = ()  # files that stay open
    before: Callable[[], object] | None = None  # what is done first: subprocess's preexec_fn

    @property
    def inherits(self) -> bool:
        """Whether only a fork of who starts it has all that it is to have."""
        return bool(self.passed or self.before)


def is_warm(
    words: Sequence[str], env: Mapping[str, str], ours: Mapping[str, str], *, scripts: bool = False
) -> bool:
    """Whether a command is one that a process which began with `ours` can become.

    A script of the launcher's is a new interpreter, but where `scripts` are to be warm, too.
    """
    if len(words) < (2 if scripts else 3) or words[0] != sys.executable:
        return False
    what, *more = words[2:] if words[1] == "-P" else words[1:]
    is_ours = what in _TOOLS or (what == "-m" and f"{more[0]}.".startswith("launcher."))
    is_file = what.endswith(".py") and (scripts or AGENT not in env)
    if not (is_ours or is_file or (what == "-m" and scripts and AGENT in env)):
        return False
    if not env.get("OMP_NUM_THREADS", "1").isdigit():
        return False
    names = {name for name in {*env, *ours} if env.get(name) != ours.get(name)}
    return all(
        _HARMLESS.fullmatch(name) or (scripts and _OF_A_SCRIPT.fullmatch(name)) for name in names
    )


class Hooks:
    """Have what this process and its descendants start become of a fork, where it can."""

    def __init__(self, ours: Mapping[str, str]) -> None:
        """Put them where subprocess and os look; `ours` is the environment at the start."""
        self.ours = ours
        self.signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.modules = set(sys.modules)
        self.finalizers = set(weakref.finalize._registry)  # type: ignore[attr-defined]
        self.threads = _computing()
        self.scripts = False
        self._at_exit: list[Any] = []
        self._atexit_register = atexit.register
        atexit.register = self._register  # type: ignore[assignment]
        self._fork_exec, self._posix_spawn = subprocess._fork_exec, os.posix_spawn  # type: ignore[attr-defined]
        subprocess._fork_exec = self.fork_exec  # type: ignore[attr-defined]
        os.posix_spawn = self.posix_spawn

    def _can(self, words: Sequence[str], env: Mapping[str, str]) -> bool:
        # To ask torch for more threads than it has starts some, and threads of C++ may have locks
        # that would stay closed; Python's own survive a fork.
        if env.get("OMP_NUM_THREADS", str(self.threads)) not in ("1", str(_computing())):
            return False
        if _threads() != threading.active_count():
            return False
        return is_warm(words, env, self.ours, scripts=self.scripts)

    def fork_exec(self, *given: Any) -> int:
        """Take what `subprocess.Popen` gives to C: see `_posixsubprocess.fork_exec`."""
        start, files, odd = understood(given)
        odd |= start.inherits and not self.scripts
        if odd or not self._can(start.words, start.env):
            return int(self._fork_exec(*given))
        return self._fork(start, files)

    def posix_spawn(self, path: Any, argv: Any, env: Any, **more: Any) -> int:
        """Start a process as os.posix_spawn does."""
        if more or os.fspath(path) != argv[0] or not self._can(argv, env):
            return self._posix_spawn(path, argv, env, **more)
        start = Start(list(argv), dict(env), str(Path.cwd()), close_fds=False)
        return self._fork(start, [0, 1, 2])

    def _fork(self, start: Start, files: Sequence[int]) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid == 0:
            self.become(replace(start, scripts=self.scripts), files)
        return pid

    def become(self, start: Start, files: Sequence[int]) -> NoReturn:
        """Be the process of that command, to its end."""
        try:
            self._take_place(start, files)
        except BaseException as error:  # noqa: BLE001  # nothing of the old process may run on
            os.write(2, f"zygote: {error!r}\n".encode())
            _plain_exit(127)
        leave(run(list(start.words)))

    def _take_place(self, start: Start, files: Sequence[int]) -> None:
        self._forget_the_exit()
        self.scripts = start.scripts
        if start.new_session:
            os.setsid()
        os.chdir(start.cwd)
        os.environ.clear()
        os.environ.update(start.env)
        for number, handler in self.signals.items():
            if signal.getsignal(number) not in (signal.SIG_IGN, handler):
                signal.signal(number, handler)
        take_files(files, close_fds=start.close_fds, passed=start.passed)
        if start.before:
            start.before()
        for name in set(sys.modules) - self.modules:  # of the process before: a recipe's
            if not isinstance(getattr(sys.modules[name], "__loader__", None), ExtensionFileLoader):
                kept.append(sys.modules.pop(name))  # it is taken away
        set_command_line(start.words)
        if os.environ.get("PYTHONFAULTHANDLER"):
            faulthandler.enable(2)
        tempfile.tempdir = None
        random.seed()
        sys.modules["numpy.random"].seed()
        threads = int(os.environ.get("OMP_NUM_THREADS", self.threads))
        if threads != _computing():
            sys.modules["torch"].set_num_threads(threads)
            os.register_at_fork(after_in_child=_renew_threads)

    def _register(self, function: Any, *args: Any, **named: Any) -> Any:
        self._at_exit.append(function)
        return self._atexit_register(function, *args, **named)

    def _forget_the_exit(self) -> None:
        """Leave what is to be done at the end of the process before to that process."""
        for function in self._at_exit:
            atexit.unregister(function)
        self._at_exit.clear()
        registry = weakref.finalize._registry  # type: ignore[attr-defined]
        for one in set(registry) - self.finalizers:
            del registry[one]


def _renew_threads() -> None:
    """Have torch make its pool of threads anew in a fork, while there is one thread to ask for it.

    It does so when it is first asked, and of several threads at once, as those of a backward pass
    are, one finds none: "Invalid thread pool!".
    """
    torch = sys.modules["torch"]
    torch.set_num_threads(torch.get_num_threads())


def understood(given: Sequence[Any]) -> tuple[Start, list[int], bool]:
    """Return what `_posixsubprocess.fork_exec` is to start, its files, and if it is odd.

    Odd is what only few ask for, and a new Python is better at.
    """
    line, _, close_fds, keep, cwd, env, p2cread, _, _, c2pwrite, _, errwrite = given[:12]
    new_session, group, gid, gids, uid, umask, before = given[15:22]
    pairs = dict(os.environ) if env is None else dict(os.fsdecode(e).split("=", 1) for e in env)
    folder = os.fsdecode(cwd) if cwd else str(Path.cwd())
    odd = group != -1 or umask != -1 or (gid, gids, uid) != (None, None, None)
    words = [os.fsdecode(word) for word in line]
    if words[0] in _TOOLS:
        words.insert(0, sys.executable)
    passed = [file for file in keep if file != given[13]]  # which tells how exec went
    start = Start(words, pairs, folder, bool(new_session), passed=passed, before=before)
    files = [p2cread, c2pwrite, errwrite]
    files = [place if file < 0 else file for place, file in enumerate(files)]
    return start, files, bool(odd or not close_fds or not Path(folder).is_dir())


def _computing() -> int:
    return int(sys.modules["torch"].get_num_threads())


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _import_all() -> None:
    told = os.environ.pop(COVERAGE_LATER, None)
    for name in _HEAVY:
        import_module(name)
    if told:  # from here on lines count; those of torch would cost time, and count for nothing
        os.environ[COVERAGE] = told
        import_module("coverage").process_startup()
        import_module("sitecustomize").count_what_runs()
    package = import_module("launcher")
    for found in pkgutil.walk_packages(package.__path__, "launcher."):
        if found.name not in _RUN_AS_MAIN:
            import_module(found.name)
    if told:  # once and for all: no fork has to write down again what importing runs
        sys.modules["coverage"].Coverage.current().save()


def serve(server: socket.socket, parent: int, hooks: Hooks) -> None:
    """Start a process for each request, until nobody is there to ask."""
    gc.collect()
    gc.freeze()
    server.sendall(b"+")
    while asked := _receive(server):
        start, files = asked
        if (between := os.fork()) == 0:
            if os.fork():
                _plain_exit(0)  # so the other one becomes a child of our parent, who adopts it
            while os.getppid() != parent:
                time.sleep(0.0005)
            server.sendall(struct.pack("i", os.getpid()))
            hooks.become(start, files)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def _receive(server: socket.socket) -> tuple[Start, list[int]] | None:
    head, files, _, _ = socket.recv_fds(server, 4, 3)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("i", head)
    text = b""
    while len(text) < size:
        text += server.recv(size - len(text))
    return Start(**json.loads(text)), files


def main(descriptor: int, parent: int) -> None:
    """Import, and serve."""
    weakref.finalize(main, int)  # the first of them asks to be heard at the exit, once and for all
    die_with_parent(parent)
    ours = dict(os.environ)
    _import_all()
    set_command_line([sys.executable, *sys.argv])
    if _threads() > 1:
        raise RuntimeError("a library has started threads, which no fork survives")
    serve(socket.socket(fileno=descriptor), parent, Hooks(ours))
    os._exit(0)  # triton complains of what it is at the end of an interpreter


if __name__ == "__main__":
    import_module("zygote").main(*map(int, sys.argv[1:]))  # so that it is no program's `__main__`
