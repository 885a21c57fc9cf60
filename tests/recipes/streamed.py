"""A stream of lanes, shuffled in a buffer, with noise."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from curve import Curve
from torch import Tensor

from launcher import Stream, main


@dataclass(frozen=True)
class Streamed(Curve):
    """The curve's network on images of seven lanes."""

    epochs: int = 3
    samples: int = 61
    batch_size: int = 8
    test_samples: int = 11
    test_batch_size: int = 3
    log_every: int = 2
    checkpoint_every: int | None = 2
    num_workers: int | None = 1
    lanes: int = 7
    sized: bool = True
    keeps: Literal["nothing", "state"] = "nothing"

    def train_data(self) -> Stream:  # type: ignore[override]  # its base has arrays
        return self.streamed(self.samples, key=1, sized=self.sized)

    def test_data(self) -> Stream:  # type: ignore[override]
        return self.streamed(self.test_samples, key=2, sized=True)

    def streamed(self, samples: int, key: int, *, sized: bool) -> Stream:
        images, labels = self.made(samples, key).arrays

        def opened(lane: int, lanes: int) -> Iterator[Any]:
            rows = range(lane, samples, lanes)
            dtype = getattr(torch, self.dtype)
            lane_ = Shuffled([(images[row].to(dtype) / 255 - 0.5, labels[row]) for row in rows])
            return lane_ if self.keeps == "state" else (sample for sample in lane_)

        sizes = [len(range(lane, samples, self.lanes)) for lane in range(self.lanes)]
        return Stream(opened, self.lanes, sizes if sized else None)


class Shuffled(Iterator[Any]):
    """Gives samples out of a buffer of four, each with noise."""

    def __init__(self, rows: list[tuple[Tensor, Tensor]]) -> None:
        self.rows, self.at = rows, 0
        self.buffer: list[int] = []

    def __next__(self) -> tuple[Tensor, Tensor]:
        while len(self.buffer) < 4 and self.at < len(self.rows):
            self.buffer.append(self.at)
            self.at += 1
        if not self.buffer:
            raise StopIteration
        image, label = self.rows[self.buffer.pop(random.randrange(len(self.buffer)))]
        return image + 0.1 * torch.rand(()), label

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "buffer": self.buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.buffer = state["at"], list(state["buffer"])


if __name__ == "__main__":
    main(Streamed)
