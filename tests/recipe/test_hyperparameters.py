"""Hyperparameters: typed, checked, described, and the same after any round trip."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import RecipeError
from launcher.recipe.base import Recipe, missing_methods
from launcher.recipe.groups import AT_LEAST, GROUPS
from launcher.recipe.hyperparameters import configure, describe, split_overrides, table


@dataclass(frozen=True)
class Example(Recipe):
    """A recipe with a hyperparameter of every kind."""

    kinds: ClassVar[int] = 9  # no hyperparameter

    epochs: int = 5
    width: int = 128  # units of a layer
    dropout: float = 0.1  # share that is dropped
    augment: bool = False  # whether images are flipped
    data: Path = Path("data")  # folder of the images
    name: str = "example"  # what it is called
    norm: Literal["batch", "layer"] = "batch"  # kind of normalisation
    limit: int | None = None  # most samples
    betas: tuple[float, float] = (0.9, 0.999)  # decay of Adam's means
    layers: tuple[int, ...] = (64, 32)  # units by layer
    tags: list[str] = field(
        default_factory=list,  # frozen dataclasses may have lists
    )  # words to find it by
    area: int = field(init=False, default=0)  # no hyperparameter: computed

    def model(self) -> Any:
        width = 2 * self.width  # not what the hyperparameter `width` means
        return width + 1


def of_type(hint: Any) -> type[Recipe]:
    """A recipe with one hyperparameter, `value`, of a type."""
    return dataclasses.make_dataclass(
        "OfType", [("value", hint)], bases=(Recipe,), frozen=True, kw_only=True
    )


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text("aB3 _-./='\"\n\\é中🙂")  # without commas, which part the values of a tuple
WORD = TEXT.filter(bool)
TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, FINITE),
    (str, TEXT),
    (Path, TEXT.map(Path)),
    (Literal["no", "bf16", 3], st.sampled_from(["no", "bf16", 3])),
    (int | None, st.none() | st.integers()),
    (str | None, st.none() | TEXT),
    (int | float, st.integers() | FINITE),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (tuple[float, float], st.tuples(FINITE, FINITE)),
    (tuple[int, str], st.tuples(st.integers(), WORD)),
    (list[str], st.lists(WORD)),
    (tuple[Path, ...] | None, st.none() | st.lists(WORD.map(Path), min_size=1).map(tuple)),
]
VALUES = st.sampled_from(TYPED).flatmap(lambda row: st.tuples(st.just(row[0]), row[1]))


def text_of(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@pytest.mark.slow
@given(VALUES)
@settings(deadline=None)
def test_any_value_is_the_same_after_a_round_trip_through_text(typed: tuple[Any, Any]) -> None:
    hint, value = typed
    recipe: Any = configure(of_type(hint), "r", split_overrides([f"value={text_of(value)}"]))
    assert recipe.value == value
    assert type(recipe.value) is type(value)


@pytest.mark.slow
@given(VALUES)
@settings(deadline=None)
def test_any_value_is_the_same_after_a_round_trip_through_json(typed: tuple[Any, Any]) -> None:
    hint, value = typed
    kind: Any = of_type(hint)
    recipe = kind(value=value)
    again: Any = configure(kind, "r", json.loads(json.dumps(recipe.hyperparameters())))
    assert again == recipe
    assert type(again.value) is type(value)


@pytest.mark.slow
@given(
    st.sampled_from([hint for hint, _ in TYPED]),
    st.text("0123456789.,-+einfaxtrue ") | st.none() | st.booleans() | FINITE | st.lists(FINITE),
)
@settings(deadline=None)
def test_any_other_value_is_taken_or_refused_in_words(
    hint: Any, value: str | float | list[float] | None
) -> None:
    try:
        configure(of_type(hint), "r", {"value": value})
    except RecipeError as error:
        refusal = error.message
        assert refusal.startswith("`value` must be")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("width=wide", "`width` must be int, not `wide`"),
        ("width=1.5", "`width` must be int, not `1.5`"),
        ("width=", "`width` must be int, not ``"),
        ("width=none", "`width` must be int, not `none`"),
        ("dropout=half", "`dropout` must be float, not `half`"),
        ("dropout=nan", "`dropout` must be a finite number, not nan"),
        ("learning_rate=1e999", "`learning_rate` must be a finite number, not inf"),
        ("betas=0.9,inf", "`betas` must be a finite number, not inf"),
        ("betas=0.9", "`betas` must be tuple[float, float], not `0.9`"),
        ("betas=1,2,3", "`betas` must be tuple[float, float], not `1,2,3`"),
        ("layers=64,x", "`layers` must be tuple[int, ...], not `64,x`"),
        ("augment=maybe", "`augment` must be bool, not `maybe`"),
        ("norm=group", "`norm` must be batch | layer, not `group`"),
        ("limit=some", "`limit` must be int | none, not `some`"),
        ("batch_size=0", "`batch_size` must be at least 1, not 0"),
        ("epochs=0", "`epochs` must be at least 1, not 0"),
        ("micro_batch_size=0", "`micro_batch_size` must be at least 1, not 0"),
        ("learning_rate=-1", "`learning_rate` must be at least 0, not -1.0"),
        ("seed=-1", "`seed` must be at least 0, not -1"),
        ("num_workers=-1", "`num_workers` must be at least 0, not -1"),
    ],
)
def test_a_wrong_value_is_refused_in_words(word: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(Example, "example", split_overrides([word]))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 1.5),
        ("width", 1e300),
        ("width", True),
        ("width", None),
        ("dropout", [1]),
        ("dropout", 10**400),
        ("augment", 1),
        ("name", 5),
        ("name", None),
        ("data", None),
        ("betas", 0.9),
        ("betas", {"0.9": 1}),
        ("limit", [1]),
    ],
)
def test_a_json_value_of_a_wrong_type_is_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"`{key}` must be"):
        configure(Example, "example", {key: value})


@pytest.mark.parametrize(
    ("key", "near"),
    [("epoch", "epochs"), ("batch-size", "batch_size"), ("--epochs", "epochs"), ("xyzzy", None)],
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, near: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(Example, "example", {key: "1"})
    assert caught.value.message == f"recipe `example` has no hyperparameter `{key}`"
    guess = f"did you mean `{near}`? " if near else ""
    assert caught.value.hint == f"{guess}`launcher recipes show example` lists them"


@pytest.mark.parametrize("key", ["kinds", "area"])
def test_class_variables_and_computed_fields_are_no_hyperparameters(key: str) -> None:
    assert key not in Example().hyperparameters()
    assert key not in [h.name for h in describe(Example)]
    with pytest.raises(RecipeError, match="has no hyperparameter"):
        configure(Example, "example", {key: "1"})


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], {}),
        (["a=1", "b="], {"a": "1", "b": ""}),
        (["data=a=b"], {"data": "a=b"}),
    ],
)
def test_words_are_split_at_the_first_equals_sign(
    words: list[str], overrides: dict[str, str]
) -> None:
    assert split_overrides(words) == overrides


@pytest.mark.parametrize("word", ["epochs", "=3", "", "=", "epochs:3"])
def test_a_word_without_a_key_and_an_equals_sign_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="is not of the form key=value") as caught:
        split_overrides([word])
    assert "epochs=10" in str(caught.value.hint)


def test_a_hyperparameter_cannot_be_given_twice() -> None:
    with pytest.raises(RecipeError, match="`epochs` is given twice"):
        split_overrides(["epochs=1", "epochs=2"])


def test_description_has_type_default_and_meaning_of_every_hyperparameter() -> None:
    rows = {h.name: tuple(h[1:]) for h in describe(Example)}
    assert rows["epochs"] == ("int", 5, "passes over the training data")
    assert rows["batch_size"] == (
        "int",
        64,
        "samples of one optimizer step, over all processes together",
    )
    assert rows["width"] == ("int", 128, "units of a layer")
    assert rows["data"] == ("Path", Path("data"), "folder of the images")
    assert rows["norm"] == ("batch | layer", "batch", "kind of normalisation")
    assert rows["limit"] == ("int | none", None, "most samples")
    assert rows["layers"] == ("tuple[int, ...]", (64, 32), "units by layer")
    assert rows["tags"] == ("list[str]", [], "words to find it by")
    assert all(meaning for _, _, meaning in rows.values())


def test_the_table_has_a_recipes_own_first_then_each_group_by_name() -> None:
    sections = [part.splitlines() for part in table(Example).split("\n\n")]
    assert [section[0] for section in sections] == [
        "Its own:",
        *(f"{str(group.__doc__).rstrip('.')}:" for group in GROUPS),
    ]
    own = [line.split()[0] for line in sections[0][1:]]
    assert own == [
        name for name in Example.__annotations__ if name not in {"kinds", "epochs", "area"}
    ]
    assert "epochs" in sections[1][1]
    listed = [line.split()[0] for section in sections for line in section[1:]]
    assert sorted(listed) == sorted(h.name for h in describe(Example))


def test_every_hyperparameter_of_the_base_stands_in_one_group() -> None:
    grouped = [name for group in GROUPS for name in group.__annotations__]
    assert grouped == [field.name for field in dataclasses.fields(Recipe)]
    assert {*AT_LEAST} <= {*grouped}


def test_a_hyperparameter_without_a_default_is_required() -> None:
    kind = of_type(int)
    assert describe(kind)[-1][:3] == ("value", "int", "(required)")
    with pytest.raises(RecipeError, match=r"refuses its hyperparameters.*'value'"):
        configure(kind, "r", {})


@pytest.mark.parametrize(
    "hint", [dict[str, int], set[int], bytes, complex, tuple, object, list[dict[str, int]], Any]
)
def test_a_type_that_text_cannot_express_is_refused(hint: Any) -> None:
    for use in (describe, lambda kind: configure(kind, "r", {})):
        with pytest.raises(RecipeError, match="hyperparameter `value` cannot be of type"):
            use(of_type(hint))


def test_a_type_whose_name_is_unknown_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"a type in `OfType` is unknown: .*Nowhere"):
        describe(of_type("Nowhere"))


@pytest.mark.parametrize("name", ["loss", "model", "scheduler", "collate", "hyperparameters"])
def test_a_hyperparameter_cannot_have_the_name_of_a_method(name: str) -> None:
    kind: Any = dataclasses.make_dataclass(
        "Hides", [(name, str, "x")], bases=(Recipe,), frozen=True
    )
    with pytest.raises(RecipeError, match=f"hyperparameter `{name}` has the name of a"):
        configure(kind, "hides", {})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("width must be even"), "width must be even"),
        (AssertionError(), "AssertionError"),
        (RecipeError("no such width"), "no such width"),
    ],
)
def test_a_recipes_own_check_is_reported_in_its_words(error: Exception, words: str) -> None:
    @dataclass(frozen=True)
    class Checked(Recipe):
        """A recipe that is never satisfied."""

        def __post_init__(self) -> None:
            super().__post_init__()
            raise error

    with pytest.raises(RecipeError) as caught:
        configure(Checked, "checked", {})
    assert caught.value.message.endswith(words)


def test_hyperparameters_are_ready_for_json() -> None:
    told = json.loads(json.dumps(Example().hyperparameters()))
    assert told["data"] == "data"
    assert told["betas"] == [0.9, 0.999]
    assert told["limit"] is None
    assert configure(Example, "example", told) == Example()


def test_methods_that_are_not_written_are_missing() -> None:
    assert missing_methods(Example) == ["train_data", "loss", "optimizer"]


def test_a_recipe_with_a_step_of_its_own_may_count_anything() -> None:
    class Tokens(Recipe):
        def train_step(self, model: Any, batch: Any, loss_fn: Any) -> Any: ...

    assert Example().counts_samples()
    assert not Tokens().counts_samples()


def test_a_run_has_one_length() -> None:
    for values in ({"steps": "7"}, {"steps": 7, "epochs": 1}, {"steps": "7", "epochs": 3}):
        assert configure(Recipe, "r", values).steps == 7
    later = configure(Recipe, "r", {"steps": 7, "epochs": "3"})  # a resume that changes it
    assert (later.steps, later.epochs) == (None, 3)
    with pytest.raises(RecipeError, match="`epochs` and `steps` are both given"):
        configure(Recipe, "r", {"steps": "7", "epochs": "3"})
    both = dataclasses.make_dataclass(
        "Both", [("epochs", int, 5), ("steps", int | None, 7)], bases=(Recipe,), frozen=True
    )
    with pytest.raises(RecipeError, match="recipe `both` sets both `epochs` and `steps`"):
        configure(both, "both", {})
