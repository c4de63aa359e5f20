"""health() of a real pool: what a death, pings, calls and the end of the pool leave in it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.happenings import Happenings

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 20.0


def square(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return number * number


def until(true: Callable[[], bool]) -> None:
    """Nobody tells of a ping: look again until it is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_death_is_a_change_with_its_reason_and_so_is_its_mending(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, on_event=happenings, ping_interval_s=None)
    assert happenings.wait("pool.health")["status"] == "healthy"
    pid = pool.workers()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    lost = happenings.wait("pool.health")
    assert (lost["status"], lost["before"], lost["unsaid"]) == ("unhealthy", "healthy", 0)
    assert lost["reason"].startswith("worker 1: ")
    assert happenings.wait("pool.health")["status"] == "healthy"
    health = pool.health()
    assert [change.status for change in health.changes] == ["healthy", "unhealthy", "healthy"]
    assert health.changes[1].reason == lost["reason"]
    assert health.reason == "1 of 1 workers are ready"
    assert health.availability is not None
    assert 0.0 < health.availability < 1.0
    assert health.changes_unsaid == 0


def test_pings_and_calls_are_counted_apart(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, ping_interval_s=0.01)
    assert pool.run(square, {"number": 3}) == 9
    with pytest.raises(dspool.ProgramError):
        pool.run(square, {"number": -1})
    until(lambda: pool.health().pings.done >= 3)
    health = pool.health()
    assert (health.calls.done, health.calls.failed, health.calls.success_rate) == (2, 1, 0.5)
    assert (health.pings.failed, health.pings.success_rate) == (0, 1.0)
    assert health.pings.mean_s is not None
    assert health.pings.mean_s > 0
    (worker,) = pool.workers()
    assert worker.last_ping_age_s is not None
    assert worker.last_ping_s is not None
    assert health.status == "healthy", "what a program raises says nothing of its worker"


def test_a_worker_that_is_stopped_misses_its_pings(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, on_event=happenings, ping_interval_s=0.05, ping_timeout_s=0.5, ping_failures=2)
    pid = pool.workers()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert happenings.wait("worker.lost")["report"].reason == "hung"
    pings = pool.health().pings
    assert pings.failed >= 2, "a busy machine may have missed one before"
    until(lambda: pool.health().pings.consecutive_failures == 0)


def test_after_close_the_figures_stand_still(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    pool.close()
    first, second = pool.health(), pool.health()
    assert first.time_s == second.time_s
    assert first.time_s["healthy"] > 0
