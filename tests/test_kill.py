"""Kill anything: the run ends with the same weights, byte for byte, and nobody is left behind."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import CLOCKED, RECIPES, Run, family, launcher, started, survivors, wait_for

from launcher.run import mark

pytestmark = [pytest.mark.slow, pytest.mark.warm, pytest.mark.timeout(400)]
CURVE = RECIPES / "curve.py"
WORDS = [
    *("epochs=4", "samples=197", "test_samples=60", "test_batch_size=10", "checkpoint_every=3"),
    *("log_every=4", "dropout=0.2", "augment=true", "schedule=true", "step_s=0.02", "test_s=0.02"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Run]:
    """Runs that nobody killed, made when first asked for."""
    made: dict[tuple[int, str], Run] = {}

    def run(world: int, optimizer: str) -> Run:
        if (world, optimizer) not in made:
            folder = tmp_path_factory.mktemp(f"whole-{world}-{optimizer}")
            words = ["run", CURVE, *WORDS, *options(optimizer), "--nproc", str(world)]
            done = launcher(*words, "--run-dir", "r", cwd=folder)
            assert done.returncode == 0, done.stderr
            made[world, optimizer] = Run(folder / "r")
        return made[world, optimizer]

    return run


def options(optimizer: str) -> list[str]:
    """The name of an optimizer, and hyperparameters behind it."""
    return f"optimizer_name={optimizer}".split()


def in_a_step(run: Path) -> bool:
    target = random.Random(str(run)).randint(1, 14)
    found = mark.read(run / "logs" / "rank-0.mark")
    return found is not None and found.steps >= target


def in_a_save(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.tmp"))


def in_a_test(run: Path) -> bool:
    rows = Run(run).rows
    return len(rows) > 2 and rows[-1]["split"] == "train" and rows[-1]["step"] % 4 == 0


def victims(launched: int, victim: str) -> list[psutil.Process]:
    everybody = psutil.Process(launched).children(recursive=True)
    guards = [p for p in everybody if "launcher.node.guard" in p.cmdline()]
    words = {p: p.cmdline() for p in guards[-1].children()}
    agents = [p for p in words if "agent" in words[p]]
    if victim == "agent":
        return agents
    if victim == "everybody":
        return [psutil.Process(launched), *everybody]
    workers = agents[0].children() if agents else [p for p in words if "worker" in words[p]]
    log = victim.replace(" ", "-") + ".log"
    return [p for p in workers if any(Path(file.path).name == log for file in p.open_files())]


def listening(processes: list[psutil.Process]) -> set[int]:
    ports = set()
    for process in processes:
        ports |= ports_of(process.net_connections())
    return ports


def ports_of(connections: list[Any]) -> set[int]:
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(
    ("world", "victim", "moment", "optimizer"),
    [
        (1, "rank 0", in_a_step, "sgd"),
        pytest.param(1, "rank 0", in_a_save, "adamw", marks=pytest.mark.cold),
        (1, "everybody", in_a_test, "adamw"),
        (2, "rank 1", in_a_step, "adamw"),
        pytest.param(2, "agent", in_a_save, "sgd", marks=pytest.mark.cold),
        (2, "rank 0", in_a_test, "sgd"),
        pytest.param(2, "everybody", in_a_step, "adamw", marks=pytest.mark.floors),
        (3, "rank 0", in_a_save, "adamw"),
        (3, "rank 1", in_a_step, "sgd norm=true micro_batch_size=9"),
        (2, "rank 0", in_a_step, "adamw norm=true"),
        (2, "rank 1", in_a_step, "sgd ema_decay=0.9 clip_norm=1"),
        pytest.param(3, "rank 2", in_a_test, "sgd", marks=pytest.mark.cold),
        (3, "agent", in_a_step, "sgd"),
        pytest.param(3, "everybody", in_a_step, "adamw", marks=pytest.mark.cold),
        (4, "rank 3", in_a_save, "sgd"),
        (4, "everybody", in_a_step, "adamw"),
        (4, "rank 0", in_a_step, "adamw"),
    ],
)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path,
    undisturbed: Callable[[int, str], Run],
    world: int,
    victim: str,
    moment: Callable[[Path], bool],
    optimizer: str,
) -> None:
    whole = undisturbed(world, optimizer)
    words = [*WORDS, *options(optimizer), "--nproc", str(world), "--run-dir", "r"]
    with started("run", CURVE, *words, cwd=tmp_path) as process:
        wait_for(lambda: moment(tmp_path / "r"), every_s=0.0005)
        seen = family(process)
        ports = listening(seen)
        for doomed in victims(process.pid, victim):
            doomed.kill()
        process.communicate(timeout=60)
    assert process.returncode not in (0, 2, 75)
    assert not survivors(seen)
    assert not ports & ports_of(psutil.net_connections())
    assert not (tmp_path / "r" / "model.safetensors").exists()
    done = launcher("resume", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "r")
    assert run.weight_bytes == whole.weight_bytes
    assert without_time(run) == without_time(whole)
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))
    assert not (tmp_path / "r" / "lock.json").exists()


def without_time(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in run.rows]


def test_elastic_two_then_three_then_one_process(tmp_path: Path) -> None:
    words = ["epochs=4", "samples=197", "log_every=3", "step_s=0.05", "hidden=32"]
    launcher("run", CURVE, *words, "--nproc", "2", "--run-dir", "whole", cwd=tmp_path)
    first = ["run", CURVE, *words, "--nproc", "2", "--run-dir", "r"]
    for arguments, steps in ((first, 2), (["resume", "r", "--nproc", "3"], 8)):
        with started(*arguments, cwd=tmp_path) as process:
            wait_for(partial(reached, tmp_path / "r", steps), timeout_s=150)
            process.send_signal(signal.SIGUSR1)
            _, stderr = process.communicate(timeout=150)
        assert process.returncode == 75, stderr
        assert "launcher resume r" in stderr
    done = launcher("resume", "r", "--nproc", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run, whole = Run(tmp_path / "r"), Run(tmp_path / "whole")
    assert run.farthest(whole) < 1e-5
    assert run.result["test_correct"] == whole.result["test_correct"]
    assert [s["world_size"] for s in config(run)["resumed"]] == [3, 1]
    for epoch in range(4):
        rows = [r for r in run.rows if r["split"] == "train" and r["epoch"] == epoch]
        assert sum(row["samples"] for row in rows) == 197
    for mine, theirs in zip(run.rows, whole.rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def reached(run: Path, steps: int) -> bool:
    found = mark.read(run / "logs" / "rank-0.mark")
    return found is not None and found.steps >= steps


def config(run: Run) -> dict[str, Any]:
    import json

    return dict(json.loads((run.path / "config.json").read_text()))


def test_two_writers_are_refused(tmp_path: Path) -> None:
    words = ["run", CURVE, "step_s=0.1", "epochs=50", "--run-dir", "r"]
    with started(*words, cwd=tmp_path) as process:
        wait_for(lambda: reached(tmp_path / "r", 2))
        done = launcher("resume", "r", cwd=tmp_path)
        assert done.returncode == 2
        assert f"process {process.pid} on {os.uname().nodename}" in done.stderr
        assert launcher(*words, cwd=tmp_path).returncode == 2
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 75
    assert Run(tmp_path / "r").result["state"] == "stopped"


@pytest.mark.parametrize("nproc", [1, 3])
def test_a_hang_is_noticed_and_the_rank_behind_is_named(tmp_path: Path, nproc: int) -> None:
    words = f"what=hang at_rank={nproc - 1} batch_size=9 hang_timeout=3 --nproc {nproc}".split()
    trouble = RECIPES / "trouble.py"
    done = launcher("run", trouble, *words, "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert f"no progress for 3 s: rank {nproc - 1} was behind, in step 5" in done.stderr
    for rank in range(nproc):
        log = (tmp_path / "r" / "logs" / f"rank-{rank}.log").read_text()
        assert "most recent call first" in log
    assert "get_into_trouble" in log
    assert Run(tmp_path / "r").result["state"] == "failed"


def test_a_restart_goes_on_from_the_checkpoint_by_itself(tmp_path: Path) -> None:
    words = "what=once at_rank=1 at_step=7 batch_size=9 checkpoint_every=2 epochs=3 --nproc 3"
    trouble = [RECIPES / "trouble.py", *words.split(), "--run-dir"]
    done = launcher("run", *trouble, "r", "--max-restarts", "3", f"mark={tmp_path}/m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "restarting; 2 restarts left" in done.stderr
    assert "continuing from step" in done.stdout
    (tmp_path / "m").touch()
    launcher("run", *trouble, "whole", f"mark={tmp_path}/m", cwd=tmp_path)
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes


def test_a_bug_is_not_retried_for_ever(tmp_path: Path) -> None:
    words = [
        "what=raise",
        "at_step=3",
        "batch_size=9",
        "--nproc",
        "2",
        "--max-restarts",
        "9",
        "--run-dir",
        "r",
    ]
    done = launcher("run", RECIPES / "trouble.py", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("restarting;") == 1
    assert "it came no farther than the time before" in done.stderr


def test_checkpoints_can_be_tested_and_listed(tmp_path: Path) -> None:
    words = ["run", CURVE, "epochs=3", "samples=200", "keep_last=1", "--nproc", "2"]
    launcher(*words, "--run-dir", "r", cwd=tmp_path)
    rows = [row for row in Run(tmp_path / "r").rows if row["split"] == "test"]
    listed = launcher("checkpoints", "r", cwd=tmp_path).stdout.splitlines()
    assert 1 <= len(listed) <= 2
    assert "step       12  epoch    3" in listed[-1]
    assert listed[-1].endswith("valid")
    for nproc in (1, 3):
        done = launcher("test", "r", "--json", "--nproc", str(nproc), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        import json

        result = json.loads(done.stdout)
        assert result["test_correct"] == Run(tmp_path / "r").result["test_correct"]
        assert result["test_loss"] == pytest.approx(rows[-1]["loss"], rel=1e-6)
    missing = launcher("test", "r", "--checkpoint", "7", cwd=tmp_path)
    assert missing.returncode == 2
    assert "there are best, last, and:" in missing.stderr


def test_a_finished_run_says_so_or_is_extended(tmp_path: Path) -> None:
    words = ["samples=200", "--nproc", "2", "--run-dir"]
    launcher("run", CURVE, "epochs=4", *words, "whole", cwd=tmp_path)
    launcher("run", CURVE, "epochs=2", *words, "r", cwd=tmp_path)
    done = launcher("resume", "r", cwd=tmp_path)
    assert done.returncode == 0
    assert "all 2 epochs are done" in done.stdout
    refused = launcher("resume", "r", "epochs=4", "learning_rate=0.01", cwd=tmp_path)
    assert refused.returncode == 2
    assert "learning_rate from 0.1 to 0.01" in refused.stderr
    done = launcher("resume", "r", "epochs=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes


def test_a_flipped_bit_sends_resume_to_the_checkpoint_before(tmp_path: Path) -> None:
    words = ["run", CURVE, "epochs=3", "samples=200", "--run-dir"]
    launcher(*words, "whole", cwd=tmp_path)
    launcher(*words, "r", cwd=tmp_path)
    newest = max((tmp_path / "r" / "checkpoints").iterdir())
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    (tmp_path / "r" / "result.json").unlink()
    done = launcher("resume", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest.name} is not valid" in done.stdout
    assert "continuing from step 8" in done.stdout
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes


class Malice:
    """A pickle that runs a program when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    import hashlib
    import json
    import pickle

    launcher("run", CURVE, "epochs=1", "samples=200", "--run-dir", "r", cwd=tmp_path)
    newest = max((tmp_path / "r" / "checkpoints").iterdir())
    evil = pickle.dumps({"optimizer": Malice(tmp_path / "harm")})
    (newest / "training.pt").write_bytes(evil)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {
        "size": len(evil),
        "sha256": hashlib.sha256(evil).hexdigest(),
    }
    del manifest["sha256"]
    sealed = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(sealed).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    done = launcher("resume", "r", "epochs=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be loaded safely" in done.stderr
    assert not (tmp_path / "harm").exists()
    assert (tmp_path / "r" / "checkpoints").is_dir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder for checkpoints with room for one, and none in it, in a run that has begun."""
    folder = tmp_path / "r" / "checkpoints"
    words = ["run", CURVE, "epochs=1", "hidden=512", "samples=200", "keep_last=5"]
    assert launcher(*words, "--run-dir", "r", cwd=tmp_path).returncode == 0
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs: run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_a_disk_that_fails_harms_neither_training_nor_the_last_checkpoint(
    tmp_path: Path, small_disk: Path, harm: str
) -> None:
    if harm == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = launcher("resume", "r", f"epochs={3 if harm == 'full' else 2}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING: checkpoint" in done.stdout
    if harm == "full":
        words = ["run", CURVE, "hidden=512", "samples=200", "keep_last=5", "epochs=3"]
        assert launcher(*words, "--run-dir", "whole", cwd=tmp_path).returncode == 0
        assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes
        assert "No space left" in done.stdout
        listed = launcher("checkpoints", "r", cwd=tmp_path).stdout
        assert listed.count("valid") == 1
        assert not list(small_disk.glob(".*"))


def test_three_failed_saves_in_a_row_stop_the_run(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = launcher("resume", "r", "epochs=50", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 checkpoints in a row could not be written: OSError" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("after_s", [0.05, 0.8])
def test_nobody_survives_a_launcher_that_is_killed_while_it_starts_others(
    tmp_path: Path, nproc: int, after_s: float
) -> None:
    words = ["run", CURVE, "epochs=3000", "--nproc", str(nproc), "--run-dir", "r"]
    with started(*words, cwd=tmp_path) as process:
        wait_for(lambda: bool(family(process)))
        time.sleep(after_s)
        seen = family(process)
        process.kill()
        assert not survivors(seen, timeout_s=20)
    everybody = [p for p in psutil.process_iter() if str(tmp_path / "r") in " ".join(argv_of(p))]
    assert not everybody


def argv_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_sigterm_after_sigusr1_is_no_second_request(tmp_path: Path) -> None:
    words = ["run", CURVE, "step_s=2", "--run-dir", "r"]
    with started(*words, cwd=tmp_path) as process:
        wait_for((tmp_path / "r" / "metrics.jsonl").exists)
        time.sleep(0.5)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 75
    assert list((tmp_path / "r" / "checkpoints").iterdir())


def test_a_stop_request_is_not_forgotten_when_a_worker_dies(tmp_path: Path) -> None:
    words = ["run", CURVE, "step_s=5", "--max-restarts", "3", "--run-dir", "r"]
    with started(*words, cwd=tmp_path) as process:
        wait_for((tmp_path / "r" / "metrics.jsonl").exists)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        victims(process.pid, "rank 0")[0].kill()
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "restarting" not in stderr


def test_a_run_of_two_machines_goes_on(tmp_path: Path) -> None:
    port = 21_000 + os.getpid() % 10_000
    tail = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank"]
    words = ["samples=200", "--run-dir", "r", *tail]
    for command in (["run", CURVE, "epochs=1", *words], ["resume", "r", "epochs=2", *tail]):
        with started(*command, "0", cwd=tmp_path) as a, started(*command, "1", cwd=tmp_path) as b:
            _, stderr = a.communicate(timeout=90)
            b.communicate(timeout=90)
        assert (a.returncode, b.returncode) == (0, 0), stderr
    launcher("run", CURVE, "samples=200", "epochs=2", "--run-dir", "whole", cwd=tmp_path)
    assert Run(tmp_path / "r").farthest(Run(tmp_path / "whole")) < 1e-5
