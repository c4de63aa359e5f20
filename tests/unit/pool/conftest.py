"""A program store, as a pool named "unit" has it."""

from __future__ import annotations

import pytest

from dspool.options import PoolOptions
from dspool.pool.programs import ProgramStore


@pytest.fixture
def store() -> ProgramStore:
    """A store without programs."""
    return ProgramStore(PoolOptions(name="unit"))
