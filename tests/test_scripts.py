"""Scripts under `launcher run`: each is started as it is, watched, judged, and nothing is left."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training import clean_environment, command, launcher

from launcher.run.listing import summary

pytestmark = [pytest.mark.slow, pytest.mark.warm]

PYTHON = {"PYTHONPATH": ""}


def written(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def result_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def log_of(run: Path, rank: int = 0) -> str:
    return (run / "logs" / f"rank-{rank}.log").read_text()


def ran(folder: Path, text: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a script with its run directory in `r`."""
    written(folder, text)
    return launcher("run", "train.py", "--run-dir", "r", *words, cwd=folder, **options)


# What a program sees of its own start, and of its end.
SEEN = """
import __main__, atexit, json, os, sys, threading, time
def seen(when):
    modules = sorted({"torch", "accelerate", "click", "psutil", "launcher"} & set(sys.modules))
    main = sys.modules.get("__main__") is __main__
    spec = __spec__ and __spec__.name
    print(json.dumps([when, sys.argv, sys.path[0], spec, __name__, main, modules]), flush=True)
seen("first")
atexit.register(seen, "last")
atexit.register(lambda: open("written", "a").write("at exit\\n"))
threading.Thread(target=lambda: (time.sleep(0.3), seen("thread"))).start()
threading.Thread(target=time.sleep, args=(999,), daemon=True).start()
"""


WAYS = [["train.py"], ["-m", "pkg.train"], ["sub/train.py"], ["sub/"]]


@pytest.mark.cold
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_script_sees_what_it_sees_under_python(way: list[str], tmp_path: Path) -> None:
    for name in ("train.py", "pkg/train.py", "sub/train.py", "sub/__main__.py"):
        written(tmp_path, SEEN, name)
    written(tmp_path, "raise SystemExit('the package was run')\n", "pkg/other.py")
    words = ["--lr", "1e-3", "a=b", "--", "-h"]
    alone = subprocess.run([sys.executable, *way, *words], cwd=tmp_path, capture_output=True)
    done = launcher("run", *way, "--run-dir", "r", "--", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout.decode() == log_of(tmp_path / "r")
    assert [json.loads(line)[0] for line in done.stdout.splitlines()] == ["first", "thread", "last"]
    assert (tmp_path / "written").read_text() == "at exit\nat exit\n"
    kept = (tmp_path / "r/script.py").read_text()
    assert kept == SEEN
    told = json.loads((tmp_path / "r/config.json").read_text())
    assert told["kind"] == "script"
    assert told["script"]["args"] == words
    assert result_of(tmp_path / "r")["state"] == "completed"


# Who has imported torch before, has its OpenMP: that counts no threads any more.
FIRST_LINES = """
import os
os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"] = "3", "7"
import argparse, ctypes, json, sys
from importlib.util import find_spec
from pathlib import Path
from . import near
from .below.deep import NAME
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("files", nargs="*")
for number in range(30):
    parser.add_argument(f"--option-{number}", f"-{chr(65 + number % 26)}{number}", default=number)
parser.add_argument("--shift", type=float)
parser.add_argument("--sizes", type=int, nargs="+")
parser.add_argument("--config", type=json.loads)
parser.add_argument("--nproc", action="store_true")
parser.add_argument("--run-dir", choices=["", "x"])
cuda = os.environ["CUDA_VISIBLE_DEVICES"]
[openmp] = Path(find_spec("torch").origin).parent.glob("lib/lib*omp[.-]*")
threads = ctypes.CDLL(str(openmp)).omp_get_max_threads()
words = parser.parse_known_args()
print(threads, "torch" in sys.modules, cuda, near.NAME, NAME, __package__, words)
"""


@pytest.mark.cold
def test_a_module_is_heard_in_its_first_lines_and_has_its_options_as_they_are(
    tmp_path: Path,
) -> None:
    written(tmp_path, FIRST_LINES, "pkg/train.py")
    written(tmp_path, "from .below import deep\nNAME = deep.NAME + ' near'\n", "pkg/near.py")
    written(tmp_path, "NAME = __name__\n", "pkg/below/deep.py")
    words = ["a folder", "--shift=-1e-3", "--sizes", "3", "5", "--config", '{"a": [1, "ü $HOME"]}']
    words += ["--nproc", "--run-dir", "", "--option-7", "-", "--", "--lr", "x=3", "", "*"]
    alone = command(sys.executable, "-m", "pkg.train", *words, cwd=tmp_path)
    assert "3 False 7 pkg.below.deep near pkg.below.deep pkg (Namesp" in alone.stdout, alone.stderr
    options = ["-m", "pkg.train", "--nproc", "2", "--run-dir", "r"]
    done = launcher("run", *options, "--", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == log_of(tmp_path / "r", 1) == alone.stdout


PLACE = """
import json, os
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"]
names += ["MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS"]
names += ["LAUNCHER_RUN_DIR", "LAUNCHER_START", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME"]
names += ["WANDB_MODE", "ACCELERATE_MIXED_PRECISION", "CUDA_VISIBLE_DEVICES", "LAUNCHER_PARENT"]
print(json.dumps({n: os.environ[n] for n in names if n in os.environ}))
"""


def test_a_script_without_nproc_is_told_no_place(tmp_path: Path) -> None:
    env = {"RANK": "3", "WORLD_SIZE": "8", "ACCELERATE_MIXED_PRECISION": "bf16"}
    done = ran(tmp_path, PLACE, env=env)
    told = json.loads(done.stdout)
    run = str(tmp_path / "r")
    assert told == {
        "LAUNCHER_RUN_DIR": run,
        "LAUNCHER_START": "1",
        "WANDB_DIR": run,
        "WANDB_MODE": "disabled",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }


def test_nproc_in_words_tells_each_process_its_place(tmp_path: Path) -> None:
    env = {"WANDB_MODE": "offline", "WANDB_RUN_ID": "mine"}
    for nproc in (1, 2):
        words = ["--nproc", str(nproc), "--run-dir", f"r{nproc}", "--cpu"]
        written(tmp_path, PLACE)
        done = launcher("run", "train.py", *words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        for rank in range(nproc):
            told = json.loads(log_of(tmp_path / f"r{nproc}", rank))
            assert told["RANK"] == told["LOCAL_RANK"] == str(rank)
            assert told["WORLD_SIZE"] == told["LOCAL_WORLD_SIZE"] == str(nproc)
            assert told["MASTER_ADDR"] == "127.0.0.1"
            assert told["GLOO_SOCKET_IFNAME"] == "lo"
            assert told["CUDA_VISIBLE_DEVICES"] == ""
            assert told.get("WANDB_RUN_ID") == ("mine" if rank == 0 else None)
            assert told.get("WANDB_RESUME") == ("allow" if rank == 0 else None)
            assert ("OMP_NUM_THREADS" in told) == (nproc > 1)


NESTED = """
import os, subprocess, sys
inner = [sys.executable, "-m", "launcher", "run", "inner.py", "--run-dir", "inner"]
sys.exit(subprocess.run(inner, stdin=subprocess.DEVNULL).returncode)
"""


def test_a_run_inside_of_a_script_is_a_run_of_its_own(tmp_path: Path) -> None:
    written(tmp_path, PLACE, "inner.py")
    done = ran(tmp_path, NESTED, "--nproc", "1", env={"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    outer = json.loads((tmp_path / "r/config.json").read_text())
    told = json.loads(log_of(tmp_path / "inner"))
    assert told["LAUNCHER_RUN_DIR"] == told["WANDB_DIR"] == str(tmp_path / "inner")
    assert told["WANDB_RUN_ID"] != outer["tracking"]["run_id"]
    assert "RANK" not in told


POOL = """
import multiprocessing
class Own:
    def __init__(self, n): self.n = n
def double(own): return Own(2 * own.n)
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(sum(own.n for own in pool.map(double, [Own(n) for n in range(5)])))
"""
READER = "import sys\nprint(repr(sys.stdin.read()), sys.stdin.isatty())\n"
BINARY = """
import sys
sys.stdout.buffer.write(bytes(range(256)) * 4096)
"""


def test_a_spawn_pool_finds_its_functions(tmp_path: Path) -> None:
    done = ran(tmp_path, POOL)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


@pytest.mark.parametrize("words", [[], ["--nproc", "2"]], ids=str)
def test_rank_0_reads_what_is_piped_and_the_others_nothing(
    words: list[str], tmp_path: Path
) -> None:
    written(tmp_path, READER)
    command = [sys.executable, "-m", "launcher", "run", "train.py", "--run-dir", "r", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), input=b"a\nb", capture_output=True
    )
    assert done.stdout == b"'a\\nb' False\n", done.stderr
    if words:
        assert log_of(tmp_path / "r", 1) == "'' False\n"


def test_bytes_go_to_log_and_console_as_they_are(tmp_path: Path) -> None:
    written(tmp_path, BINARY)
    command = [sys.executable, "-m", "launcher", "run", "train.py", "--run-dir", "r"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True)
    expected = bytes(range(256)) * 4096
    assert done.stdout == expected
    assert (tmp_path / "r/logs/rank-0.log").read_bytes() == expected


FAILING = """
import os, sys, time
rank = int(os.environ.get("RANK", "0"))
def deep():
    {what}
if rank == {who}:
    print("last words", flush=True)
    deep()
time.sleep(60)
"""
# What it does, the code of the result, and what the error says.
ENDS = [
    ("raise ValueError('of its own')", 1, ["ValueError: of its own", "in deep", "train.py"]),
    ("import json; json.loads('{')", 1, ["JSONDecodeError", "in deep"]),
    ("sys.exit(3)", 3, ["it ended with exit code 3", "last words"]),
    ("sys.exit('in words')", 1, ["it ended with exit code 1", "in words"]),
    ("os.kill(os.getpid(), 9)", -9, ["killed by SIGKILL", "last words"]),
    ("os.abort()", -6, ["killed by SIGABRT", "Fatal Python error", "in deep"]),
    ("os._exit(7)", 7, ["it ended with exit code 7"]),
]


@pytest.mark.parametrize(("what", "code", "words"), ENDS, ids=[row[0] for row in ENDS])
def test_a_failure_is_told_with_rank_host_frames_and_last_lines(
    what: str, code: int, words: list[str], tmp_path: Path
) -> None:
    began = time.monotonic()
    done = ran(tmp_path, FAILING.format(what=what, who=1), "--nproc", "2")
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    assert "rank 1 on " in done.stderr
    for word in words:
        assert word in done.stderr
    assert "json/decoder.py" not in done.stderr
    result = result_of(tmp_path / "r")
    assert (result["state"], result["exit_code"], result["starts"]) == ("failed", code, 1)
    assert summary(tmp_path / "r").state == "failed"


MADE = """
from dataclasses import dataclass
from launcher import Recipe, main
bases = [Recipe]
exec("class Made(bases[0]):\\n    def loss(self): ...")
{more}
"""


@pytest.mark.warm(scripts=True)
@pytest.mark.parametrize("more", ["from other import Other", "del Made"])
def test_a_script_whose_recipe_nobody_trained_has_failed(more: str, tmp_path: Path) -> None:
    written(tmp_path, "from launcher import Recipe\nclass Other(Recipe): ...\n", "other.py")
    done = ran(tmp_path, MADE.format(more=more))
    assert done.returncode == 1
    assert "defined a recipe, `Made`, and nobody has trained it" in done.stderr
    assert result_of(tmp_path / "r")["state"] == "failed"


USES = """
import subprocess, sys
from other import Other, other
if len(sys.argv) == 1:
    subprocess.run([sys.executable, "-c", "from other import *; exec('class A(Other): ...')"])
print(Other, other)
"""


def test_a_script_may_use_recipes_of_other_files(tmp_path: Path) -> None:
    text = "from launcher import Recipe\nclass Other(Recipe): ...\nother = Other()\n"
    written(tmp_path, text, "other.py")
    done = ran(tmp_path, USES)
    assert done.returncode == 0, done.stderr


def test_secrets_among_the_arguments_are_for_the_owner_alone(tmp_path: Path) -> None:
    words = ["--hub-token", "abc", "--api_key=def", "--keys", "3", "--lr", "1"]
    done = ran(tmp_path, "", "--", *words)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "r/config.json"
    assert json.loads(config.read_text())["script"]["args"] == words
    assert config.stat().st_mode & 0o077 == 0
    shown = summary(tmp_path / "r").config
    assert shown["script"]["args"][:4] == ["--hub-token", "***", "--api_key=***", "--keys"]
    assert "abc" not in str(shown)
    assert "def" not in str(shown["command"])
