"""`submit --host` where something is wrong, and `pull`: a real sshd, and no SLURM behind it."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from login_node import Login, login_node, missing
from snapshots import repository
from training import RECIPES, launcher, started, wait_for

from launcher.errors import LauncherError
from launcher.remote import place as places
from launcher.remote.pull import pull
from launcher.remote.submit import submit as submit_there
from launcher.slurm import submit as submission
from launcher.slurm.points import Wishes

pytestmark = pytest.mark.slow
CODE = {
    "my.py": (RECIPES / "curve.py").read_text(),
    ".gitignore": "data/\n*.bin\n.venv/\n.cache/\nruns/\n",
    "data/big": "0",
    "deep/code.py": "",
    "deep/weights.bin": "w",
    ".venv/pyvenv.cfg": "",
    ".cache/x": "",
}
PYTHON = sys.executable


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    if reason := missing():
        pytest.skip(reason)
    with login_node(tmp_path_factory.mktemp("login"), {}) as running:
        yield running


@pytest.fixture
def laptop(login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project, and its folder on the login node, where all that is ignored is, too.

    Temporary files have a folder of their own, by a path that is short enough for a socket.
    """
    monkeypatch.setenv("PATH", login.env["PATH"])
    monkeypatch.chdir(repository(tmp_path / "laptop", CODE))
    for name in ("data/big", "deep/weights.bin"):
        (tmp_path / "there" / name).parent.mkdir(parents=True)
        (tmp_path / "there" / name).touch()
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield tmp_path / "laptop"


def submit(laptop: Path, host: str = "login", **keys: str) -> places.Place:
    """Submit from the laptop, in this process."""
    told = {"folder": str(laptop.parent / "there"), "python": PYTHON} | keys
    profile = laptop.parent / "site.toml"
    profile.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    plan = submission.plan(Wishes("my.py", profile=str(profile), run_dir=Path("runs/a")))
    return submit_there(plan, host, ["my.py"])


def written(folder: Path) -> list[str]:
    """What is in a folder; an empty `runs` may have been made."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != "runs")


def other_python(folder: Path, line: str) -> str:
    """A Python there that a line of shell starts."""
    (folder / "python").write_text(f'#!/bin/sh\n{line} "$@"\n')
    (folder / "python").chmod(0o755)
    return str(folder / "python")


WRONG = [
    ("silent", {}, "no connection to silent: .*Connection refused", "has to work"),
    ("nobody", {}, "no connection to nobody: .*Permission denied", "ssh-add"),
    ("stranger", {}, "no connection to stranger: .*verification failed", "once by hand"),
    ("login", {"folder": "/not/there"}, "no folder `/not/there` at login", "git clone"),
    ("login", {"folder": "~/not there"}, "no folder `~/not there` at login", "git clone"),
    ("login", {"python": "/not/there"}, "no Python `/not/there` at login", "has launcher"),
]


@pytest.mark.parametrize(("host", "keys", "said", "hint"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_wrong_with_the_way_there_is_told_and_leaves_nothing(
    login: Login, laptop: Path, host: str, keys: dict[str, str], said: str, hint: str
) -> None:
    refused(login, laptop, said, hint, host, **keys)


def refused(
    login: Login, laptop: Path, said: str, hint: str, host: str = "login", **keys: str
) -> None:
    """It must be refused, with nothing left here, there, or in between."""
    there = laptop.parent / "there"
    before = written(there), written(laptop)
    with pytest.raises(LauncherError, match=f"(?s){said}") as error:
        submit(laptop, host, **keys)
    assert hint in str(error.value.hint)
    assert (written(there), written(laptop)) == before
    assert not (laptop / "runs").exists()
    wait_for(lambda: not login.living())
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_a_launcher_of_another_version_there_or_none_is_refused(
    login: Login, laptop: Path, tmp_path: Path
) -> None:
    (tmp_path / "old" / "launcher").mkdir(parents=True)
    (tmp_path / "old" / "launcher" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    old = other_python(tmp_path, f"PYTHONPATH={tmp_path}/old exec {PYTHON}")
    refused(login, laptop, "has launcher 0.0.9, here it is", "install", python=old)
    none = other_python(tmp_path, f"exec {PYTHON} -I -S")
    refused(login, laptop, "has no launcher", "install", python=none)
    no_rsync = other_python(tmp_path, f"PATH=/nowhere exec {PYTHON}")
    refused(login, laptop, "no `rsync` at login", "installed", python=no_rsync)
    full = other_python(tmp_path, f"ulimit -f 0; exec {PYTHON}")
    refused(login, laptop, "at login: .*File too large", "", python=full)


def test_a_connection_that_is_lost_before_it_queues_is_told_and_leaves_nothing(
    login: Login, laptop: Path, tmp_path: Path
) -> None:
    asked, recipe = tmp_path / "asked", laptop / "my.py"
    slow = f"(os.mkdir({str(asked)!r}), time.sleep(60)) if '/there/' in __file__ else 0"
    recipe.write_text(recipe.read_text() + f"\nimport os, time\nSLOW = {slow}\n")

    def lose() -> None:
        wait_for(asked.exists)
        for one in login.living():
            one.kill()

    with ThreadPoolExecutor() as threads:
        losing = threads.submit(lose)
        refused(login, laptop, "nobody knows whether .* queued at login", "status")
        losing.result()


def test_ignored_files_that_are_not_there_are_named_and_a_run_there_is_not_taken_over(
    login: Login, laptop: Path
) -> None:
    there = laptop.parent / "there"
    shutil.rmtree(there / "data")
    (there / "deep" / "weights.bin").unlink()
    (laptop / ".env").touch()
    (laptop / "out").symlink_to("../shared/x")
    (laptop / "far").symlink_to("/nowhere/y")
    names = "../shared/x, .env, /nowhere/y, data, deep/weights.bin\n"
    refused(login, laptop, f"missing in .*there at login: {names}", "bring it")
    for name in (".env", "out", "far"):
        (laptop / name).unlink()
    (there / "data").mkdir()
    (there / "deep" / "weights.bin").touch()
    (there / "runs" / "a").mkdir(parents=True)
    refused(login, laptop, "there/runs/a` exists at login", "another --run-dir")


@pytest.mark.parametrize("lacking", ["ssh", "rsync"])
def test_a_laptop_without_ssh_or_rsync_is_told_what_to_install(
    login: Login, laptop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    for tool in {"ssh", "rsync", "git"} - {lacking}:
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tmp_path / "few"))
    refused(login, laptop, f"there is no `{lacking}` here", "openssh-client and rsync")


def test_a_refusal_of_the_launcher_there_is_told_and_leaves_nothing(
    login: Login, laptop: Path
) -> None:
    refused(login, laptop, "at login: .*", "")  # there is no SLURM


def slow_rsync(folder: Path, before: str, *options: str) -> dict[str, str]:
    """An environment in which rsync is slow: with a command before it, or some options."""
    file = folder / "slow" / "rsync"
    file.parent.mkdir()
    line = " ".join(["exec", str(shutil.which("rsync")), *options, '"$@"'])
    file.write_text(f"#!/bin/sh\n{before}\n{line}\n")
    file.chmod(0o755)
    return {"PATH": f"{file.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_submission_that_is_ended_leaves_no_connection_and_queues_nothing(
    login: Login, laptop: Path, tmp_path: Path, number: signal.Signals
) -> None:
    there = laptop.parent / "there"
    told = f'folder = "{there}"\npython = "{PYTHON}"\n'
    (laptop / "site.toml").write_text(told)
    before = written(there), written(laptop)
    env = slow_rsync(tmp_path, f"touch {tmp_path}/begun; sleep 20")
    env["TMPDIR"] = str(login.folder)  # a SIGKILL leaves temporary files
    words = ["submit", "my.py", "--host", "login", "--profile", "site.toml", "--run-dir", "runs/a"]
    with started(*words, cwd=laptop, env=env) as process:
        wait_for((tmp_path / "begun").exists)
        process.send_signal(number)
        assert process.wait(60) != 0
    wait_for(lambda: not login.living())
    assert not (laptop / "runs" / "a" / "remote.json").exists()
    if number != signal.SIGKILL:
        assert (written(there), written(laptop)) == before


def here_and_there(laptop: Path, name: str = "runs/a", host: str = "login") -> Path:
    """A run that is there, with its note here; returns the folder there."""
    there, here = laptop.parent / "there", laptop / name
    finished_run(there / name, rows=5)
    here.mkdir(parents=True)
    places.Place(host, str(there), PYTHON, str(there / name)).write(here)
    return there / name


def finished_run(folder: Path, rows: int) -> None:
    """A run as it is there, with all that is not to be pulled."""
    (folder / "logs").mkdir(parents=True)
    (folder / "slurm").mkdir()
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    for name in ("lock.json", "model.safetensors", "checkpoints/step-1/model.safetensors"):
        (folder / name).write_text("large")
    config = {"recipe": "my", "hyperparameters": {}, "world_size": 1, "created": 1.7e9}
    (folder / "config.json").write_text(json.dumps(config))
    row = {"split": "train", "step": 1, "epoch": 0, "loss": 0.5, "samples": 1}
    lines = [json.dumps(row | {"step": step}) + "\n" for step in range(rows)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "logs" / "rank-0.log").write_text("said")
    (folder / "slurm" / "job.json").write_text("{}")


def test_what_a_report_needs_is_pulled_again_and_again_and_a_break_leaves_no_half_of_it(
    login: Login, laptop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = here_and_there(laptop), laptop / "runs" / "a"
    pull(here)
    (here / "mine.txt").touch()
    names = ["config.json", "logs", "logs/rank-0.log", "metrics.jsonl", "mine.txt", "remote.json"]
    assert written(here) == [*names, "slurm", "slurm/job.json"]
    first = (here / "metrics.jsonl").read_text()

    with (there / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "noise": "{os.urandom(50).hex()}"}}\n'
                        for step in range(20_000))  # fmt: skip
    slow = slow_rsync(tmp_path, "", "--bwlimit=100")
    with started("pull", "runs/a", cwd=laptop, env=slow) as process:
        wait_for(lambda: any(here.glob(".metrics.jsonl.*")))
        for session in login.living():
            session.kill()
        assert process.wait(60) == 1
    assert (here / "metrics.jsonl").read_text() == first
    pull(here)
    assert (here / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()
    assert (here / "mine.txt").exists()
    wait_for(lambda: not login.living())


@pytest.mark.parametrize("name", ["a[1]", "a*", "a:b", "-x", "it's $HOME; a \"b\\"])
def test_a_run_of_an_odd_name_is_pulled_and_no_other(login: Login, laptop: Path, name: str) -> None:
    there = here_and_there(laptop, name)
    finished_run(there.parent / "a1", rows=2)  # what a[1] and a* may mean
    pull(Path(name))
    assert len((laptop / name / "metrics.jsonl").read_text().splitlines()) == 5


@contextmanager
def in_the_middle(
    laptop: Path, there: Path, env: dict[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A `pull` that has begun with metrics.jsonl, and takes some seconds."""
    (there / "metrics.jsonl").write_text(os.urandom(100_000).hex())
    with started("pull", "runs/a", cwd=laptop, env=env) as process:
        wait_for(lambda: any((laptop / "runs" / "a").glob(".metrics.jsonl.*")))
        yield process


def test_a_file_that_vanishes_while_a_run_is_pulled_is_none_that_is_missing(
    login: Login, laptop: Path, tmp_path: Path
) -> None:
    there = here_and_there(laptop)
    with in_the_middle(laptop, there, slow_rsync(tmp_path, "", "--bwlimit=50")) as process:
        (there / "slurm" / "job.json").unlink()
        assert process.wait(60) == 0
    pulled = (laptop / "runs" / "a" / "metrics.jsonl").read_text()
    assert pulled == (there / "metrics.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_is_ended_leaves_no_half_of_a_file_and_nothing_in_between(
    login: Login, laptop: Path, tmp_path: Path, number: signal.Signals
) -> None:
    there, between = here_and_there(laptop), Path(tempfile.gettempdir())
    slow = slow_rsync(tmp_path, "", "--bwlimit=50") | {"TMPDIR": str(between)}
    with in_the_middle(laptop, there, slow) as process:
        process.send_signal(number)
        assert process.wait(60) != 0
    wait_for(lambda: not login.living())
    wait_for(lambda: "metrics" not in " ".join(written(laptop / "runs" / "a")))
    assert not list(between.iterdir())


def test_status_asks_every_host_where_one_is_silent(login: Login, laptop: Path) -> None:
    here_and_there(laptop)
    here_and_there(laptop, "runs/0", "silent")  # the first to be asked
    for words in ([], ["--json"]):
        done = launcher("status", *words, cwd=laptop)
        assert done.returncode == 1
        assert f"{laptop.parent}/there/runs/a" in done.stdout
        assert "from silent" in done.stderr if words else "to silent" in done.stderr
        assert "`ssh silent true` has to work" in done.stderr


@pytest.mark.parametrize("name", ["0", "runs/a/", "./runs/a"])
def test_what_names_a_run_is_told_from_an_option_and_may_be_written_in_any_way(
    login: Login, laptop: Path, name: str
) -> None:
    there = here_and_there(laptop, name)
    (there / "logs" / "rank-0.log").write_text("it")
    (there.parent if name == "0" else there.parents[1]).rename(laptop.parent / "elsewhere")
    moved = laptop.parent / "elsewhere" / name
    places.Place("login", str(laptop.parent), PYTHON, str(moved)).write(laptop / name)
    done = launcher("logs", name, "--rank", "0", cwd=laptop)
    assert (done.returncode, done.stdout) == (0, "it"), done.stderr


def test_watch_has_the_terminal_and_ends_there_when_it_ends_here(
    login: Login, laptop: Path
) -> None:
    here_and_there(laptop)
    ours, theirs = pty.openpty()
    words = [PYTHON, "-m", "launcher", "watch", "runs/a"]
    env = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(
        words, cwd=laptop, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        page = b""
        while b"train loss" not in page:  # raises where the command ends before
            page += os.read(ours, 4096)
        assert login.runs("watch")
        os.write(ours, b"\x03")
        with suppress(OSError):  # nobody is left who writes
            while os.read(ours, 4096):
                pass
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not login.living())
    os.close(ours)


def test_a_connection_of_the_user_s_own_is_used_and_left_open(login: Login, laptop: Path) -> None:
    here_and_there(laptop)
    config, keys = login.folder / "ssh_config", login.folder / "authorized_keys"
    before, text = config.read_text(), keys.read_text()
    config.write_text(f"ControlPath {login.folder}/own-%r\n{before}")
    with subprocess.Popen(["ssh", "-MN", "login"], stdin=subprocess.DEVNULL) as own:
        try:
            wait_for(lambda: any(login.folder.glob("own-*")))
            keys.write_text("")  # from now on nobody gets in anew, as with a code that is asked for
            pull(laptop / "runs" / "a")
            assert launcher("logs", "runs/a", cwd=laptop).stdout == "said"
            assert own.poll() is None
        finally:
            own.terminate()
            config.write_text(before)
            keys.write_text(text)
    wait_for(lambda: not login.living())
