"""How a loop was left, told from the frame: `break` and `return` complete, exceptions do not."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launcher.attached import leaving

pytestmark = pytest.mark.slow

seen: list[bool | None] = []


class Numbers:
    """Counts for ever; its iterator notes how it is let go of."""

    def __iter__(self) -> Iterator[int]:
        return Counting()


class Counting:
    def __init__(self) -> None:
        self.n = -1

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.n += 1
        return self.n

    def __del__(self) -> None:
        seen.append(leaving.in_order(sys._getframe(1)))


def through(numbers: Any) -> Iterator[int]:
    """As tqdm does."""
    for number in numbers:
        yield number
        seen.extend([])


class Bar:
    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        for number in self.numbers:  # noqa: UP028
            yield number


def breaks(numbers: Any) -> None:
    for n in numbers():
        if n == 2:
            break


def returns(numbers: Any) -> int:
    for n in numbers():
        if n == 2:
            return int(n) + len(str(n))
    return 0


def breaks_in_a_with(numbers: Any) -> None:
    for n in numbers():
        with contextlib.suppress(ValueError):
            if n == 2:
                break


def breaks_in_a_finally(numbers: Any) -> None:
    for n in numbers():
        try:
            if n == 2:
                break
        finally:
            str(n)


def breaks_after_errors_that_were_kept(numbers: Any) -> None:
    kept = []
    for n in numbers():
        try:
            int(f"no number {n}")
        except ValueError as error:
            kept.append(error)
        if n == 2:
            break


def breaks_two_loops(numbers: Any) -> None:
    for n in numbers():
        for m in range(5):
            if m == 3:
                break
        if n == 2:
            break


def ends_with_its_batches(numbers: Any) -> None:
    for _ in zip(numbers(), range(3), strict=False):
        pass


def ends_with_batches_that_come_first(numbers: Any) -> None:
    for _ in zip(range(3), numbers(), strict=False):
        pass


def breaks_while_handling(numbers: Any) -> None:
    try:
        next(iter(()))
    except StopIteration:
        for n in numbers():
            if n == 2:
                break


def raises(numbers: Any) -> None:
    for n in numbers():
        if n == 2:
            raise ValueError


def raises_deep(numbers: Any) -> None:
    for n in numbers():
        if n == 2:
            raises(lambda: range(5))


def raises_and_catches(numbers: Any) -> None:
    try:
        for n in numbers():
            if n == 2:
                int("x")
    except ValueError:
        pass


def exits(numbers: Any) -> None:
    for n in numbers():
        if n == 2:
            sys.exit(3)


def interrupts(numbers: Any) -> None:
    for n in numbers():
        if n == 2:
            raise KeyboardInterrupt


def raises_in_a_with(numbers: Any) -> None:
    for n in numbers():
        with contextlib.suppress(KeyError):
            if n == 2:
                raise ValueError


def raises_in_a_finally(numbers: Any) -> None:
    for n in numbers():
        try:
            str(n)
        finally:
            if n == 2:
                raise ValueError


def has_batches_that_raise(numbers: Any) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise ValueError

    for _ in zip(numbers(), batches(), strict=False):
        pass


def has_first_batches_that_raise(numbers: Any) -> None:
    for _ in zip((1 // (2 - n) for n in range(9)), numbers(), strict=False):
        pass


def divides_by_zero(numbers: Any) -> None:
    for n in numbers():
        1 / (n - 2)


IN_ORDER = [
    *(breaks, returns, breaks_in_a_with, breaks_in_a_finally, breaks_two_loops),
    *(breaks_after_errors_that_were_kept, breaks_while_handling),
    *(ends_with_its_batches, ends_with_batches_that_come_first),
]
FAILING = [
    *(raises, raises_deep, raises_and_catches, exits, interrupts, raises_in_a_with),
    *(raises_in_a_finally, has_batches_that_raise, has_first_batches_that_raise, divides_by_zero),
]
WRAPPED: dict[str, Callable[[Numbers], Any]] = {
    "plain": lambda numbers: numbers,
    "an expression": lambda numbers: (n for n in numbers),
    "a generator": through,
    "an object with a generator": Bar,
    "two generators": lambda numbers: through(Bar(numbers)),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("loop", IN_ORDER, ids=lambda loop: loop.__name__)
def test_a_loop_that_is_left_in_order(loop: Callable[[Any], Any], wrapped: str) -> None:
    seen.clear()
    loop(lambda: WRAPPED[wrapped](Numbers()))
    assert seen == [True]


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("loop", FAILING, ids=lambda loop: loop.__name__)
def test_a_loop_that_an_exception_leaves(loop: Callable[[Any], Any], wrapped: str) -> None:
    seen.clear()
    with contextlib.suppress(BaseException):
        loop(lambda: WRAPPED[wrapped](Numbers()))
    assert seen == [False]


def test_an_iterator_that_somebody_else_has_held_tells_nothing() -> None:
    def holds() -> None:
        held = iter(Numbers())
        for n in held:
            if n == 2:
                break

    def holds_and_raises() -> None:
        held = zip(Numbers(), range(9), strict=False)
        for n, _ in held:
            if n == 2:
                raise ValueError

    seen.clear()
    holds()
    with contextlib.suppress(ValueError):
        holds_and_raises()
    assert seen == [None, None]
