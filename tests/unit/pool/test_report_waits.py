"""Waiting for a worker's exit report while another thread brings it: no wake-up is lost, whatever the interleaving."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from dspool.options import PoolOptions
from dspool.pool.driver import Driver
from dspool.pool.polling import drive
from dspool.pool.steps import REPORT, Steps
from dspool.pool.waits import ThreadWaits, drive_async
from dspool.types import ExitReport

pytestmark = pytest.mark.unit

PATIENCE_S = 5.0
Act = Callable[[], None]


class Interleaved(deque[Act]):
    """The driver's wakers; what the control thread does comes just before, or just behind, each append."""

    def __init__(self, *acts: tuple[str, Act]) -> None:
        super().__init__()
        self._acts = deque(acts)

    def append(self, waker: Act) -> None:
        """Append, with the next act before or behind."""
        place, act = self._acts.popleft() if self._acts else ("", lambda: None)
        if place == "before":
            act()
        super().append(waker)
        if place == "behind":
            act()


def wait_in_thread(driver: Driver, deadline: float) -> Any:
    """As Pool.run() waits."""
    return drive(driver, steps(deadline))


def wait_in_map(driver: Driver, deadline: float) -> Any:
    """As Pool.map() waits."""

    async def main() -> Any:
        with anyio.fail_after(PATIENCE_S):
            return await drive_async(steps(deadline), ThreadWaits(driver))

    return anyio.run(main)


def steps(deadline: float) -> Steps[Any]:
    """Wait for the report of worker 1."""
    return (yield (REPORT, 1, deadline))


@pytest.mark.parametrize("wait", [wait_in_thread, wait_in_map])
@pytest.mark.parametrize(
    ("acts", "came"),
    [
        (["before exit"], True),
        (["behind exit"], True),
        (["behind other", "before exit"], True),
        (["before end"], False),
        (["behind end"], False),
        (["behind other", "before end"], False),
    ],
    ids=str,
)
def test_a_report_or_the_end_of_the_pool_wakes_who_waits_for_it(
    wait: Callable[[Driver, float], Any], acts: list[str], came: bool
) -> None:
    driver = Driver(PoolOptions(workers=1), lambda: None)
    report = ExitReport(worker_id=1, pid=None, reason="crash")
    do: dict[str, Act] = {
        "exit": lambda: driver.worker_exited(1, report),
        "other": lambda: driver.worker_exited(2, report),
        "end": driver.ended,
    }
    driver.changed = Interleaved(*((place, do[what]) for place, what in map(str.split, acts)))
    assert wait(driver, time.monotonic() + 10 * PATIENCE_S) is came
