"""Checkpoints as files: whole or not at all, verified, pruned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import RunDirError
from launcher.run.checkpoint_files import (
    Note,
    all_of,
    begin,
    best,
    clean,
    fill,
    name_of,
    newest_valid,
    note,
    problem,
    prune,
    write,
)

SCRIPT = """
import os, sys
from pathlib import Path
from launcher.run import checkpoint_files as files

folder, crash_at, calls = Path(sys.argv[1]), int(sys.argv[2]), 0

def counted(name):
    real = getattr(os, name)
    def call(*words, **options):
        global calls
        calls += 1
        if calls == crash_at:
            os._exit(9)
        return real(*words, **options)
    setattr(os, name, call)

for name in ("mkdir", "fsync", "rename", "open", "unlink", "rmdir"):
    counted(name)

def fill(folder):
    (folder / "model.safetensors").write_bytes(b"m" * 1000)
    (folder / "training.pt").write_bytes(b"t" * 1000)

files.write(folder, files.name_of(20, 2), fill, {})
files.prune(folder, 1, 0)
"""


def make(folder: Path, step: int, epoch: int = 0, **facts: object) -> Path:
    def fill(path: Path) -> None:
        (path / "model.safetensors").write_bytes(bytes([step % 256]) * 5000)
        (path / "training.pt").write_bytes(b"state")

    return write(folder, name_of(step, epoch), fill, facts)


def test_what_is_written_is_valid_and_listed_in_order(tmp_path: Path) -> None:
    for step in (10, 200, 30):
        make(tmp_path, step)
    assert [c.step for c in all_of(tmp_path)] == [10, 30, 200]
    assert all(problem(c) is None for c in all_of(tmp_path))
    assert all_of(tmp_path)[0].size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("crash_at", range(1, 26))
def test_a_crash_between_any_two_steps_leaves_a_valid_checkpoint(
    tmp_path: Path, crash_at: int
) -> None:
    make(tmp_path, 10, 1)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), str(crash_at)])
    assert done.returncode in (0, 9)
    warnings: list[str] = []
    newest = newest_valid(tmp_path, warnings.append, lambda _: None)
    assert newest is not None
    assert newest.step in (10, 20)
    assert not warnings  # nothing that looks like a checkpoint is broken
    clean(tmp_path)
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


def test_crashes_were_injected_into_all_steps(tmp_path: Path) -> None:
    make(tmp_path, 10, 1)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), "25"])
    assert done.returncode == 0, "there are more steps than the test above crashes in"
    assert [c.step for c in all_of(tmp_path)] == [20]


def truncate(path: Path) -> None:
    os.truncate(path / "model.safetensors", 4999)


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[2500] ^= 4
    (path / "model.safetensors").write_bytes(content)


def lose_a_file(path: Path) -> None:
    (path / "training.pt").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def break_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files"')


def forget_the_files(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "4999 bytes of 5000"),
        (flip_a_bit, "checksum differs"),
        (lose_a_file, "training.pt cannot be read"),
        (lose_the_manifest, "manifest is missing"),
        (break_the_manifest, "manifest is missing or broken"),
        (forget_the_files, "manifest is missing or broken"),
    ],
)
def test_a_harmed_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, harm: object, words: str
) -> None:
    make(tmp_path, 10)
    newest = make(tmp_path, 20)
    assert callable(harm)
    harm(newest)
    warnings: list[str] = []
    found = newest_valid(tmp_path, warnings.append, lambda _: None)
    assert found
    assert found.step == 10
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert words in warnings[0]
    assert [c.step for c in all_of(tmp_path)] == [10]  # it is out of the way, but not deleted
    assert (tmp_path / f"broken-{newest.name}").is_dir()


def test_each_broken_checkpoint_of_a_step_keeps_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(3):
        make(tmp_path, 10)
        assert newest_valid(tmp_path, print, lambda _: "its weights are no numbers") is None
    name = f"broken-{name_of(10, 0)}"
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}-2", f"{name}-3"}


def test_a_failed_write_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    make(tmp_path, 10)

    def fail(path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(tmp_path, name_of(20, 0), fail, {})
    assert [path.name for path in tmp_path.iterdir()] == [name_of(10, 0)]
    assert problem(all_of(tmp_path)[0]) is None


@pytest.mark.parametrize("harm", ["nothing", "shorter", "gone"])
def test_a_file_that_another_has_written_is_taken_at_its_word_and_size(
    tmp_path: Path, harm: str
) -> None:
    beside, place = begin(tmp_path, name_of(20, 0)), tmp_path / name_of(20, 0)

    def written(folder: Path) -> dict[str, Note]:
        path = folder / "rank-1-of-2.safetensors"
        path.write_bytes(b"its share")
        noted = {path.name: note(path, folder)}
        if harm == "shorter":
            path.write_bytes(b"its")
        if harm == "gone":
            path.unlink()
        return noted

    if harm == "nothing":
        fill(beside, place, written, {})
        assert problem(all_of(tmp_path)[0]) is None
    else:
        with pytest.raises((RunDirError, FileNotFoundError), match="rank-1-of-2"):
            fill(beside, place, written, {})
        assert not list(tmp_path.iterdir())


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    accuracies = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.9, 50: 0.6, 60: None}
    for step, accuracy in accuracies.items():
        make(tmp_path, step, test_accuracy=accuracy, test_loss=1.0 if accuracy else None)
    assert [c.step for c in best(all_of(tmp_path), 2)] == [20, 40]
    prune(tmp_path, keep_last=2, keep_best=1)
    assert [c.step for c in all_of(tmp_path)] == [20, 50, 60]
    assert len(list(tmp_path.iterdir())) == 3


def test_without_accuracy_the_least_loss_is_best(tmp_path: Path) -> None:
    for step, loss in {10: 0.5, 20: 0.1, 30: 0.7}.items():
        make(tmp_path, step, test_accuracy=None, test_loss=loss)
    assert [c.step for c in best(all_of(tmp_path))] == [20]


def test_the_manifest_tells_sizes_and_checksums(tmp_path: Path) -> None:
    path = make(tmp_path, 7, test_accuracy=0.5)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["size"] == 5000
    assert len(manifest["files"]["model.safetensors"]["sha256"]) == 64
    assert manifest["facts"]["test_accuracy"] == 0.5


@pytest.mark.parametrize("bit", range(0, 4000, 37))
def test_a_flipped_bit_in_the_manifest_is_seen(tmp_path: Path, bit: int) -> None:
    path = make(tmp_path, 10, test_accuracy=0.5) / "manifest.json"
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    before = json.loads(path.read_text())
    path.write_bytes(content)
    try:
        same = json.loads(content) == before  # a space that has become another
    except ValueError:
        same = False
    assert same or problem(all_of(tmp_path)[0])


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 10)
    (tmp_path / name_of(20, 0)).write_text("a file")
    (tmp_path / name_of(30, 0)).symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    assert [c.step for c in all_of(tmp_path)] == [10]
    prune(tmp_path, keep_last=1, keep_best=0)
    assert (tmp_path / "notes.txt").exists()
