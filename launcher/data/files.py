"""Lanes of files: tar shards as WebDataset has them, JSON lines, row groups of Parquet."""

import glob
import gzip
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from launcher.data.streams import Stream
from launcher.errors import DataError


class _Unit(NamedTuple):
    """What is read as a whole: a file, or a part of one."""

    path: Path
    read: Callable[[], Iterator[Any]]
    size: int | None  # samples, where that is known without reading them


def stream_of(
    files: str | Sequence[str | Path],
    *,
    lanes: int = 64,
    decode: Callable[[Any], Any] | None = None,
    count: bool = False,
) -> Stream:
    """Return a Stream of files, by paths or a pattern like "data/*.tar".

    Lane k reads the k-th file and every lanes-th after it (of Parquet: row groups); of fewer files
    there are fewer lanes. A sample is, of a tar file, a dict of those members that have a name in
    common up to its first dot: `{"__key__": name, "jpg": bytes, …}`; of JSON lines (.jsonl, also
    .gz) what a line says; of Parquet a dict of a row. `decode` makes of it what `collate` gets.
    Parquet knows its sizes; `count` has the samples of the other kinds counted first, which reads
    all of them once.

    Raises DataError for files that are not there or of another kind.
    """
    paths = sorted(glob.glob(files)) if isinstance(files, str) else list(files)  # noqa: PTH207  # absolute ones, too
    if not paths:
        raise DataError(f"there are no files `{files}`" if files else "there are no files")
    units = [unit for path in paths for unit in _units(Path(path))]
    lanes = min(lanes, len(units))
    sizes = [sum(1 for _ in u.read()) if count and u.size is None else u.size for u in units]
    known = [size for size in sizes if size is not None]
    by_lane = (
        [sum(known[lane::lanes]) for lane in range(lanes)] if len(known) == len(units) else None
    )
    return Stream(partial(_Reader, units, decode), lanes, by_lane)


class _Reader(Iterator[Any]):
    """Reads the units of one lane; knows how far into which it is."""

    def __init__(
        self, units: list[_Unit], decode: Callable[[Any], Any] | None, lane: int, lanes: int
    ) -> None:
        self._units, self._decode = units[lane::lanes], decode
        self._unit = self._done = 0
        self._samples: Iterator[Any] | None = None

    def __next__(self) -> Any:
        while self._unit < len(self._units):
            if self._samples is None:
                self._samples = islice(self._units[self._unit].read(), self._done, None)
            for sample in self._samples:
                self._done += 1
                return self._decode(sample) if self._decode else sample
            self._unit, self._done, self._samples = self._unit + 1, 0, None
        raise StopIteration

    def state_dict(self) -> dict[str, int]:
        """Return how far it is."""
        return {"unit": self._unit, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._unit, self._done, self._samples = state["unit"], state["done"], None


def _units(path: Path) -> list[_Unit]:
    if not path.is_file():
        raise DataError(f"`{path}` is no file")
    kinds = path.suffixes[-2:]
    if ".tar" in kinds or kinds[-1:] == [".tgz"]:
        return [_Unit(path, partial(_members, path), None)]
    if ".jsonl" in kinds or ".ndjson" in kinds:
        return [_Unit(path, partial(_lines, path), None)]
    if kinds[-1:] == [".parquet"]:
        meta = _parquet(path).metadata
        groups = range(meta.num_row_groups)
        return [_Unit(path, partial(_rows, path, g), meta.row_group(g).num_rows) for g in groups]
    raise DataError(
        f"nobody knows how to read samples from `{path}`",
        hint="it reads .tar, .jsonl and .parquet; for others write `launcher.Stream(open, lanes)`",
    )


def _members(path: Path) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    with tarfile.open(path, "r|*") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            place = PurePosixPath(member.name)
            stem, _, kind = place.name.partition(".")
            key = str(place.with_name(stem)) if stem else member.name
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            content = tar.extractfile(member)
            sample |= {"__key__": key, kind.lower(): content.read() if content else b""}
    if sample:
        yield sample


def _lines(path: Path) -> Iterator[Any]:
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _rows(path: Path, group: int) -> Iterator[dict[str, Any]]:
    for batch in _parquet(path).read_row_group(group).to_batches():
        yield from batch.to_pylist()


def _parquet(path: Path) -> Any:
    try:
        return import_module("pyarrow.parquet").ParquetFile(path)
    except ImportError as error:
        raise DataError(
            f"`{path}` cannot be read without pyarrow", hint="install it: pip install pyarrow"
        ) from error
