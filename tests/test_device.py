"""Batches on their way to a GPU: in order, one ahead, and the same as on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from test_data import batches, digits, same

from launcher.arrays import ArrayDataset
from launcher.data import Loader, Shard
from launcher.device import CPU, moved, one_ahead, prefetched
from launcher.recipe import Recipe
from launcher.sampler import ShardSampler

GPU = torch.device("cuda")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device: run `uv run pytest -m gpu` where nvidia-smi shows one",
)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_item_is_received_before_the_next_is_sent_and_given_after_it(count: int) -> None:
    seen: list[str] = []

    def note(what: str, item: int) -> int:
        seen.append(f"{what} {item}")
        return item

    sent = (note("send", number) for number in range(count))
    for item in one_ahead(sent, lambda item: note("receive", item)):
        note("use", item)
    expected = {
        0: [],
        1: ["send 0", "receive 0", "use 0"],
        3: [
            *("send 0", "receive 0", "send 1", "use 0"),
            *("receive 1", "send 2", "use 1"),
            *("receive 2", "use 2"),
        ],
    }
    assert seen == expected[count]


class Stream:
    """Notes what a CUDA stream is told, where there is none."""

    device = GPU

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def wait_stream(self, other: "Stream") -> None:
        self.told.append(f"{self.name} waits for {other.name}")


def test_a_batch_is_made_on_the_side_and_kept_until_the_main_stream_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    main, side = Stream("main", told), Stream("side", told)
    current = [main]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def make() -> Iterator[Shard]:
        for number in range(2):
            told.append(f"{current[-1].name} makes {number}")
            yield Shard(1, 1, [(torch.tensor([number]), "no tensor")])

    def record(tensor: torch.Tensor, stream: Stream) -> None:
        told.append(f"{stream.name} uses {int(tensor)}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    for shard in prefetched(make(), side):  # type: ignore[arg-type]  # a stand-in
        computing = current[-1].name
        told.append(f"{computing} computes {int(shard.micro_batches[0][0])}")
    assert told == [
        "side waits for main",
        *("side makes 0", "main waits for side", "main uses 0", "side makes 1", "main computes 0"),
        *("main waits for side", "main uses 1", "main computes 1"),
    ]


def test_an_epoch_that_ends_early_leaves_nothing_behind_for_the_next() -> None:
    loader = digits(CPU)
    whole = batches(loader, epoch=1)
    loader.sampler.seek(0)
    ahead = islice(one_ahead(iter(loader), lambda shard: shard), 3)
    assert [len(shard.micro_batches) for shard in ahead] == [2, 2, 2]
    assert same(batches(loader, epoch=1, start=5), whole[5:])


def test_on_a_cpu_nothing_is_moved() -> None:
    tensor = torch.ones(3)
    assert moved(tensor, CPU) is tensor


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "hyperparameters",
    [{}, {"data_on_device": True}, {"num_workers": 1}],
    ids=["copied", "on-device", "workers"],
)
def test_batches_on_a_gpu_are_those_of_the_cpu(hyperparameters: dict[str, int]) -> None:
    on_cpu, on_gpu = digits(CPU), digits(GPU, **hyperparameters)
    for epoch, start in ((0, 0), (1, 3)):
        # A sixteenth is a power of two: not a bit is rounded differently.
        assert same(batches(on_gpu, epoch, start), batches(on_cpu, epoch, start))
    assert next(iter(on_gpu)).micro_batches[0][0].is_cuda


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_an_ordinary_dataset_arrives_on_a_gpu_whole_and_in_order(workers: int) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(50))
    recipe = Recipe(num_workers=workers)
    on_cpu = Loader(data, ShardSampler(50, 8), recipe, CPU)
    assert same(batches(Loader(data, ShardSampler(50, 8), recipe, GPU)), batches(on_cpu))


@needs_gpu
@pytest.mark.gpu
def test_memory_of_a_batch_is_not_reused_while_a_slow_step_reads_it() -> None:
    data = ArrayDataset(torch.arange(64).repeat(1 << 18, 1).T.contiguous())  # (64, 2**18)
    loader = Loader(data, ShardSampler(64, 1, shuffle=False), Recipe(), GPU)
    sums = []
    for shard in loader:
        # Some milliseconds: the host is many steps ahead of the device.
        torch.cuda._sleep(5_000_000)  # type: ignore[no-untyped-call]  # torch's own
        sums.append(shard.micro_batches[0][0].sum())
    assert [int(total) for total in sums] == [number << 18 for number in range(64)]
