"""The tree of errors: what a user reads and what a shell gets."""

import pytest

from launcher import errors
from launcher.errors import LauncherError


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("LauncherError", 1),
        ("BadInput", 2),
        ("RecipeError", 2),
        ("DataError", 2),
        ("RunDirError", 2),
        ("TrainingFailed", 1),
        ("NonFiniteLoss", 1),
        ("PeerFailed", 1),
        ("Stopped", 75),
    ],
)
def test_each_error_has_its_exit_code(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, LauncherError)
    assert kind.exit_code == code


def test_the_tree_names_every_error() -> None:
    kinds = {k for k in vars(errors).values() if isinstance(k, type) and k is not type}
    for kind in (k for k in kinds if issubclass(k, LauncherError)):
        [line] = [t for t in str(errors.__doc__).splitlines() if f"{kind.__name__} " in t]
        assert line.split(kind.__name__)[1].split()[0] == str(kind.exit_code)


def test_an_error_reads_as_what_happened_then_what_to_do() -> None:
    error = LauncherError("it broke", hint="mend it")
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert str(error) == "it broke\nhint: mend it"


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(LauncherError("it broke")) == "it broke"
    assert LauncherError("it broke").hint is None
