"""Fixtures that tests of several floors share; what takes long is made once a session and copied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from engine.refs import StageReport
from headrace.operations import build_operations_database
from tests.world import FEBRUARY, MARCH, World, copy_world, make_world

# 200 ms for each example is a measure of the host: one that pauses a process for a moment fails any test.
settings.register_profile("any host", deadline=None)
settings.load_profile("any host")


@pytest.fixture(scope="session")
def flights_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of one airport's real flights."""
    path = tmp_path_factory.mktemp("operations") / "operations.db"
    build_operations_database(path, months=[1, 2], origins=["LGA"])
    return path


@pytest.fixture
def world(tmp_path: Path, flights_database: Path) -> World:
    """A small company of its own, in which nothing has run."""
    return make_world(tmp_path, flights_database)


@pytest.fixture(scope="session")
def prepared_world(tmp_path_factory: pytest.TempPathFactory, flights_database: Path) -> World:
    """One whose January is extracted and prepared; to be copied."""
    made = make_world(tmp_path_factory.mktemp("prepared"), flights_database)
    made.prepare(FEBRUARY)
    return made


@pytest.fixture(scope="session")
def february(tmp_path_factory: pytest.TempPathFactory, prepared_world: World) -> tuple[World, dict[str, StageReport]]:
    """One with a champion of January, and the reports of its loop; to be copied."""
    made = copy_world(prepared_world, tmp_path_factory.mktemp("february") / "world")
    return made, made.loop(FEBRUARY)


@pytest.fixture(scope="session")
def march(
    tmp_path_factory: pytest.TempPathFactory, february: tuple[World, dict[str, StageReport]]
) -> tuple[World, dict[str, StageReport]]:
    """The same a month later, with a second champion; to be copied."""
    made = copy_world(february[0], tmp_path_factory.mktemp("march") / "world")
    return made, made.loop(MARCH)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server on SQLite, started once."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401 - telemetry off, before prefect is imported

    with prefect_test_harness(server_startup_timeout=60):
        yield str(PREFECT_API_URL.value())
