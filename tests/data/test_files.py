"""Lanes of files: each sample once, as it was written, from where another process left."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # it has no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from launcher import Stream, stream_of
from launcher.errors import DataError

COUNTS = [3, 5, 1, 4, 2]


def a_tar(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for kind, content in (("txt", b"n%d" % number), ("seg.png", b"image")):
                member = tarfile.TarInfo(f"deep.er/{number:04d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def lines(path: Path, first: int, count: int) -> None:
    text = "".join(json.dumps({"n": number}) + "\n\n" for number in range(first, first + count))
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def a_table(path: Path, first: int, count: int) -> None:
    table = pa.table({"n": list(range(first, first + count))})
    pq.write_table(table, path, row_group_size=2)


KINDS = {"tar": a_tar, "jsonl": lines, "jsonl.gz": lines, "parquet": a_table}


def written(folder: Path, kind: str) -> str:
    for number, count in enumerate(COUNTS):
        KINDS[kind](folder / f"part-{number}.{kind}", sum(COUNTS[:number]), count)
    return str(folder / f"*.{kind}")


def number(sample: Any) -> int:
    return int(sample["n"]) if "n" in sample else int(sample["txt"][1:])


def lane(stream: Stream, which: int) -> list[int]:
    return list(stream.open(which, stream.lanes))


@pytest.mark.parametrize("lanes", [2, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_of_the_files_is_in_one_lane(tmp_path: Path, kind: str, lanes: int) -> None:
    stream = stream_of(written(tmp_path, kind), lanes=lanes, decode=number, count=True)
    assert stream.lanes == min(lanes, 9 if kind == "parquet" else 5)
    found = [lane(stream, which) for which in range(stream.lanes)]
    assert sorted(sample for samples in found for sample in samples) == list(range(sum(COUNTS)))
    assert stream.sizes is not None
    assert [len(samples) for samples in found] == stream.sizes.tolist()
    if kind != "parquet" and lanes == 2:
        assert found[0] == [0, 1, 2, 8, 13, 14]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    stream = stream_of(written(tmp_path, kind), lanes=2, decode=number)
    assert (stream.sizes is None) == (kind != "parquet")
    whole = lane(stream, 0)
    for done in range(len(whole)):
        reader: Any = stream.open(0, 2)
        assert [next(reader) for _ in range(done)] == whole[:done]
        again: Any = stream.open(0, 2)
        again.load_state_dict(json.loads(json.dumps(reader.state_dict())))
        assert list(again) == whole[done:]


def test_a_sample_of_a_tar_file_has_what_shares_its_name(tmp_path: Path) -> None:
    a_tar(tmp_path / "a.tar", 7, 2)
    [first, _] = stream_of([tmp_path / "a.tar"]).open(0, 1)
    assert first == {"__key__": "deep.er/0007", "txt": b"n7", "seg.png": b"image"}


def test_what_a_stream_reads_stands_in_turn(tmp_path: Path) -> None:
    stream = stream_of(written(tmp_path, "jsonl"), decode=number, count=True)
    names = stream.names(np.arange(sum(COUNTS)))
    starts = [sum(COUNTS[:file]) for file in range(5)]
    turns = [starts[name % 5] + name // 5 for name in names.tolist()]
    assert turns[:6] == [0, 3, 8, 9, 13, 1]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("nothing/*.tar", "there are no files `nothing/"),
        ([], "there are no files"),
        (["nothing.tar"], "`nothing.tar` is no file"),
        ([__file__], "nobody knows how to read samples"),
    ],
)
def test_files_that_cannot_be_read_are_refused(files: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        stream_of(files)
