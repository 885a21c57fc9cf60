"""Data workers: how they start, what they need of the system, and that numbers stay the same."""

import gc
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from training import RECIPES, Run, command, family, launcher, started, survivors, wait_for

from launcher.data.sampler import ShardSampler
from launcher.data.workers import loaded_by_workers
from launcher.errors import BadInput
from launcher.recipe.base import Recipe

pytestmark = pytest.mark.warm

SAMPLED = RECIPES / "sampled.py"
HOW = ["fork", "forkserver", "spawn"]
# Its dataset has a class and a function of the file, of its package, and of a file beside it.
MINE = """
from beside import shift
from .base import *

class Mine(Noisy):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return shift(image), label

def joined(samples):
    return torch.utils.data.default_collate(samples)

@dataclass(frozen=True)
class Moved(Sampled):
    def train_data(self):
        return Mine(self.samples, self.dtype)

    def collate(self, samples):
        return joined(samples)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe in a package."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "exp").mkdir()
    (folder / "exp" / "__init__.py").touch()
    (folder / "exp" / "base.py").write_text(SAMPLED.read_text().partition("if __name__")[0])
    (folder / "exp" / "mine.py").write_text(MINE)
    (folder / "beside.py").write_text("def shift(image): return image + 1\n")
    return folder


@pytest.mark.slow
def test_numbers_are_the_same_however_data_workers_start(project: Path) -> None:
    for how in HOW:
        words = [f"worker_start={how}", "num_workers=1", "epochs=1", "--run-dir", how]
        done = launcher("run", "exp/mine.py", *words, "--nproc", "1", "--cpu", cwd=project)
        assert done.returncode == 0, done.stderr
    first, *others = [Run(project / how).weight_bytes for how in HOW]
    assert others == [first, first]


@pytest.mark.slow
def test_a_recipe_that_is_a_program_may_spawn_data_workers(tmp_path: Path) -> None:
    words = ["worker_start=spawn", "num_workers=1", "epochs=1", "--run-dir", "r"]
    done = command(sys.executable, SAMPLED, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").result["state"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["forkserver", "spawn"])
def test_no_data_worker_outlives_a_killed_run(how: str, project: Path, tmp_path: Path) -> None:
    words = [f"worker_start={how}", "num_workers=1", "epochs=100000", "--run-dir", tmp_path / "r"]
    with started("run", "exp/mine.py", *words, "--nproc", "1", "--cpu", cwd=project) as run:
        wait_for(lambda: len(Run(tmp_path / "r").rows) > 0, timeout_s=100)
        seen = family(run)
        run.kill()
        assert not survivors(seen)


@pytest.mark.slow
def test_data_that_cannot_be_handed_over_are_refused_in_words(tmp_path: Path) -> None:
    text = SAMPLED.read_text().replace(
        "self.images = torch.rand", "self.f = lambda: 3\n        self.images = torch.rand"
    )
    (tmp_path / "mine.py").write_text(text)
    words = ["worker_start=spawn", "num_workers=1", "--nproc", "1", "--cpu", "--run-dir", "r"]
    done = launcher("run", "mine.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `worker_start=spawn` hands the data to each data worker")
    assert "<lambda>" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_few_open_files_are_no_limit_where_more_are_allowed(tmp_path: Path) -> None:
    many = "return tuple(image.clone() for _ in range(60)), int(index % 4)"
    text = SAMPLED.read_text().replace("return image, int(index % 4)", many)
    step = "    def train_step(self, model, batch, loss_fn):\n"
    step += "        return super().train_step(model, (batch[0][0], batch[1]), loss_fn)\n\n"
    text = text.replace("    def model(self)", f"{step}    def model(self)")
    (tmp_path / "mine.py").write_text(text)
    words = "-m launcher run mine.py num_workers=2 --nproc 1 --cpu --run-dir r"
    shell = f"ulimit -Sn 128 && exec {sys.executable} {words}"
    done = command("bash", "-c", shell, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", HOW)
def test_a_folder_for_temporary_files_with_a_long_name_is_refused(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(Recipe):
        pass

    sampler = ShardSampler(9, 3, rank=0, world_size=1)
    for length, fits in ((75, True), (76, False)):
        monkeypatch.setattr(tempfile, "tempdir", "/" + (length - 1) * "x")
        recipe = Mine(worker_start=how)  # type: ignore[arg-type]  # one of them
        if fits:
            loaded_by_workers([], sampler, 1, recipe, pinned=False)  # type: ignore[arg-type]
            continue
        with pytest.raises(BadInput, match="TMPDIR has 76 letters, and data workers need one of"):
            loaded_by_workers([], sampler, 1, recipe, pinned=False)  # type: ignore[arg-type]


class Indices:
    """Gives a shard as it is asked for."""

    def __getitem__(self, shard: Any) -> Any:
        return shard


def test_data_workers_end_at_once_with_a_loader_that_goes_as_garbage() -> None:
    class Mine(Recipe):
        pass

    sampler = ShardSampler(9, 3, rank=0, world_size=1)
    data: Any = Indices()
    epoch = loaded_by_workers(data, sampler, 1, Mine(), pinned=False)
    before = {*multiprocessing.active_children()}
    circle: list[Any] = [epoch, epoch()]
    (worker,) = {*multiprocessing.active_children()} - before
    next(circle[1])
    circle.append(circle)
    del epoch, circle
    began = time.monotonic()
    gc.collect()
    assert time.monotonic() - began < 5  # torch would wait 10 s
    assert not worker.is_alive()


@pytest.mark.slow
def test_where_no_more_open_files_are_allowed_it_says_so(tmp_path: Path) -> None:
    words = f"debug {SAMPLED} num_workers=1 --steps 1"
    shell = f"ulimit -n 500 && exec {sys.executable} -m launcher {words}"
    done = command("bash", "-c", shell, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING: processes may open no more than 500 files here (`ulimit -Hn`)" in done.stdout


@pytest.mark.slow
def test_the_longest_name_that_is_let_through_works(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x" * 62) as folder:
        assert len(folder) == 75
        words = ["num_workers=1", "epochs=1", "--nproc", "1", "--cpu", "--run-dir", "r"]
        done = launcher("run", SAMPLED, *words, cwd=tmp_path, env={"TMPDIR": folder}, timeout_s=60)
    assert done.returncode == 0, done.stderr
