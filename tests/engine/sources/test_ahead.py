"""Reading ahead in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from engine.sources.ahead import read_ahead


def test_values_come_whole_and_in_order_also_what_means_the_end_elsewhere() -> None:
    values = [1, None, 0, StopIteration(), 2]
    assert list(read_ahead(iter(values), waiting=2)) == values


def test_no_more_is_read_ahead_than_asked() -> None:
    seen: list[int] = []
    go = threading.Event()

    def stream() -> Iterator[int]:
        for value in range(10):
            seen.append(value)
            if value == 4:
                go.set()
            yield value

    ahead = read_ahead(stream(), waiting=2)
    assert next(ahead) == 0
    # One was taken, two wait, one is in the reader's hand.
    assert not go.wait(0.3)
    assert seen == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 10))


def test_an_error_of_the_reader_is_raised_where_it_is_read_after_what_came_before() -> None:
    def stream() -> Iterator[int]:
        yield 1
        raise ValueError("gone")

    ahead = read_ahead(stream(), waiting=1)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="gone"):
        next(ahead)


def test_the_reader_ends_when_nobody_reads_on() -> None:
    ended = threading.Event()

    def stream() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    ahead = read_ahead(stream(), waiting=1)
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    del ahead
    assert ended.wait(10)
    assert not [one for one in threading.enumerate() if one.name == "headrace-reader"]


def test_what_it_reads_from_is_closed_with_it_and_after_its_last_read() -> None:
    said: list[str] = []

    def stream() -> Iterator[int]:
        try:
            for number in range(100):
                said.append("reading")
                time.sleep(0.01)
                said.append("read")
                yield number
        finally:
            said.append("closed")

    held = stream()  # as a traceback holds it
    with contextlib.suppress(ArithmeticError), contextlib.closing(read_ahead(held, waiting=2)) as ahead:
        for number in ahead:
            if number == 3:
                raise ArithmeticError
    assert said[-2:] == ["read", "closed"]
