"""What flow tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The project's directory."""
    return Path(__file__).parents[2]
