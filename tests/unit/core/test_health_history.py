"""Health over time: time in each status, changes with their reasons, how often they are told, pings and calls."""

from __future__ import annotations

import pytest

from dspool.pool.core.commands import Checkin, Close, ProbeAnswered, Resize, RssSampled, WorkerUnwell
from dspool.pool.core.health import BURST, CHANGES_REMEMBERED, History, Judgement
from dspool.pool.core.snapshot import pool_health, worker_info
from dspool.types import HealthStatus, PoolHealth
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def seen(world: World, now: float | None = None) -> PoolHealth:
    return pool_health(world.core, world.now if now is None else now)


def told(world: World) -> list[tuple[str, str, int]]:
    """What the last step said of the pool's health: status, the one before, and how many changes went unsaid."""
    reports = [report.fields for report in world.reports if report.event == "pool.health"]
    return [(fields["status"], fields["before"], fields["unsaid"]) for fields in reports]


def lose_and_replace(world: World, now: float) -> list[tuple[str, str, int]]:
    """The pool's one worker dies and another is ready, in the same instant. What was told of it."""
    (worker,) = world.workers()
    world.exit(worker.worker_id, "crash", now)
    said = told(world)
    world.all_ready()
    return said + told(world)


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_pool_that_made_no_step_has_no_availability() -> None:
    health = seen(World(workers=1))
    assert (health.availability, health.availability_1h, health.since_s, health.changes) == (None, None, 0.0, ())
    assert sum(health.time_s.values()) == 0.0


def test_time_is_counted_for_the_status_that_the_pool_had() -> None:
    world = World(workers=2)
    world.tick(100.0)
    world.become_ready(1, 101.0)
    world.become_ready(2, 103.0)
    world.exit(1, "crash", 110.0)
    health = seen(world, 120.0)
    assert health.time_s == {"healthy": 7.0, "degraded": 12.0, "unhealthy": 1.0}
    assert (health.status, health.since_s) == ("degraded", 10.0)
    assert health.availability == health.availability_1h == pytest.approx(0.95)


def test_the_last_hour_forgets_what_was_before_it() -> None:
    world = World(workers=1)
    world.tick(0.0)
    world.become_ready(1, 600.0)
    health = seen(world, 1200.0)
    assert (health.availability, health.availability_1h) == (0.5, 0.5)
    late = seen(world, 4139.0)
    assert late.availability_1h == pytest.approx(3539 / 3599), "minute 9, in which it was not ready, still counts"
    assert seen(world, 4140.0).availability_1h == 1.0
    world.exit(1, "crash", 8000.0)
    assert seen(world, 8060.0).availability_1h == pytest.approx(1 - 60 / (59 * 60 + 20))
    assert seen(world, 50_000.0).availability_1h == 0.0


def test_what_was_long_ago_costs_nothing_to_remember() -> None:
    history = History("healthy")
    history.begin(0.0)
    status: HealthStatus = "healthy"
    for now in range(100, 1_000_000, 100):
        status = "degraded" if status == "healthy" else "healthy"
        history.change(Judgement(status, 1, 2, False), "", float(now))
    assert len(history._minutes) == 60
    assert len(history.changes) == CHANGES_REMEMBERED
    assert sum(history.spent(1_000_000.0).values()) == 1_000_000.0
    assert sum(history.spent_lately(1_000_020.0).values()) == pytest.approx(59 * 60 + 1_000_020 % 60)


def test_the_clock_stops_when_the_pool_closes() -> None:
    world = World.ready(1)
    world.do(Close(20.0), 10.0)
    world.do(Close(15.0), 12.0)
    world.exit(1, "stopped", 13.0)
    assert seen(world, 500.0).time_s == {"healthy": 10.0, "degraded": 0.0, "unhealthy": 0.0}
    assert seen(world, 500.0).availability == 1.0


def test_a_pool_may_close_before_its_first_step() -> None:
    world = World(workers=1)
    world.do(Close(5.0), 3.0)
    assert seen(world, 9.0).availability is None


# --- changes ----------------------------------------------------------------------------------------------------------


def test_each_change_is_kept_with_what_caused_it() -> None:
    world = World.ready(2)
    world.exit(1, "crash", 4.0, detail="killed by SIGSEGV")
    world.do(WorkerUnwell(2, "killed", "by hand"), 5.0)
    world.become_ready(3, 6.0)
    changes = [(change.age_s, change.status, change.ready, change.reason) for change in seen(world, 10.0).changes]
    assert changes[:2] == [
        (10.0, "degraded", 1, "1 of 2 workers are ready"),
        (10.0, "healthy", 2, "2 of 2 workers are ready"),
    ]
    assert changes[2] == (6.0, "degraded", 1, "worker 1: crash, killed by SIGSEGV")
    assert changes[3] == (5.0, "unhealthy", 0, "worker 2: killed, by hand")
    assert changes[4][1] == "degraded"
    assert seen(world, 10.0).reason == changes[-1][3]


def test_a_worker_that_seems_dead_is_named_before_it_is_known_why() -> None:
    world = World.ready(1)
    world.checkin(world.checkout(program="p"), "lost")
    assert seen(world).reason == "worker 1: it seems to be dead, its pipe ended"


def test_stopped_starts_are_the_reason_where_they_are() -> None:
    world = World(workers=1, max_restarts=0)
    world.tick(0.0)
    world.become_ready(1)
    world.exit(1, "boot_error", detail="no module named nltk")
    assert seen(world).reason == "starts are stopped; worker 1: boot_error, no module named nltk"


# --- how often they are told ------------------------------------------------------------------------------------------


def test_of_many_changes_the_first_few_are_told_at_once_then_one_a_second() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.become_ready(1)
    said = 1
    for _ in range(100):
        said += len(lose_and_replace(world, 0.0))
    assert said == BURST
    world.exit(world.workers()[0].worker_id, "crash", 0.5)
    assert told(world) == []
    assert world.core.next_deadline() == 1.0


def test_what_lasts_is_told_when_its_second_has_come() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.become_ready(1)
    while lose_and_replace(world, 0.0):
        pass
    assert seen(world).status == "healthy"
    lost = world.workers()[0].worker_id
    world.exit(lost, "crash", 0.5)
    last = seen(world).changes[-1]
    assert (last.status, told(world)) == ("unhealthy", [])
    world.tick(1.0)
    (fields,) = [report.fields for report in world.reports if report.event == "pool.health"]
    assert (fields["status"], fields["before"]) == ("unhealthy", "healthy")
    assert fields["reason"] == f"worker {lost}: crash"
    assert fields["unsaid"] == seen(world).changes_unsaid > 0


def test_what_is_told_with_a_later_change_is_not_told_again() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.all_ready()
    world.do(Resize("default", 2))
    world.all_ready()
    world.exit(1)
    world.all_ready()
    world.exit(2)
    assert (seen(world).status, told(world)) == ("degraded", []), "five were told, the last one healthy"
    assert world.core.next_deadline() == 1.0
    world.exit(3, now=2.0)
    assert told(world) == [("unhealthy", "healthy", 1)]
    assert not world.core.timers.armed("health")


def test_what_does_not_last_is_not_told() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.become_ready(1)
    while lose_and_replace(world, 0.0):
        pass
    before = seen(world).changes_unsaid
    lose_and_replace(world, 0.5)
    assert seen(world).changes_unsaid == before + 2
    assert not world.core.timers.armed("health")


def test_a_quiet_time_allows_another_burst() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.become_ready(1)
    while lose_and_replace(world, 0.0):
        pass
    assert len(lose_and_replace(world, 60.0)) == 2


def test_a_pool_that_closes_tells_nothing_more() -> None:
    world = World(workers=1, max_restarts=10_000)
    world.tick(0.0)
    world.become_ready(1)
    while lose_and_replace(world, 0.0):
        pass
    world.exit(world.workers()[0].worker_id, "crash")
    assert world.core.timers.armed("health")
    world.do(Close(5.0))
    world.tick(3.0)
    assert told(world) == []


# --- pings and calls --------------------------------------------------------------------------------------------------


def ping(world: World, *, ok: bool, at: float, took_s: float) -> None:
    """The idle worker 1 is pinged at `at`, as its timer says."""
    world.tick(at)
    world.do(ProbeAnswered(1, ok), at + took_s)


def test_pings_are_counted_with_the_time_they_took() -> None:
    world = World.ready(1, ping_interval_s=10.0, ping_failures=3)
    ping(world, ok=True, at=10.0, took_s=0.25)
    ping(world, ok=True, at=20.0, took_s=0.75)
    ping(world, ok=False, at=30.0, took_s=5.0)
    world.do(ProbeAnswered(1, ok=False), 40.0)
    pings = seen(world, 41.0).pings
    assert (pings.done, pings.failed, pings.consecutive_failures, pings.success_rate) == (4, 2, 2, 0.5)
    assert (pings.mean_s, pings.last_age_s) == (0.5, 1.0)
    info = worker_info(world.core.workers[1], 41.0, pid=1, start_method="spawn")
    assert (info.last_ping_age_s, info.last_ping_s) == (20.25, 0.75)


def test_before_the_first_ping_nothing_is_known() -> None:
    world = World.ready(1)
    pings = seen(world).pings
    assert (pings.done, pings.success_rate, pings.mean_s, pings.last_age_s) == (0, None, None, None)
    info = worker_info(world.core.workers[1], 0.0, pid=1, start_method="spawn")
    assert (info.last_ping_age_s, info.last_ping_s) == (None, None)


def test_where_all_failed_there_is_no_mean() -> None:
    world = World.ready(1, ping_interval_s=10.0)
    ping(world, ok=False, at=10.0, took_s=5.0)
    pings = seen(world).pings
    assert (pings.success_rate, pings.mean_s) == (0.0, None)


def test_a_ping_that_a_busy_worker_misses_is_no_failure() -> None:
    world = World.ready(1, ping_interval_s=10.0)
    world.tick(10.0)
    world.checkout()
    world.do(ProbeAnswered(1, ok=False), 15.0)
    assert seen(world).pings.done == 0


def test_calls_are_counted_with_the_time_they_took() -> None:
    world = World.ready(1)
    first = world.checkout(1.0, program="p")
    world.checkin(first, now=3.0)
    second = world.checkout(4.0, program="p")
    world.do(Checkin(second, "failed", error="no"), 5.0)
    world.do(RssSampled(1, 1), 6.0)
    calls = seen(world).calls
    assert (calls.done, calls.failed, calls.consecutive_failures) == (2, 1, 1)
    assert (calls.success_rate, calls.mean_s, calls.last_age_s) == (0.5, 2.0, 1.0)
