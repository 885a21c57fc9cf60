"""`launcher.shards`: exact shards with their weights, for loops of one's own."""

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset
from training import command

import launcher
from launcher.errors import BadInput, DataError, RecipeError, SampleFailed

pytestmark = pytest.mark.warm

LOOP = Path(__file__).with_name("hand_made.py")
SIZE = 13


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What a loop by hand was given and has learnt, by number of processes."""
    found = {}
    for world in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        words: list[object] = [sys.executable]
        if world > 1:
            words += ["-m", "torch.distributed.run", "--rdzv-backend=c10d"]
            words += ["--rdzv-endpoint=localhost:0", f"--nproc-per-node={world}"]
        done = command(*words, LOOP, folder, cwd=folder, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        found[world] = json.loads((folder / "told.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_a_loop_by_hand_learns_the_same_weights_in_any_number_of_processes(
    told: dict[int, dict[str, Any]], world: int
) -> None:
    for key, alone in told[1].items():
        if key == "resumed":
            continue
        for name, weights in alone["weights"].items():
            other = torch.tensor(told[world][key]["weights"][name])
            assert (other - torch.tensor(weights)).abs().max() <= 1e-6, (key, name)


@pytest.mark.slow
def test_shards_of_all_ranks_are_each_sample_once_and_their_weights_add_up(
    told: dict[int, dict[str, Any]],
) -> None:
    without = 0
    for world in (1, 2, 3):
        for key, alone in told[1].items():
            if key == "resumed":
                continue
            everyones = told[world][key]["given"]
            assert len(everyones) == world
            for ranks in zip(*everyones, strict=True):
                size = ranks[0][0]
                assert sum(own for _, own, *_ in ranks) == size
                assert sum(weight for _, _, weight, *_ in ranks) == pytest.approx(world)
                without += sum(own == 0 for _, own, *_ in ranks)
                assert all(len(x) == max(own, 1) for _, own, _, _, _, x in ranks)
            rows = [
                sorted(tuple(row) for _, own, *_, x in one for row in x[:own])
                for one in zip(*everyones, strict=True)
            ]
            alones = [sorted(map(tuple, x)) for *_, x in alone["given"][0]]
            assert rows == alones
    assert without > 10


@pytest.mark.slow
def test_a_loop_that_goes_on_at_a_step_ends_where_the_whole_one_does(
    told: dict[int, dict[str, Any]],
) -> None:
    for world in (1, 2, 3):  # at 3 DDP by itself keeps no bits over a resume
        for name, weights in told[world]["samples 5 False"]["weights"].items():
            gone_on = torch.tensor(told[world]["resumed"][name])
            assert (gone_on - torch.tensor(weights)).abs().max() <= (1e-6 if world > 2 else 0)


def numbers(count: int = SIZE) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def taken(data: Any, epoch: int, start: int = 0) -> list[list[int]]:
    return [share.batch[0].tolist() for share in data.epoch(epoch, start)]


def test_an_epoch_is_the_same_from_any_step_on_and_another_one_the_next_time() -> None:
    data = launcher.shards(numbers(), 4, seed=1)
    whole = taken(data, 0)
    assert len(data) == len(whole) == 4
    assert taken(data, 0, 2) == whole[2:]
    assert taken(data, 0, 4) == []
    assert taken(data, 1) != whole
    assert [data[step].batch[0].tolist() for step in (5, 6, 2, 3, 4)] == [
        *taken(data, 1)[1:3],
        *whole[2:],
        taken(data, 1)[0],
    ]
    assert [s.batch[0].tolist() for s in launcher.shards(numbers(), 4, seed=1, start=3)] == [
        whole[3]
    ]
    plain = launcher.shards(numbers(), 4, shuffle=False, drop_last=True)
    assert [n for batch in taken(plain, 5) for n in batch] == list(range(12))


def test_data_workers_load_the_same() -> None:
    plain = launcher.shards(numbers(), 4, seed=1)
    worked = launcher.shards(numbers(), 4, seed=1, num_workers=1)
    assert [taken(worked, epoch) for epoch in (0, 1)] == [taken(plain, epoch) for epoch in (0, 1)]
    assert worked[2].batch[0].tolist() == plain[2].batch[0].tolist()


def test_a_script_s_own_generators_are_not_seeded_by_its_data() -> None:
    class Drawing(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            return (torch.rand(1) + random.random() + np.random.random_sample(),)

    data = launcher.shards(Drawing(torch.arange(SIZE)), 4)
    drawn = [(torch.rand(1).item(), random.random(), np.random.random_sample()) for _ in data]
    assert len({one for row in drawn for one in row}) == 3 * 4


def test_what_joins_samples_may_be_a_function() -> None:
    data = launcher.shards(numbers(), 4, collate=lambda samples: {"n": len(samples)})
    assert [share.batch for share in data] == [{"n": 4}] * 3 + [{"n": 1}]


def test_the_place_may_be_given_and_is_that_of_torchrun_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [next(iter(launcher.shards(numbers(), 4, rank=r, world_size=3))) for r in range(3)]
    assert [(share.own, share.weight) for share in shares] == [(2, 1.5), (1, 0.75), (1, 0.75)]
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "3")
    [share, *_] = launcher.shards(numbers(), 4)
    assert share.batch[0].tolist() == shares[1].batch[0].tolist()


class Reading(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"dataset": Reading()}, DataError),
        ({"dataset": []}, DataError),
        ({"dataset": iter([1])}, DataError),
        ({"batch_size": 0}, BadInput),
        ({"batch_size": 2.5}, BadInput),
        ({"batch_size": 20, "drop_last": True}, RecipeError),
        ({"seed": -1}, BadInput),
        ({"start": -1}, BadInput),
        ({"rank": 1}, BadInput),
        ({"rank": 3, "world_size": 3}, BadInput),
        ({"num_workers": -1}, BadInput),
    ],
    ids=["stream", "empty", "iterator", *map(str, range(8))],
)
def test_what_cannot_be_sharded_is_refused(words: dict[str, Any], error: type[Exception]) -> None:
    given: dict[str, Any] = {"dataset": numbers(), "batch_size": 4}
    with pytest.raises(error):
        launcher.shards(**(given | words))


def test_epochs_that_are_mixed_up_and_steps_that_are_none_are_refused() -> None:
    data = launcher.shards(numbers(), 4)
    first = data.epoch(0)
    next(first)
    next(data.epoch(1))
    with pytest.raises(BadInput, match="left for another one"):
        next(first)
    with pytest.raises(BadInput):
        data.epoch(0, 5)
    with pytest.raises(BadInput):
        data[-1]


def test_a_sample_that_cannot_be_loaded_is_named() -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            raise OSError("no disk")

    data = launcher.shards(Broken(torch.arange(3)), 2, shuffle=False)
    with pytest.raises(SampleFailed, match="sample 0 of the dataset could not be loaded"):
        next(iter(data))


def test_gather_is_for_a_script_that_has_a_shard() -> None:
    data = launcher.shards(numbers(), 4)
    share = data[0]
    rows, mine = launcher.gather(share.batch[0].float())
    assert rows.tolist() == share.batch[0].tolist()
    assert mine.tolist() == [0, 1, 2, 3]
    list(data)
    with pytest.raises(RecipeError, match="no step is being made"):
        launcher.gather(torch.zeros(4))
