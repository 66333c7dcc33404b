"""The result does not depend on the resources: budget, threads, or running again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import FEBRUARY, MARCH, World, make_world


def _loop(world: World, *, memory: str, threads: int) -> dict[str, list[str]]:
    learner = world.spec.learner.model_dump(mode="json")
    world.edit(learner={**learner, "sampling_rate": 0.8}, resources={"memory": memory, "threads": threads})
    world.loop(FEBRUARY)
    world.loop(MARCH, retrain=False)
    return world.content()


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_512_mib_and_2_gib_give_the_same_tables_and_a_second_run_adds_nothing(
    tmp_path: Path, flights_database: Path
) -> None:
    small = make_world(tmp_path / "small", flights_database)
    large = make_world(tmp_path / "large", flights_database)
    found = _loop(small, memory="512MiB", threads=2)
    expected = _loop(large, memory="2GiB", threads=1)
    assert found.keys() == expected.keys()
    for table, rows in expected.items():
        assert rows or table == "quarantine"
        assert found[table] == rows, table
    versions = {name: small.workspace.table(name).ref().version for name in ("raw", "labels", "predictions", "ledger")}
    small.loop(MARCH, retrain=False)
    assert small.content() == found
    assert versions == {name: small.workspace.table(name).ref().version for name in versions}
