"""Rows kept of test samples: one each, in the order of the dataset, however they are shared out."""

from typing import Any

import pytest
import torch

from launcher.errors import LauncherError, RecipeError, TrainingFailed
from launcher.ranks.context import Context
from launcher.ranks.kept import Kept, as_file, size_of


def test_rows_are_in_order_and_those_of_different_lengths_are_a_list() -> None:
    kept = Kept()
    for places in ([3, 0], [2], [1]):
        boxes = [torch.full((place, 4), float(place)) for place in places]
        kept.add({"score": torch.tensor(places, dtype=torch.bfloat16), "boxes": boxes})
        kept.end_batch(places)
    rows = kept.gathered(Context(cpu=True))
    score, found = rows["score"], rows["boxes"]
    assert isinstance(score, torch.Tensor)
    assert score.tolist() == [0, 1, 2, 3]
    assert [tuple(box.shape) for box in found] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert all((box == number).all() for number, box in enumerate(found))
    file = as_file(rows)
    assert file["boxes.offsets"].tolist() == [0, 0, 1, 3, 6]
    assert torch.equal(file["boxes.values"][3:6], found[3])
    assert size_of(rows) == 4 * 2 + 6 * 4 * 4 + 5 * 8


def test_nothing_kept_is_nothing() -> None:
    kept = Kept()
    kept.add({})
    kept.end_batch([0, 1])
    assert kept.gathered(Context(cpu=True)) == {}


TWO = torch.ones(2)


@pytest.mark.parametrize(
    ("batches", "kind", "words"),
    [
        ([{"a": torch.ones(3)}], TrainingFailed, "3 rows of `a` after 2 samples"),
        ([{"a": TWO}, {}], TrainingFailed, "2 rows of `a` after 4 samples"),
        ([{}, {"a": TWO}], TrainingFailed, "2 rows of `a` after 4 samples"),
        ([{"a": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}], TrainingFailed, r"and has `a` of"),
        ([{"a": TWO}, {"a": [TWO, TWO]}], TrainingFailed, "lists of"),
        ([{"a": 0.5}], RecipeError, "`kept` has a float under 'a'"),
        ([{"": TWO}], RecipeError, "under ''"),
        ([{"a": torch.tensor(1.0)}], RecipeError, "single numbers, under `a`"),
        ([{"a": [torch.ones(1, 2), torch.ones(1, 3)]}], RecipeError, "2 forms"),
        ([{"a": TWO.to(torch.complex64)}], RecipeError, "complex numbers"),
        ([{"a": [TWO.to_sparse(), TWO]}], RecipeError, "not dense"),
    ],
)
def test_what_is_no_row_a_sample_is_an_error_in_words(
    batches: list[Any], kind: type[LauncherError], words: str
) -> None:
    kept = Kept()

    def keep() -> None:
        for number, batch in enumerate(batches):
            kept.add(batch)
            kept.end_batch([2 * number, 2 * number + 1])

    with pytest.raises(kind, match=words):
        keep()
