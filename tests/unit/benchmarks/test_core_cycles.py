"""The bare core that throughput.py times does what it says."""

from __future__ import annotations

import pytest

from benchmarks.contestants.core import BareCore

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("workers", "waiting"), [(1, 0), (4, 0), (4, 1), (2, 50)])
def test_a_cycle_leaves_as_many_waiting_as_before(workers: int, waiting: int) -> None:
    assert len(BareCore(workers, waiting).time_cycles(200)) == 200
