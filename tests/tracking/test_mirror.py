"""W&B records every run, and can hurt none: the real client against a local server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import (
    RECIPES,
    Run,
    clean_environment,
    command,
    launcher,
    started,
    survivors,
    wait_for,
)
from wandb_server import API_KEY, Fault, WandbServer, read_offline, wandb_server
from wandb_server import Run as Page

from launcher.run.wandb import history_row, position
from launcher.run.weights import files_of

pytestmark = [pytest.mark.slow, pytest.mark.warm, pytest.mark.timeout(600)]
# 80 steps of some 50 ms, a report every 5: long enough for something to happen.
CURVE = (RECIPES / "curve.py", "epochs=4", "step_s=0.04", "hidden=16", "log_every=5")
LONG = (*CURVE[:1], "epochs=10", *CURVE[2:])
OFFLINE = {"WANDB_MODE": "offline"}
# The client waits up to 15 s between two uploads, and longer after a fault.
EAGER = {
    "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",  # whole seconds
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "1",
}
END_S = 15.0  # the most that W&B may add at the end


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running
        assert running.problems == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training without W&B."""
    folder = tmp_path_factory.mktemp("plain")
    done = launcher("run", *CURVE, "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Run(folder / "r")


def talking_to(server: WandbServer) -> dict[str, str]:
    """An environment in which nothing but credentials says what to do."""
    return server.env() | EAGER | {"WANDB_MODE": ""}


def page_of(server: WandbServer, run: Run) -> Page:
    return server.runs[json.loads((run.path / "config.json").read_text())["tracking"]["run_id"]]


def assert_all_arrived(page: Page, run: Run) -> None:
    """The page has just the rows of metrics.jsonl, in order, and steps that only grow."""
    assert page.rows == [history_row(row) for row in run.rows]
    assert [row["_step"] for row in page.history] == [position(row) for row in run.rows]
    assert [row["_timestamp"] for row in page.history] == [row["time"] for row in run.rows]


def sync(server: WandbServer, run: Run, *words: str) -> "subprocess.CompletedProcess[str]":
    return launcher("sync", run.path, *words, cwd=run.path.parent, env=talking_to(server))


# Fails where a training process has imported wandb.
ALONE = """
import sys
from dataclasses import dataclass
from curve import Curve
@dataclass(frozen=True)
class Alone(Curve):
    def train_step(self, model, batch, loss_fn):
        assert "wandb" not in sys.modules
        return super().train_step(model, batch, loss_fn)
"""


@pytest.mark.floors
@pytest.mark.cold  # a warm process has imported wandb
def test_three_processes_make_one_page_that_equals_the_run_directory(
    server: WandbServer, tmp_path: Path
) -> None:
    shutil.copy(RECIPES / "curve.py", tmp_path)
    recipe = tmp_path / "alone.py"
    recipe.write_text(ALONE)
    words = ("--nproc", 3, "--run-dir", "r", "--group", "g", "--tag", "a", "--tag", "b")
    done = launcher("run", recipe, "epochs=2", *words, cwd=tmp_path, env=talking_to(server))
    assert done.returncode == 0, done.stderr
    run, (page,) = Run(tmp_path / "r"), server.runs.values()
    assert_all_arrived(page, run)
    assert f"W&B: {server.url}/tester/alone/runs/{page.id}" in done.stderr
    assert (page.finished, page.exit_code, page.preempting) == (True, 0, False)
    names = (page.project, page.group, page.tags, page.display_name)
    assert names == ("alone", "g", ["a", "b"], "r")
    assert (page.config["world_size"], page.config["learning_rate"]) == (3, 0.1)
    assert {"versions", "git", "global_batch_size", "micro_batch_size"} <= set(page.config)
    assert page.summary["final/test_accuracy"] == run.result["test_accuracy"]
    tests = [row for row in run.rows if row["split"] == "test"]
    assert page.summary["best/accuracy"] == max(row["accuracy"] for row in tests)
    assert page.files["recipe.py"] == (run.path / "recipe.py").read_bytes()
    assert json.loads((run.path / "wandb.json").read_text())["complete"] is True


def test_weights_are_those_of_a_run_without_wandb(
    server: WandbServer, plain: Run, tmp_path: Path
) -> None:
    words = ("--run-dir", "r", "log_model=true")
    done = launcher("run", *CURVE, *words, cwd=tmp_path, env=talking_to(server))
    run = Run(tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert run.weight_bytes == plain.weight_bytes
    (artifact,) = server.artifacts
    assert (artifact.type, artifact.committed, "final" in artifact.aliases) == ("model", True, True)
    assert artifact.files["model.safetensors"] == run.weight_bytes


def test_final_weights_in_several_files_arrive_with_their_index(
    server: WandbServer, tmp_path: Path
) -> None:
    words = ("shard=true", "large=2000", "epochs=1", "log_model=true", "--nproc", 2)
    run, recipe = Run(tmp_path / "r"), RECIPES / "sharding.py"
    done = launcher("run", recipe, *words, "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = sync(server, run)
    assert done.returncode == 0, done.stderr
    files = files_of(run.path / "model.safetensors")
    assert len(files) > 3
    (artifact,) = server.artifacts
    assert artifact.files.items() >= {path.name: path.read_bytes() for path in files}.items()


def stop_request(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGUSR1)


def kill_everybody(process: "subprocess.Popen[str]") -> None:
    launcher_process = psutil.Process(process.pid)
    for one in [launcher_process, *launcher_process.children(recursive=True)]:
        one.kill()


@pytest.mark.parametrize("end", [stop_request, kill_everybody])
@pytest.mark.parametrize("between", ["online", "offline"])
def test_a_run_that_goes_on_keeps_its_page_and_loses_no_row(
    server: WandbServer,
    tmp_path: Path,
    end: Callable[["subprocess.Popen[str]"], None],
    between: str,
) -> None:
    run = Run(tmp_path / "r")
    words = ("run", *LONG, "checkpoint_every=7", "--run-dir", "r", "--tracking", "online")
    with started(*words, cwd=tmp_path, env=talking_to(server)) as process:
        wait_for(lambda: bool(server.runs) and len(next(iter(server.runs.values())).rows) >= 2)
        end(process)
        process.wait(30)
    (page,) = server.runs.values()
    if end is stop_request:
        assert (page.finished, page.exit_code, page.preempting) == (True, 1, True)
    again = ("resume", "r", "--nproc", "2")
    if between == "offline":  # what it does not send, the next session does
        with started(
            *again, "--tracking", "offline", cwd=tmp_path, env=talking_to(server)
        ) as process:
            rows = len(run.rows)
            wait_for(lambda: len(run.rows) >= rows + 2)
            end(process)
            process.wait(30)
    done = launcher(*again, "--tracking", "online", cwd=tmp_path, env=talking_to(server))
    assert done.returncode == 0, done.stderr
    assert list(server.runs) == [page.id]
    steps = [row["_step"] for row in page.history]
    assert steps == [position(row) for row in run.rows]  # none twice, none missing, none backwards
    speeds = ["samples_per_second", "step_time", "data_wait", "eta_seconds", "slowest_rank"]
    speeds += ["rank_time_median", "rank_time_slowest", "rank_time_of"]
    timeless = {"trainer/time", *(f"speed/{name}" for name in speeds)}
    for sent, row in zip(page.rows, run.rows, strict=True):
        kept = {k: v for k, v in history_row(row).items() if k not in timeless}
        assert {k: sent[k] for k in kept} == pytest.approx(kept, rel=1e-4)
    assert (page.config["world_size"], page.finished, page.exit_code) == (2, True, 0)


@pytest.mark.parametrize("fault", ["refuse", "black hole", "401", "500", "429", "slow"])
def test_a_server_that_fails_from_the_start_costs_nothing_but_a_warning(
    server: WandbServer, plain: Run, tmp_path: Path, fault: Fault
) -> None:
    server.fault = fault
    done, run, late_s = trained(server, tmp_path)
    assert run.weight_bytes == plain.weight_bytes
    assert late_s < END_S + 2
    server.back()
    if fault != "slow":  # which may be done in time
        assert done.count("recorded offline") == 1, done
        recorded = read_offline(next(run.path.glob("wandb/offline-run-*")))
        assert [row["_step"] for row in recorded.history] == [position(row) for row in run.rows]
        assert server.runs == {}
    assert "NOT" not in sync(server, run).stdout
    assert_all_arrived(page_of(server, run), run)


def trained(
    server: WandbServer,
    folder: Path,
    meanwhile: Callable[["subprocess.Popen[str]"], None] = lambda _: None,
    env: Mapping[str, str] | None = None,
) -> tuple[str, Run, float]:
    """Train CURVE to its good end; gives stderr, the run, and how long W&B took after training."""
    run = Run(folder / "r")
    environment = talking_to(server) | dict(env or {})
    with started("run", *CURVE, "--run-dir", "r", cwd=folder, env=environment) as process:
        meanwhile(process)
        wait_for((run.path / "result.json").exists)
        ended = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said, run, time.monotonic() - ended


def core_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """The process in which W&B's client does its work."""

    found: list[psutil.Process] = []  # of one look: at the next one it may have ended

    def seen() -> bool:
        family = psutil.Process(process.pid).children(recursive=True)
        found.extend(one for one in family if "wandb-core" in one.name() + one.exe())
        return bool(found)

    wait_for(seen)
    return found[0]


def arriving(server: WandbServer) -> Callable[[], bool]:
    return lambda: any(page.rows for page in server.runs.values())


def refuse(server: WandbServer, _: "subprocess.Popen[str]") -> None:
    server.fault = "refuse"


def swallow(server: WandbServer, _: "subprocess.Popen[str]") -> None:
    server.fault = "black hole"


def kill_core(_: WandbServer, process: "subprocess.Popen[str]") -> None:
    core_of(process).kill()


def stop_core(_: WandbServer, process: "subprocess.Popen[str]") -> None:
    core_of(process).suspend()


@pytest.mark.parametrize("breaks", [refuse, swallow, kill_core, stop_core])
def test_what_breaks_in_mid_run_costs_nothing_but_a_warning(
    server: WandbServer,
    plain: Run,
    tmp_path: Path,
    breaks: Callable[[WandbServer, "subprocess.Popen[str]"], None],
) -> None:
    def meanwhile(process: "subprocess.Popen[str]") -> None:
        wait_for(arriving(server))
        family.extend(psutil.Process(process.pid).children(recursive=True))
        breaks(server, process)

    family: list[psutil.Process] = []
    said, run, late_s = trained(server, tmp_path, meanwhile)
    assert run.weight_bytes == plain.weight_bytes
    assert late_s < END_S + 2
    assert said.count("`launcher sync r` uploads it") == 1, said
    assert survivors(family, timeout_s=5) == []
    server.back()
    answer = json.loads(sync(server, run, "--json").stdout)
    assert [one["complete"] for one in answer] == [True]
    assert_all_arrived(page_of(server, run), run)


def test_a_server_that_is_away_for_a_while_misses_nothing(
    server: WandbServer, plain: Run, tmp_path: Path
) -> None:
    def meanwhile(_: "subprocess.Popen[str]") -> None:
        wait_for(arriving(server))
        server.fault = "refuse"
        time.sleep(1)
        server.back()

    said, run, _ = trained(server, tmp_path, meanwhile)
    assert "WARNING" not in said
    assert run.weight_bytes == plain.weight_bytes
    assert_all_arrived(page_of(server, run), run)


def test_a_full_disk_of_wandb_s_costs_nothing_but_a_warning(
    server: WandbServer, plain: Run, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small disk is mounted for this test: run it as root")
    disk = tmp_path / "disk"
    disk.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk, cwd=tmp_path)
    try:
        (disk / "full").write_bytes(bytes(8192))
        _, run, late_s = trained(server, tmp_path, env={"WANDB_DIR": str(disk)})
    finally:
        command("umount", "--lazy", disk, cwd=tmp_path)
    assert run.weight_bytes == plain.weight_bytes
    assert late_s < END_S + 2
    assert json.loads(sync(server, run, "--json").stdout)[0]["complete"] is True
    assert_all_arrived(page_of(server, run), run)


def test_an_offline_run_is_whole_in_its_file_and_told_how_to_upload(
    server: WandbServer, tmp_path: Path
) -> None:
    env = talking_to(server) | {"WANDB_MODE": "dryrun"}  # what older clients call offline
    done = launcher("run", *CURVE, "--run-dir", "r", cwd=tmp_path, env=env)
    run = Run(tmp_path / "r")
    assert "W&B: recorded offline; `launcher sync r` uploads it" in done.stderr
    recorded = read_offline(run.path / "wandb")
    assert [row["_step"] for row in recorded.history] == [position(row) for row in run.rows]
    assert (recorded.config["learning_rate"], recorded.exit_code) == (0.1, 0)
    assert recorded.summary["final/test_accuracy"] == run.result["test_accuracy"]
    assert server.requests == []


def test_metrics_and_images_of_a_test_are_on_the_page(tmp_path: Path) -> None:
    words = ["best_by=-error", "--run-dir", "r", "--tracking", "offline"]
    done = launcher("run", RECIPES / "counted.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "r")
    recorded = read_offline(run.path / "wandb")
    tests = [row for row in run.rows if row["split"] == "test"]
    pages = [row for row in recorded.history if "test/miou" in row]
    assert [row["test/miou"] for row in pages] == [row["miou"] for row in tests]
    assert [row["after_test/picture._type"] for row in pages] == ["image-file"] * 2
    assert recorded.summary["best/error"] == min(row["error"] for row in tests)
    assert recorded.summary["final/test_miou"] == tests[-1]["miou"]


@pytest.mark.cold
def test_sigkill_costs_an_offline_run_a_second_and_a_resume_brings_it_back(
    server: WandbServer, tmp_path: Path
) -> None:
    run, offline = Run(tmp_path / "r"), talking_to(server) | OFFLINE
    words = ("run", *LONG[:-1], "log_every=1", "checkpoint_every=5", "--run-dir", "r")
    with started(*words, cwd=tmp_path, env=offline) as process:
        wait_for(lambda: any((run.path / "wandb").rglob("*.wandb")))
        wait_for(lambda: len(read_offline(run.path / "wandb").history) > 50)  # it starts slowly
        kill_everybody(process)
        process.wait(30)
    recorded = read_offline(run.path / "wandb").history
    # 50 ms a step: a second of rows, and the half second that the mirror is behind.
    assert len(run.rows) - len(recorded) <= 40
    assert launcher("resume", "r", cwd=tmp_path, env=offline).returncode == 0
    files = list(run.path.rglob("*.wandb"))
    assert len(files) == 1, "the piece of the killed session is in the file of the next"
    recorded = read_offline(files[0]).history
    assert [row["_step"] for row in recorded] == [position(row) for row in run.rows]


def test_sync_tells_the_truth_and_sends_nothing_twice(server: WandbServer, tmp_path: Path) -> None:
    done = launcher("run", "digits", "epochs=2", "--run-dir", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # W&B disabled: it can be uploaded all the same
    run = Run(tmp_path / "runs" / "a")
    server.fault = "401"
    refused = sync(server, run)
    assert (refused.returncode, "a: NOT complete" in refused.stdout) == (1, True)
    server.back()
    for sent in (4, 0):
        done = sync(server, run)
        assert (done.returncode, f"complete, {sent} rows sent now" in done.stdout) == (0, True)
    assert_all_arrived(page_of(server, run), run)
    everything = launcher("sync", cwd=tmp_path, env=talking_to(server))
    assert everything.stdout == "nothing to upload\n"
    nobody = talking_to(server) | {"WANDB_API_KEY": ""}
    assert "no credentials" in launcher("sync", cwd=tmp_path, env=nobody).stderr


@pytest.mark.parametrize("trouble", ["raise", "kill", "nan"])
def test_a_failed_run_is_failed_on_its_page(
    server: WandbServer, tmp_path: Path, trouble: str
) -> None:
    what = (f"what={trouble}", "batch_size=10", "--nproc", "2")
    words = ("run", RECIPES / "trouble.py", *what, "--run-dir", "r")
    done = launcher(*words, cwd=tmp_path, env=talking_to(server))
    assert done.returncode == 1
    (page,) = server.runs.values()
    assert (page.finished, page.exit_code) == (True, 1)
    assert page.summary["final/state"] == "failed"


def test_a_mistake_makes_no_page_and_leaves_nothing(server: WandbServer, tmp_path: Path) -> None:
    recipe = tmp_path / "mistake.py"
    recipe.write_text(
        (RECIPES / "curve.py")
        .read_text()
        .replace("return self.made(self.samples, key=1)", "return []")
    )
    done = launcher("run", recipe, cwd=tmp_path, env=talking_to(server))
    assert (done.returncode, "empty dataset" in done.stderr) == (2, True)
    assert (server.runs, list(tmp_path.iterdir())) == ({}, [recipe])


ACCELERATE = """-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1
    --mixed_precision no --dynamo_backend no --main_process_port 0"""


@pytest.mark.parametrize("start", ["", ACCELERATE], ids=["python", "accelerate"])
def test_a_recipe_started_as_a_program_has_its_page_too(
    server: WandbServer, tmp_path: Path, start: str
) -> None:
    words = [*start.split(), str(RECIPES / "curve.py"), "epochs=1", "--run-dir", "r"]
    env = talking_to(server) | {"ACCELERATE_USE_CPU": "true"}
    done = command(sys.executable, *words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    run, (page,) = Run(tmp_path / "r"), server.runs.values()
    assert_all_arrived(page, run)
    assert (page.finished, page.exit_code) == (True, 0)


def test_the_key_is_nowhere(server: WandbServer, tmp_path: Path) -> None:
    titles: list[str] = []

    def meanwhile(process: "subprocess.Popen[str]") -> None:
        wait_for(arriving(server))
        family = psutil.Process(process.pid).children(recursive=True)
        assert core_of(process) in family
        titles.extend(" ".join(one.cmdline()) for one in family)

    said, run, _ = trained(server, tmp_path, meanwhile, {"WANDB_DEBUG": "true"})
    sync(server, run)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if API_KEY.encode() in path.read_bytes()]
    assert len(titles) >= 2
    assert API_KEY not in said + "".join(titles)


# Counts the questions that reach a name server, in a network of its own.
LISTEN = """
import json, socket, subprocess, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.settimeout(0.5)
ends = []
for argv in json.loads(sys.argv[1]):
    ends.append(subprocess.run(argv).returncode)
asked = []
try:
    while True:
        asked.append(server.recvfrom(512)[0].hex())
except TimeoutError:
    print(json.dumps({"ends": ends, "asked": asked}))
"""


def test_offline_nothing_asks_for_a_name(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs a network of its own: run as root, with Debian's iproute2")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    train = [sys.executable, "-m", "launcher", "run", "digits", "epochs=2"]
    look_up = [
        sys.executable,
        "-c",
        "import socket\ntry: socket.getaddrinfo('a.example', 1)\nexcept OSError: pass",
    ]

    def asked_by(*commands: list[str]) -> dict[str, Any]:
        script = f"""
            mount --bind {tmp_path}/resolv.conf /etc/resolv.conf
            ip link set lo up
            exec "$@"
        """
        inside = ["unshare", "--net", "--mount", "sh", "-ec", script, "sh"]
        words = [*inside, sys.executable, "-c", LISTEN, json.dumps(commands)]
        env = clean_environment() | {"WANDB_MODE": "offline"}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    assert asked_by(look_up)["asked"], "a question would be heard"
    quiet = asked_by(train)
    assert quiet == {"ends": [0], "asked": []}


def test_a_sweep_runs_its_trials_each_on_its_page(server: WandbServer, tmp_path: Path) -> None:
    server.trials = [{"learning_rate": 0.03, "epochs": 1}, {"learning_rate": 0.3, "epochs": 1}]
    example = Path(__file__).parents[2] / "recipes" / "digits.sweep.yaml"
    done = launcher("sweep", example, "--project", "p", cwd=tmp_path, env=talking_to(server))
    assert done.returncode == 0, done.stderr
    assert "wandb agent tester/p/sweep0" in done.stdout
    pages = list(server.runs.values())
    assert [page.config["learning_rate"] for page in pages] == [0.03, 0.3]
    assert [(page.sweep, page.project) for page in pages] == [("sweep0", "p")] * 2
    for path in (tmp_path / "runs").iterdir():
        assert_all_arrived(page_of(server, Run(path)), Run(path))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("method: [")
    done = launcher("sweep", wrong, cwd=tmp_path, env=talking_to(server))
    assert (done.returncode, "W&B does not take" in done.stderr) == (2, True)
