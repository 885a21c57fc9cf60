"""What users write into recipes, right and wrong: the same for any number of processes."""

import re
import sys
import time
from pathlib import Path

import pytest
from training import PROJECT, Run, command, family, launcher, started, survivors, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.warm]
DIGITS = PROJECT / "recipes" / "digits.py"
UNSEEDED = """data = load_digits(train=True, transform=to_float)
        return torch.utils.data.Subset(data, numpy.random.permutation(700))"""
FAIL_OR_SLEEP = """os.environ["RANK"] == "1" and {}[7]
        time.sleep(100)
        return torch.optim.SGD("""

SPARE = """
class Spare(nn.Flatten):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(1, 1)


"""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("return load_digits(train=True, transform=to_float)", "return None", "not a map-style"),
        ("return load_digits(train=True, transform=to_float)", "return []", "empty dataset"),
        ("return nn.CrossEntropyLoss()", "pass", "`loss` returned NoneType"),
        ("return nn.Sequential(", "return (", "`model` returned tuple"),
        ("return torch.optim.SGD(", "return dict(params=", "`optimizer` returned dict"),
        ("nn.CrossEntropyLoss()", "nn.CrossEntropyLoss(torch.ones(10))", "weighted by class"),
        ("nn.CrossEntropyLoss()", "nn.CrossEntropyLoss(reduction='sum')", "reduction `sum`"),
        (
            "    def loss(",
            "    def scheduler(self, o): return 3\n\n    def loss(",
            "`scheduler` ret",
        ),
        (
            "    def loss(",
            "    def train_step(self, m, b, f): pass\n\n    def loss(",
            "`train_step`",
        ),
        ("nn.Flatten(),", "Spare(),", "take no part in the loss: 0.spare.weight, 0.spare.bias"),
    ],
)
def test_a_method_that_returns_the_wrong_thing_is_one_error_and_leaves_nothing(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    recipe = tmp_path / "mine.py"
    text = DIGITS.read_text().replace("@dataclass", f"{SPARE}@dataclass")
    assert before in text
    recipe.write_text(text.replace(before, after))
    done = launcher("run", recipe, "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "runs").exists()


def test_missing_fashion_mnist_names_folder_and_files(tmp_path: Path) -> None:
    done = launcher("run", "fashion_mnist", "data=pictures", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "pictures" / "FashionMNIST" / "raw") in done.stderr
    assert "train-images-idx3-ubyte.gz" in done.stderr
    assert not (tmp_path / "runs").exists()


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the digits recipe with some words changed."""
    text = DIGITS.read_text().replace("@dataclass", f"{SPARE}@dataclass")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # parameter groups by submodule: an optimizer must not see DDP
        (
            [
                (
                    "SGD(model.parameters(), ",
                    "SGD([*model[1].parameters(), *model[3].parameters()], ",
                )
            ],
            "",
        ),
        ([("nn.Flatten(),", "Spare(),")], "find_unused_parameters=true"),
        # data that a recipe shuffles without a seed of its own
        (
            [
                ("import torch\n", "import numpy\nimport torch\n"),
                (
                    "return load_digits(train=True, transform=to_float)",
                    UNSEEDED,
                ),
            ],
            "",
        ),
    ],
    ids=["groups", "unused", "unseeded"],
)
def test_what_works_with_one_process_works_with_two(
    tmp_path: Path, changes: list[tuple[str, str]], words: str
) -> None:
    recipe = edited(tmp_path, *changes)
    for nproc in ("1", "2"):
        options = ["epochs=1", "--nproc", nproc, "--run-dir", nproc]
        done = launcher("run", recipe, *words.split(), *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "1").farthest(Run(tmp_path / "2")) < 1e-5


def test_an_error_in_a_data_worker_ends_the_run_at_once(tmp_path: Path) -> None:
    broken = "class Broken(torch.utils.data.Dataset):\n    def __len__(self): return 100\n"
    broken += (
        "    def __getitem__(self, i): return {}[i] if i == 50 else (torch.zeros(64), 1)\n\n\n"
    )
    recipe = edited(
        tmp_path,
        ("@dataclass", f"{broken}@dataclass"),
        ("load_digits(train=True, transform=to_float)", "Broken()"),
    )
    with started(
        "run", recipe, "num_workers=2", "--nproc", "2", "--run-dir", "r", cwd=tmp_path
    ) as run:
        wait_for((tmp_path / "r" / "logs" / "rank-0.json").exists)
        seen = family(run)
        _, stderr = run.communicate(timeout=40)
    assert run.returncode == 1
    assert "failed first: sample 50 of `train_data` could not be loaded (epoch 0, rank " in stderr
    assert "KeyError: 50" in stderr
    assert 'mine.py", line ' in stderr  # where it was raised, and nothing of ours
    assert "/launcher/" not in stderr
    assert not survivors(seen)


def test_a_failing_rank_does_not_wait_for_a_busy_one(tmp_path: Path) -> None:
    recipe = edited(
        tmp_path,
        ("import torch\n", "import os, time\nimport torch\n"),
        ("return torch.optim.SGD(", FAIL_OR_SLEEP),
    )  # fmt: skip
    before = time.monotonic()
    done = launcher("run", recipe, "--nproc", "2", "--run-dir", "r", cwd=tmp_path, timeout_s=60)
    assert "rank 1 on" in done.stderr
    assert "KeyError: 7" in done.stderr
    assert time.monotonic() - before < 60  # a hundred seconds are what it would wait


def test_what_may_be_downloaded_is_made_in_one_process_of_a_machine_first(tmp_path: Path) -> None:
    noted = 'note("{}")\n        return '
    note = """
import launcher.train.parts, os, time
launcher.train.parts._SAY_AFTER_S = 0.2

def note(what):
    with open(f"rank-{os.environ['RANK']}", "a") as file:
        print(what, time.time(), file=file, flush=True)
    time.sleep(0.1)

@dataclass"""
    recipe = edited(
        tmp_path,
        ("@dataclass", note),
        ("return load_digits(train=True", noted.format("train_data") + "load_digits(train=True"),
        ("return load_digits(train=False", noted.format("test_data") + "load_digits(train=False"),
        ("return nn.Sequential(", noted.format("model") + "nn.Sequential("),
        ("return nn.CrossEntropyLoss(", noted.format("loss") + "nn.CrossEntropyLoss("),
    )
    done = launcher("run", recipe, "--nproc", "3", "epochs=1", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [(tmp_path / f"rank-{rank}").read_text().split() for rank in range(3)]
    for row in rows:
        assert row[::2] == ["train_data", "test_data", "model", "loss"]
    assert all(float(row[1]) > float(rows[0][-1]) for row in rows[1:])
    said = done.stdout.splitlines()
    at = said.index("preparing data and model, first in one process of each machine")
    assert re.fullmatch(r"prepared in \d+ s; now the other processes do", said[at + 1])


def test_busy_data_workers_do_not_survive_the_launcher(tmp_path: Path) -> None:
    slow = "class Slow(torch.utils.data.Dataset):\n    def __len__(self): return 100\n"
    slow += "    def __getitem__(self, i): __import__('time').sleep(300)\n\n\n"
    recipe = edited(
        tmp_path,
        ("@dataclass", f"{slow}@dataclass"),
        ("load_digits(train=True, transform=to_float)", "Slow()"),
    )
    with started("run", recipe, "num_workers=1", "--run-dir", "r", cwd=tmp_path) as run:
        wait_for(lambda: len(family(run)) >= 2)
        time.sleep(1)
        seen = family(run)
        run.kill()
        assert not survivors(seen, timeout_s=10)


def test_what_was_in_the_folder_before_stays(tmp_path: Path) -> None:
    (tmp_path / "r" / "logs").mkdir(parents=True)
    for mine in ("thesis.txt", "logs/mine.txt"):
        (tmp_path / "r" / mine).write_text("precious")
    recipe = edited(tmp_path, ("load_digits(train=True, transform=to_float)", "[]"))
    done = launcher("run", recipe, "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 2
    left = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "r").rglob("*") if p.is_file())
    assert left == ["r/logs/mine.txt", "r/thesis.txt"]


def test_a_loss_that_breaks_in_the_last_step_is_named_too(tmp_path: Path) -> None:
    words = ["learning_rate=1e38", "epochs=1", "batch_size=2000", "--run-dir", "r"]
    done = launcher("run", DIGITS, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "the test loss after step 1 (epoch 0) is" in done.stderr
    assert not (tmp_path / "r" / "model.safetensors").exists()


def test_a_replay_finds_the_files_beside_the_original(tmp_path: Path) -> None:
    recipe = edited(
        tmp_path / "there", ("from launcher import", "import beside\nfrom launcher import")
    )
    (tmp_path / "there" / "beside.py").write_text("")
    done = launcher("run", recipe, "epochs=1", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["r/recipe.py", "--config", "r/config.json", "--run-dir", "again"]
    done = launcher("run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "again").weight_bytes == Run(tmp_path / "r").weight_bytes


def test_the_bar_of_a_terminal_stays_out_of_the_log(tmp_path: Path) -> None:
    words = f"{sys.executable} -m launcher run {DIGITS} epochs=2 log_every=1000000000 --run-dir r"
    done = command("script", "-qec", words, "/dev/null", cwd=tmp_path)
    assert "\x1b[" in done.stdout
    assert "epoch 2/2" in done.stdout
    log = (tmp_path / "r" / "logs" / "rank-0.log").read_text()
    assert "\x1b" not in log
    assert log.count("Test Error: Accuracy:") == 2
    assert "Done: test accuracy" in log
