"""The local W&B server and the offline reader, against the real client."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_server import Fault, Run, WandbServer, read_offline, wandb_server

slow = pytest.mark.slow

START = """\
import os, signal, sys, time
import wandb
run = wandb.init(id="abc", project="p", resume="allow", settings=wandb.Settings(console="off"))
"""
LOG = START + "for i in range(300): run.log({'i': i, 'loss': 1 / (i + 1)})\n"
ROWS = [{"i": i, "loss": 1 / (i + 1)} for i in range(300)]

# What bounds the client: seconds, and numbers of further tries.
IMPATIENT = {
    "WANDB_INIT_TIMEOUT": "5",
    "WANDB_FINISH_TIMEOUT": "4",
    "WANDB_X_DISABLE_VIEWER": "true",
    "WANDB_X_GRAPHQL_RETRY_MAX": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "1",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "3",
}
# What makes it deliver soon after a fault, so that tests are quick.
EAGER = {
    "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "1",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "2",
}


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running
        assert running.problems == []


def start(server: WandbServer, folder: Path, code: str, **env: str) -> subprocess.Popen[str]:
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=folder,
            env=server.env() | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def client(server: WandbServer, folder: Path, code: str, **env: str) -> str:
    """Run the code to its good end; give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=server.env() | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sync(server: WandbServer, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *options, str(run)],
        cwd=run,
        env=server.env(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def offline_run(folder: Path) -> Path:
    (found,) = (folder / "wandb").glob("offline-run-*")
    return found


@slow
def test_rows_arrive_in_order_and_equal_what_was_logged(
    server: WandbServer, tmp_path: Path
) -> None:
    client(server, tmp_path, LOG + "run.finish()")
    run = server.runs["abc"]
    assert run.rows == ROWS
    assert [row["_step"] for row in run.history] == list(range(300))
    assert (run.finished, run.exit_code, run.project, run.entity) == (True, 0, "p", "tester")


@slow
def test_config_summary_and_names_arrive(server: WandbServer, tmp_path: Path) -> None:
    code = """\
import wandb
run = wandb.init(
    id="abc", project="p", entity="team", group="g", job_type="train", name="n", notes="why",
    tags=["a", "b"], config={"lr": 0.1, "net": {"width": 2}}, settings=wandb.Settings(console="off")
)
run.log({"loss": 0.5})
run.config.update({"later": [1, 2]})
run.summary["best"] = 3
run.finish()
"""
    client(server, tmp_path, code)
    run = server.runs["abc"]
    assert run.config == {"lr": 0.1, "net": {"width": 2}, "later": [1, 2]}
    assert {key: run.summary[key] for key in ("loss", "best")} == {"loss": 0.5, "best": 3}
    names = (run.entity, run.display_name, run.group, run.job_type, run.notes, run.tags)
    assert names == ("team", "n", "g", "train", "why", ["a", "b"])


@slow
def test_a_resumed_run_goes_on_and_loses_nothing(server: WandbServer, tmp_path: Path) -> None:
    client(server, tmp_path, LOG + "run.config.update({'a': 1}); run.finish(exit_code=1)")
    assert server.runs["abc"].exit_code == 1
    client(server, tmp_path, LOG + "run.config.update({'b': 2}); run.finish()")
    run = server.runs["abc"]
    assert run.rows == ROWS + ROWS
    assert [row["_step"] for row in run.history] == list(range(600))
    assert (run.config, run.finished, run.exit_code) == ({"a": 1, "b": 2}, True, 0)


@slow
@pytest.mark.parametrize(
    ("end", "exit_code"),
    [("run.finish(exit_code=3)", 3), ("raise ValueError", 1), ("sys.exit(7)", 7)],
)
def test_the_exit_code_of_a_run_arrives(
    server: WandbServer, tmp_path: Path, end: str, exit_code: int
) -> None:
    start(server, tmp_path, START + end).communicate(timeout=60)
    assert (server.runs["abc"].finished, server.runs["abc"].exit_code) == (True, exit_code)


@slow
def test_a_run_killed_by_sigkill_never_finishes(server: WandbServer, tmp_path: Path) -> None:
    code = LOG + "time.sleep(3); os.kill(os.getpid(), signal.SIGKILL)"
    process = start(server, tmp_path, code, **EAGER)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (server.runs["abc"].rows, server.runs["abc"].finished) == (ROWS, False)


@slow
def test_saved_files_and_artifacts_arrive(server: WandbServer, tmp_path: Path) -> None:
    code = """
os.makedirs("recipes")
for name in ("recipes/x y.py", "weights.bin"):
    with open(name, "w") as file: file.write("content of " + name)
run.save("recipes/x y.py", policy="now")
artifact = wandb.Artifact("checkpoint", "model")
artifact.add_file("weights.bin")
run.log_artifact(artifact, aliases=["best"])
run.finish()
"""
    client(server, tmp_path, START + code)
    assert server.runs["abc"].files["recipes/x y.py"] == b"content of recipes/x y.py"
    (artifact,) = server.artifacts
    assert (artifact.name, artifact.type, artifact.run) == ("checkpoint", "model", "abc")
    assert (artifact.committed, sorted(artifact.aliases)) == (True, ["best", "latest"])
    assert artifact.files["weights.bin"] == b"content of weights.bin"


@slow
@pytest.mark.parametrize("fault", ["401", "429", "500", "refuse", "black hole"])
def test_init_raises_within_ten_seconds_and_offline_remains(
    server: WandbServer, tmp_path: Path, fault: Fault
) -> None:
    code = """\
import time, wandb
started = time.monotonic()
settings = wandb.Settings(console="off")
try:
    wandb.init(id="abc", project="p", resume="allow", settings=settings)
except wandb.errors.CommError:
    print(time.monotonic() - started)
    wandb.teardown()
run = wandb.init(mode="offline", id="abc", project="p", resume="allow", settings=settings)
run.log({"i": 0})
run.finish()
"""
    server.fault = fault
    out = client(server, tmp_path, code, **IMPATIENT)
    assert float(out.splitlines()[0]) < 10
    assert server.requests == []
    assert read_offline(offline_run(tmp_path)).history[0]["i"] == 0


@slow
def test_a_slow_server_delays_init_and_nothing_is_lost(server: WandbServer, tmp_path: Path) -> None:
    server.fault = "slow"
    client(server, tmp_path, LOG + "run.finish()", WANDB_X_DISABLE_VIEWER="true")
    assert (server.runs["abc"].rows, server.runs["abc"].finished) == (ROWS, True)


# Logs the first 100 rows, waits for the test, logs the rest, waits again, and finishes.
TWO_PARTS = (
    START
    + """
slowest = 0
for i in range(300):
    if i == 100:
        print("part", flush=True), sys.stdin.readline()
    before = time.monotonic()
    run.log({"i": i, "loss": 1 / (i + 1)})
    slowest = max(slowest, time.monotonic() - before)
print("whole", flush=True), sys.stdin.readline()
before = time.monotonic()
run.finish()
print(slowest, time.monotonic() - before)
"""
)


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


@slow
@pytest.mark.parametrize("fault", ["401", "429", "500", "refuse", "black hole"])
def test_a_server_lost_in_mid_run_stops_neither_log_nor_finish(
    server: WandbServer, tmp_path: Path, fault: Fault
) -> None:
    process = start(server, tmp_path, TWO_PARTS, **IMPATIENT | EAGER)
    assert process.stdout
    assert process.stdout.readline() == "part\n"
    server.fault = fault
    say(process)
    assert process.stdout.readline() == "whole\n"
    out, _ = process.communicate("\n", timeout=60)
    slowest_log, finish = map(float, out.split())
    assert process.returncode == 0
    assert slowest_log < 2
    assert finish < 4 + 4
    assert not server.runs["abc"].finished
    kept = read_offline(tmp_path / "wandb")  # an online run writes the same file
    assert [row["i"] for row in kept.history] == list(range(300))


@slow
@pytest.mark.parametrize("fault", ["429", "500", "refuse", "black hole"])
def test_a_server_that_comes_back_gets_every_row(
    server: WandbServer, tmp_path: Path, fault: Fault
) -> None:
    process = start(server, tmp_path, TWO_PARTS, **EAGER)
    assert process.stdout
    assert process.stdout.readline() == "part\n"
    server.fault = fault
    say(process)
    assert process.stdout.readline() == "whole\n"
    time.sleep(3)
    assert len(server.runs["abc"].rows) <= 100
    server.back()
    process.communicate("\n", timeout=120)
    run = server.runs["abc"]
    assert (run.rows, run.finished, run.exit_code) == (ROWS, True, 0)


@slow
def test_an_agent_runs_the_trials_of_a_sweep(server: WandbServer, tmp_path: Path) -> None:
    code = """\
import sys, wandb
with wandb.init(settings=wandb.Settings(console="off")) as run:
    run.log({"loss": run.config.lr * 2})
print(*sys.argv, flush=True)
"""
    (tmp_path / "train.py").write_text(code)
    (tmp_path / "sweep.yaml").write_text(f"""\
program: train.py
method: grid
parameters: {{lr: {{values: [0.1, 0.2]}}}}
command: [{sys.executable}, "${{program}}", "${{args_no_hyphens}}"]
""")
    wandb = [sys.executable, "-m", "wandb"]
    subprocess.run(
        [*wandb, "sweep", "-p", "p", "sweep.yaml"], cwd=tmp_path, env=server.env(), check=True
    )
    server.trials = [{"lr": 0.1}, {"lr": 0.2}]
    done = subprocess.run(
        [*wandb, "agent", "tester/p/sweep0"],
        cwd=tmp_path,
        env=server.env(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["train.py lr=0.1", "train.py lr=0.2"]
    runs = server.runs.values()
    assert [run.config for run in runs] == [{"lr": 0.1}, {"lr": 0.2}]
    assert [(run.rows, run.sweep, run.project) for run in runs] == [
        ([{"loss": 0.2}], "sweep0", "p"),
        ([{"loss": 0.4}], "sweep0", "p"),
    ]


OFFLINE = {"WANDB_MODE": "offline"}


@slow
def test_an_offline_run_is_read_back_also_when_torn(server: WandbServer, tmp_path: Path) -> None:
    code = "run.config['lr'] = 0.1; run.config['net'] = {'w': 2}; run.finish(exit_code=3)"
    client(server, tmp_path, LOG + code, **OFFLINE)
    found = read_offline(tmp_path)
    assert (found.run_id, found.exit_code, found.torn) == ("abc", 3, False)
    assert found.config == {"lr": 0.1, "net": {"w": 2}}
    assert [{"i": row["i"], "loss": row["loss"]} for row in found.history] == ROWS
    assert found.summary["i"] == 299

    (file,) = tmp_path.rglob("*.wandb")
    whole = file.read_bytes()
    assert len(whole) > 2 * 32 * 1024  # so that records cross the edges of blocks
    cut = tmp_path / "cut.wandb"
    for size in (0, 7, 9, 32 * 1024 - 1, 32 * 1024 + 3, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        part = read_offline(cut)
        assert part.history == found.history[: len(part.history)]
        assert part.exit_code is None
    cut.write_bytes(whole[:40_000] + b"?" + whole[40_001:])
    assert read_offline(cut).torn
    assert server.requests == []


@slow
def test_an_offline_run_killed_by_sigkill_keeps_all_but_its_last_second(
    server: WandbServer, tmp_path: Path
) -> None:
    code = LOG + "time.sleep(3); run.log({'i': -1}); os.kill(os.getpid(), signal.SIGKILL)"
    flush = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1"}
    process = start(server, tmp_path, code, **OFFLINE | flush)
    process.communicate(timeout=60)
    found = read_offline(tmp_path)
    assert [row["i"] for row in found.history][:300] == list(range(300))
    assert found.exit_code is None


@slow
def test_sync_of_an_offline_run_marks_only_success_and_fails_with_exit_code_0(
    server: WandbServer, tmp_path: Path
) -> None:
    client(server, tmp_path, LOG + "run.finish(exit_code=3)", **OFFLINE)
    marker = offline_run(tmp_path) / "run-abc.wandb.synced"

    server.fault = "401"
    refused = sync(server, marker.parent)
    assert refused.returncode == 0
    assert "ERROR" in refused.stderr
    assert not marker.exists()

    server.back()
    accepted = sync(server, marker.parent)
    assert "ERROR" not in accepted.stderr
    assert marker.exists()
    again = sync(server, marker.parent)
    assert "No runs to sync" in again.stderr
    run = server.runs["abc"]
    assert (run.rows, run.finished, run.exit_code) == (ROWS, True, 3)


@slow
def test_sync_of_an_online_run_sends_its_rows_a_second_time(
    server: WandbServer, tmp_path: Path
) -> None:
    """The client doesn't mark what it uploaded online: never sync such a folder."""
    client(server, tmp_path, LOG + "run.finish()")
    (folder,) = (tmp_path / "wandb").glob("run-*")
    sync(server, folder)
    assert server.runs["abc"].rows == ROWS
    sync(server, folder, "--include-online")
    assert server.runs["abc"].rows == ROWS + ROWS


@slow
def test_wandb_core_ends_soon_after_its_killed_parent(server: WandbServer, tmp_path: Path) -> None:
    code = START + "import psutil; print(*(c.pid for c in psutil.Process().children()), flush=True)"
    process = start(server, tmp_path, code + "; time.sleep(60)", **OFFLINE)
    assert process.stdout
    (core,) = process.stdout.readline().split()
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while Path("/proc", core).exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_history_is_merged_by_the_number_of_the_line() -> None:
    run = Run("abc", "abc")

    def send(offset: int, *lines: str) -> str:
        files = {"wandb-history.jsonl": {"offset": offset, "content": list(lines)}}
        return run.stream({"files": files})

    assert send(0, '{"i": 0}', '{"i": 1}') == ""
    assert send(1, '{"i": 1}', '{"i": 2}') == ""  # sent twice, after a lost answer
    assert run.rows == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert send(5, '{"i": 5}') == "abc: line 5 of wandb-history.jsonl after 3 lines"


def test_what_the_server_does_not_know_is_a_problem() -> None:
    with wandb_server() as server:
        status, _ = server.answer("POST", "/graphql", b'{"query": "query Weather { sun }"}')
        assert (status, server.requests) == (400, ["Weather"])
        assert server.answer("GET", "/sun", b"")[0] == 404
        assert server.problems == ["query Weather { sun }", "GET /sun"]
