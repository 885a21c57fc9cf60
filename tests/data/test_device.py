"""Batches on their way to a GPU: in order, one ahead, and the same as on the CPU."""

import os
import threading
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from loading import batches, digits, same
from torch.nn.utils.rnn import pack_sequence

from launcher.data import device
from launcher.data import loader as data_module
from launcher.data.arrays import ArrayDataset
from launcher.data.device import (
    CPU,
    moved,
    on_host,
    one_ahead,
    prefetched,
    reserve,
    set_arithmetic,
    tensors_in,
    to_device,
)
from launcher.data.fetching import Shard
from launcher.data.loader import Loader
from launcher.data.sampler import ShardSampler
from launcher.recipe.base import Recipe

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


class Words(UserDict[str, Any]):
    """A tokenizer's batch, like BatchEncoding: it holds more than its items."""

    def __init__(self, items: dict[str, Any], source: str = "") -> None:
        super().__init__(items)
        self.source = source


class Graph:
    """Knows by itself how to go to a device, and where its tensors are."""

    __slots__ = ("edges",)

    def __init__(self, edges: torch.Tensor) -> None:
        self.edges = edges

    def to(self, device: torch.device) -> "Graph":
        return Graph(self.edges.to(device))


@dataclass(frozen=True)
class Labelled:
    x: torch.Tensor
    boxes: list[torch.Tensor]
    name: str = "no tensor"


class Pair(NamedTuple):
    first: Any
    second: Any


def numbers() -> torch.Tensor:
    return torch.arange(3.0)


BATCHES: dict[str, tuple[Callable[[], Any], int]] = {  # and how many tensors are in it
    "tensor": (numbers, 1),
    "list": (lambda: [numbers(), (numbers(), 5, "text", None)], 2),
    "namedtuple": (lambda: Pair(numbers(), {"y": numbers()}), 2),
    "defaultdict": (lambda: defaultdict(list, x=[numbers()]), 1),
    "words": (lambda: Words({"ids": numbers(), "mask": [numbers()]}, "de"), 2),
    "dataclass": (lambda: Labelled(numbers(), [numbers(), numbers()]), 3),
    "packed": (lambda: pack_sequence([numbers(), numbers()[:2]]), 2),
    "graph": (lambda: [Graph(numbers())], 1),
}


@pytest.mark.parametrize("name", BATCHES)
def test_all_tensors_of_a_batch_are_found_and_sent_whatever_holds_them(name: str) -> None:
    make, count = BATCHES[name]
    before = make()
    there = to_device(before, torch.device("meta"))  # a device that every machine has
    assert type(there) is type(before)
    found = list(tensors_in(there))
    assert len(found) == count
    stay = name == "packed"  # the sizes of its batches are the host's
    assert sum(tensor.is_meta for tensor in found) == count - stay
    assert not any(tensor.is_meta for tensor in tensors_in(before))
    assert getattr(there, "source", "de") == "de"


def test_a_batch_that_refers_to_itself_is_looked_through_once() -> None:
    batch: list[Any] = [numbers()]
    batch += [batch, Words({"again": batch})]
    assert len(list(tensors_in(batch))) == 1


def test_an_epoch_that_ends_early_leaves_nothing_behind_for_the_next() -> None:
    loader = digits(CPU)
    whole = batches(loader, epoch=1)
    loader.sampler.seek(0)
    ahead = islice(one_ahead(iter(loader), lambda shard: shard), 3)
    assert [len(shard.micro_batches) for shard in ahead] == [2, 2, 2]
    assert same(batches(loader, epoch=1, start=5), whole[5:])


class There(torch.Tensor):
    """A tensor that says it is on a GPU, where there is none."""

    is_cuda = True


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """What was pinned, in order, where nothing can be; and the waits for a stream, as ()."""
    asked: list[torch.Size] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor.shape)
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    class Waits:
        def synchronize(self) -> None:
            asked.append(torch.Size())

    monkeypatch.setattr(device, "_pinned", pin)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Waits())
    return asked


def test_a_copy_from_a_gpu_goes_to_pinned_memory_and_is_waited_for_once(
    pinned: list[torch.Size],
) -> None:
    there = [torch.rand(2, 3).t().as_subclass(There), torch.rand(4).as_subclass(There)]
    kept = on_host({"a": there, "b": torch.ones(1), "c": 3})
    assert pinned == [(3, 2), (4,), ()]
    assert torch.equal(kept["a"][0], there[0])
    assert kept["a"][0].is_contiguous()
    assert (float(kept["b"]), kept["c"]) == (1, 3)


def test_what_will_be_copied_is_pinned_before_and_nothing_of_a_cpu(
    pinned: list[torch.Size],
) -> None:
    reserve([torch.ones(5), {"x": torch.ones(7).as_subclass(There)}, None])
    for thread in threading.enumerate():
        if thread.name == "pinned memory":
            thread.join()
    assert pinned == [(7,)]


def test_a_copy_on_a_cpu_is_one_of_its_own(pinned: list[torch.Size]) -> None:
    tensor = torch.ones(3)
    kept = on_host([tensor])
    tensor.zero_()
    assert kept[0].tolist() == [1, 1, 1]
    assert pinned == []


@pytest.mark.parametrize(("free", "small"), [(1e9, True), (1e4, False)])
def test_arrays_that_are_small_beside_a_gpu_s_memory_go_there_unasked(
    free: float, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), int(free)))
    data = ArrayDataset(torch.zeros(100, 10))
    assert data_module._is_small(data, GPU) == small
    assert not data_module._is_small(data, CPU)
    assert not data_module._is_small(torch.utils.data.TensorDataset(*data.arrays), GPU)


@pytest.mark.parametrize("tf32", [False, True])
def test_convolutions_are_float32_unless_asked_otherwise(tf32: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_arithmetic(tf32=tf32, deterministic=False)
        assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        torch.set_float32_matmul_precision("medium")  # as a recipe's own lines might
        set_arithmetic(tf32=False, deterministic=False)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_deterministic_is_torch_s_own_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_arithmetic(tf32=False, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_on_a_cpu_nothing_is_moved() -> None:
    tensor = torch.ones(3)
    assert moved(tensor, CPU) is tensor


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "hyperparameters",
    [{"data_on_device": False}, {"data_on_device": True}, {"num_workers": 1}],
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
