"""Weights as files, in each of their forms."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from launcher.errors import BadInput
from launcher.model.files import Shares, read, weights_in
from launcher.run import checkpoint_files as files
from launcher.run.weights import files_of, forget, index_of, part_of, weights_of


def in_shares(folder: Path, whole: Tensor, ranks: int) -> None:
    """A checkpoint's files with one weight in pieces and one that is whole."""
    name, most = "['model']['w']", -(-len(whole) // ranks)
    for rank in range(ranks):
        rows = whole[rank * most : (rank + 1) * most].clone()
        save_file({name: rows}, folder / files.share_name(rank, ranks))
    state = {"model": {"w": torch.empty_like(whole, device="meta"), "b": torch.ones(())}}
    torch.save(state, folder / files.TRAINING)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_rows_of_any_rank_are_found_in_the_files_of_any_number(
    tmp_path: Path, ranks: int
) -> None:
    whole = torch.arange(8.0).view(4, 2)
    in_shares(tmp_path, whole, ranks)  # of 3 and 5 some have none
    shares = Shares(tmp_path)
    for start in range(5):
        for stop in range(start, 5):
            assert torch.equal(shares.rows("['model']['w']", start, stop), whole[start:stop])
    assert [name for name, _ in weights_in(tmp_path)] == ["w", "b"]
    read_from = read(weights_of(tmp_path))
    assert torch.equal(read_from["w"], whole)
    assert read_from["b"] == 1


def several(folder: Path) -> Path:
    """Weights in two files; returns the name that one would have."""
    weights, parts = folder / "model.safetensors", {"a": torch.ones(2), "b": torch.zeros(3)}
    places = {}
    for number, (name, value) in enumerate(parts.items(), 1):
        path = part_of(weights, number, 2)
        save_file({name: value}, path)
        places[name] = path.name
    index_of(weights).write_text(json.dumps({"weight_map": places}))
    return weights


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    weights = several(tmp_path)
    names = ["model.safetensors.index.json"]
    names += [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert [path.name for path in files_of(weights)] == names
    found = weights_of(tmp_path)
    assert found == weights_of(index_of(weights)) == index_of(weights)
    assert {name: len(value) for name, value in read(found).items()} == {"a": 2, "b": 3}
    forget(weights)
    assert not list(tmp_path.iterdir())


def test_an_index_that_is_none_or_lists_what_is_not_there_is_refused(tmp_path: Path) -> None:
    weights = several(tmp_path)
    files_of(weights)[1].unlink()
    with pytest.raises(BadInput, match=r"model-00001-of-00002.* cannot be read: No such"):
        weights_of(tmp_path)
    for text in ("[1]", "{}", "no JSON"):
        index_of(weights).write_text(text)
        with pytest.raises(BadInput, match="is no index of safetensors"):
            weights_of(tmp_path)
    index_of(weights).unlink()
    with pytest.raises(BadInput, match=r"index.json` cannot be read: No such file"):
        weights_of(index_of(weights))
