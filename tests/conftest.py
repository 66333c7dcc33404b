"""Fixtures that tests of several floors share."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.operations import build_operations_database
from tests.world import World, make_world


@pytest.fixture(scope="session")
def flights_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of one airport's real flights."""
    path = tmp_path_factory.mktemp("operations") / "operations.db"
    build_operations_database(path, months=[1, 2], origins=["LGA"])
    return path


@pytest.fixture
def world(tmp_path: Path, flights_database: Path) -> World:
    """A small company of its own."""
    return make_world(tmp_path, flights_database)
