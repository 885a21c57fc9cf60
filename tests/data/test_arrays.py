"""Datasets in memory."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms import v2
from training import Run, launcher

from launcher.data.arrays import ArrayDataset, load_digits
from launcher.errors import DataError


def write_fashion_mnist(root: Path, train: int = 30, test: int = 10) -> None:
    """Write files of the real format, with made images."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        blobs = {
            f"{name}-images-idx3-ubyte": struct.pack(">4i", 0x803, n, 28, 28) + images.tobytes(),
            f"{name}-labels-idx1-ubyte": struct.pack(">2i", 0x801, n) + labels.tobytes(),
        }
        for file, blob in blobs.items():
            (raw / file).write_bytes(blob)
            (raw / f"{file}.gz").write_bytes(gzip.compress(blob))


def test_digits_are_split_and_whole() -> None:
    train, test = load_digits(train=True), load_digits(train=False)
    assert (len(train), len(test)) == (1437, 360)
    images, labels = train.arrays
    assert images.dtype == torch.uint8
    assert images.shape == (1437, 8, 8)
    assert int(images.max()) == 16
    assert set(labels.tolist()) == set(range(10)) == set(test.arrays[1].tolist())


def test_fashion_mnist_is_read_into_memory(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    data = ArrayDataset.from_torchvision(
        FashionMNIST, tmp_path, train=True, transform=lambda images: images.float() / 255
    )
    expected = FashionMNIST(tmp_path, train=True)
    assert len(data) == 30
    image, label = data[7]
    assert torch.equal(image, expected.data[7].float() / 255)
    assert label == expected.targets[7]


@pytest.mark.slow
@pytest.mark.floors
def test_the_quickstart_s_recipe_trains_on_files_of_the_real_format(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "data", train=130)
    words = ["epochs=1", "--nproc", "2", "--run-dir", "r"]
    done = launcher("run", "fashion_mnist", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained, tested = Run(tmp_path / "r").rows
    assert (trained["samples"], tested["samples"]) == (130, 10)


def test_a_batch_is_what_its_samples_are_one_by_one() -> None:
    data = load_digits(train=True, transform=lambda images: images.float() / 16)
    images, labels = data.__getitems__([3, 1, 4])
    for row, index in enumerate([3, 1, 4]):
        assert torch.equal(images[row], data[index][0])
        assert labels[row] == data[index][1]


def test_one_sample_is_found_as_in_a_list() -> None:
    data = ArrayDataset(torch.arange(3))
    assert [int(data[index][0]) for index in (0, 2, -1, -3)] == [0, 2, 2, 0]
    with pytest.raises(IndexError):
        data[3]


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="differ in length"):
        ArrayDataset(torch.zeros(3), torch.zeros(4))


def test_transforms_of_torchvision_take_a_batch_as_they_take_an_image() -> None:
    images = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    normalise = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
            v2.CenterCrop(6),
        ]
    )
    data = ArrayDataset(images.to(torch.uint8), transform=normalise)
    (batch,) = data.__getitems__([3, 0, 4])
    assert batch.shape == (3, 3, 6, 6)
    for row, index in enumerate([3, 0, 4]):
        assert torch.equal(batch[row], normalise(data.arrays[0][index]))


def test_arrays_on_a_device_are_a_dataset_beside_the_first() -> None:
    data = load_digits(train=True)
    there = data.on(torch.device("meta"))
    assert [array.device.type for array in there.arrays] == ["meta", "meta"]
    assert [array.device.type for array in data.arrays] == ["cpu", "cpu"]
