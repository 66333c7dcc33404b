"""How large a batch of a source may be, so that the table's is within its bound."""

from __future__ import annotations

from engine.sources.growth import Growth


def test_a_batch_is_smaller_by_what_the_last_one_grew_and_first_ones_are_small() -> None:
    limits = [2**20]
    growth = Growth(lambda: limits[0])
    assert growth.source_bytes() == 2**18  # nothing is known yet
    growth.saw(1_000, 8_000)
    assert growth.source_bytes() == 2**17
    growth.saw(1_000, 0)  # all of its rows were rejected
    assert growth.source_bytes() == 2**17
    limits[0] = 2**16  # under pressure
    assert growth.source_bytes() == 2**13
    growth.saw(1_000, 500)  # what shrinks is bounded as it is read
    assert growth.source_bytes() == 2**16


def test_a_bound_below_the_first_batch_holds_from_the_start() -> None:
    assert Growth(1_000).source_bytes() == 1_000
