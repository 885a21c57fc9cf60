"""The recipes that are there to be copied do what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models
from training import Run, launcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SMALL = ["size=32", "batch_size=16", "learning_rate=0.005", "num_workers=0", "log_every=1"]
COLOURS = ("blue", "green", "red")


def of_tests(run: Path) -> list[dict[str, float]]:
    return [row for row in Run(run).rows if row["split"] == "test"]


def test_a_small_gpt_learns_to_add_in_half_a_minute(tmp_path: Path) -> None:
    words = ["digits=2", "steps=400", "test_every=100", "test_additions=500"]
    done = launcher("run", "gpt", *words, "--run-dir", "run", cwd=tmp_path, timeout_s=500)
    assert done.returncode == 0, done.stderr
    assert of_tests(tmp_path / "run")[-1]["exact"] >= 0.9


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Noise in three colours, and a file that is no image."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(reversed(COLOURS)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 120, (40, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    (tmp_path / "pictures" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return tmp_path / "pictures"


def test_images_names_a_broken_file(pictures: Path, tmp_path: Path) -> None:
    words = ["data=pictures", "epochs=1", "val_share=0.3", *SMALL]
    done = launcher("run", "images", *words, "--run-dir", "run", cwd=tmp_path, timeout_s=400)
    assert done.returncode == 1
    assert "image `pictures/red/broken.jpg` cannot be read" in done.stderr


# Batch norm over a few images a process is noisy: one process shows what is learnt.
@pytest.mark.parametrize(
    ("mix", "epochs", "nproc"), [("cutmix", 2, 2), ("mixup", 2, 2), ("none", 10, 1)]
)
def test_images_learns_from_a_folder_with_a_broken_file(
    pictures: Path, tmp_path: Path, mix: str, epochs: int, nproc: int
) -> None:
    torch.manual_seed(0)
    save_file(models.get_model("resnet18", num_classes=5).state_dict(), tmp_path / "w.safetensors")
    words: list[object] = ["data=pictures", "val_share=0.3", "skip_broken=true"]
    words += ["pretrained=w.safetensors"]
    words += [f"epochs={epochs}", "ema_decay=0.8", f"mix={mix}", *SMALL, "--nproc", nproc]
    done = launcher("run", "images", *words, "--run-dir", "run", cwd=tmp_path, timeout_s=500)
    assert done.returncode == 0, done.stderr
    for words_of in (
        "image `pictures/red/broken.jpg` cannot be read",
        "1 of 42 images left out",
        "0 of 19 images left out",
        "w.safetensors: 120 of 122 tensors; new: fc.bias, fc.weight",
    ):
        assert words_of in done.stdout
    last = of_tests(tmp_path / "run")[-1]
    assert last["samples"] == 19
    assert last["top5"] == 1  # of three classes
    assert mix != "none" or last["accuracy"] > 0.7  # so few mixed images tell nothing
