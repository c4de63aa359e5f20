"""Health: ready workers against the target, told at each change; and how the last calls ended."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    Checkin,
    Checkout,
    Close,
    Kill,
    ProbeAnswered,
    Reload,
    Resize,
    RunEnded,
    RunStarted,
    WorkerUnwell,
)
from dspool.pool.core.snapshot import pool_health, pool_stats
from dspool.types import PoolStats, Remove
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit


def told(world: World) -> list[tuple[str, str, int, int]]:
    """What the last step said of the pool's health: status, the one before, ready, target."""
    reports = [report.fields for report in world.reports if report.event == "pool.health"]
    return [(fields["status"], fields["before"], fields["ready"], fields["target"]) for fields in reports]


def stats(world: World) -> PoolStats:
    return pool_stats(world.core, "w", world.now)


# --- healthy, degraded, unhealthy -------------------------------------------------------------------------------------


def test_each_change_is_told_once() -> None:
    world = World(workers=3)
    world.tick(0.0)
    assert told(world) == [], "it begins as unhealthy"
    world.become_ready(1)
    assert told(world) == [("degraded", "unhealthy", 1, 3)]
    world.become_ready(2)
    assert told(world) == []
    world.become_ready(3)
    assert told(world) == [("healthy", "degraded", 3, 3)]
    world.exit(1)
    assert told(world) == [("degraded", "healthy", 2, 3)]
    world.do(WorkerUnwell(2, "killed"))
    world.do(WorkerUnwell(3, "killed"))
    assert told(world) == [("unhealthy", "degraded", 0, 3)]


def test_replacing_due_workers_leaves_a_pool_healthy() -> None:
    world = World.ready(2)
    seen = []
    world.do(Reload())
    for old in (1, 2):
        world.all_ready()
        seen += told(world)
        world.exit(old, "reloaded")
        seen += told(world)
    world.all_ready()
    assert seen + told(world) == []


def test_another_size_is_another_target() -> None:
    world = World.ready(1)
    world.do(Resize("default", 2))
    assert told(world) == [("degraded", "healthy", 1, 2)]
    world.do(Resize("default", 0))
    assert told(world) == [("healthy", "degraded", 0, 0)]


def test_a_pool_that_closes_is_neither_well_nor_ill() -> None:
    world = World.ready(1)
    world.do(Close(5.0))
    assert told(world) == []
    world.exit(1, "stopped")
    assert told(world) == []


def test_a_lazy_pool_is_healthy_without_workers_until_its_starts_are_stopped() -> None:
    world = World(workers=2, lazy=True, max_restarts=0)
    world.checkout(now=0.0)
    world.become_ready(1)
    assert told(world) == []
    world.checkouts(2)
    world.fail_start()
    assert told(world) == [("degraded", "healthy", 1, 2)]
    world.exit(1)
    assert told(world) == [("unhealthy", "degraded", 0, 2)]


def test_a_full_pool_whose_starts_are_stopped_is_degraded_until_one_is_tried_with_success() -> None:
    world = World.ready(1, max_restarts=0)
    world.do(Reload())
    world.exit(2, "boot_error")
    assert told(world) == [("degraded", "healthy", 1, 1)]
    world.tick(30.0)
    assert told(world) == [], "a worker is on trial"
    world.become_ready(3, 31.0)
    world.do(ProbeAnswered(3, ok=True), 31.1)
    assert told(world) == [("healthy", "degraded", 1, 1)]


def test_a_half_open_breaker_with_nobody_to_start_is_no_illness() -> None:
    world = World.ready(1, overflow=1, max_restarts=0)
    _, waiter = world.checkouts(2)
    world.exit(2, "boot_error")
    assert told(world) == [("degraded", "healthy", 1, 1)]
    world.cancel(waiter)
    world.run_until(100.0)
    health = pool_health(world.core, world.now)
    assert (health.status, health.breaker) == ("healthy", "half_open")


def test_a_trial_that_a_newcomer_asks_for_is_told_in_his_step() -> None:
    world = World(workers=[WorkerGroup(name="a", workers=0, overflow=1)], max_restarts=0)
    world.checkout(now=0.0, deadline=9.0)
    world.fail_start()
    assert told(world) == [("unhealthy", "healthy", 0, 0)]
    world.tick(30.0)
    assert told(world) == [("healthy", "unhealthy", 0, 0)]
    world.checkout()
    assert world.core.groups["a"].breaker.trial == 2
    assert told(world) == [("unhealthy", "healthy", 0, 0)]


def test_the_breaker_tells_of_the_last_failure_and_how_long_it_is_open() -> None:
    world = World(workers=1, max_restarts=0, restart_window_s=20.0)
    world.tick(0.0)
    world.exit(1, "boot_error", detail="no module named nltk")
    (opened,) = [report.fields for report in world.reports if report.event == "pool.breaker_opened"]
    last = "worker 1: boot_error, no module named nltk"
    assert opened == {"group": "default", "failures": 1, "last": last, "for_s": 20.0}


def test_the_ready_workers_of_all_groups_count() -> None:
    world = World.ready([WorkerGroup(name="a", workers=1), WorkerGroup(name="b", workers=1)])
    world.exit(1)
    assert told(world) == [("degraded", "healthy", 1, 2)]


# --- how calls ended --------------------------------------------------------------------------------------------------


def test_before_the_first_call_there_is_no_rate_and_no_error() -> None:
    seen = stats(World.ready(1))
    assert (seen.success_rate, seen.consecutive_failures) == (None, 0)
    assert (seen.last_error, seen.last_error_age_s) == ("", None)


def test_a_result_is_a_success_and_what_a_program_raised_is_a_failure_with_its_text() -> None:
    world = World.ready(1)
    world.run(program="p")
    world.do(Checkin(world.checkout(program="p"), "failed", error="builtins.ValueError: no"), 5.0)
    world.do(Checkin(world.checkout(program="q"), "failed"), 6.0)
    world.now = 8.0
    seen = stats(world)
    assert (seen.success_rate, seen.consecutive_failures) == (1 / 3, 2)
    assert (seen.last_error, seen.last_error_age_s) == ("q: it failed", 2.0)
    world.run(program="p")
    assert stats(world).success_rate == 0.5
    assert stats(world).consecutive_failures == 0
    assert stats(world).last_error == "q: it failed", "that it goes well now doesn't make it unsaid"


def test_the_runs_of_a_lease_count_one_by_one() -> None:
    world = World.ready(1)
    lease = world.checkout()
    world.do(RunStarted(lease, "p"))
    world.do(RunEnded(lease, "failed", "builtins.KeyError: 'x'"))
    world.do(RunStarted(lease, "p"))
    world.do(RunEnded(lease, "ok"))
    world.do(Checkin(lease, "none"))
    seen = stats(world)
    assert (seen.success_rate, seen.consecutive_failures, seen.last_error) == (0.5, 0, "p: builtins.KeyError: 'x'")


@pytest.mark.parametrize("exit_first", [True, False])
def test_a_lost_call_is_a_failure_and_the_error_is_how_its_worker_ended(exit_first: bool) -> None:
    world = World.ready(1)
    lease = world.checkout(program="p")
    if exit_first:
        world.exit(1, "crash", detail="killed by SIGSEGV")
        world.checkin(lease, "lost")
        assert stats(world).last_error == "p: worker 1: crash, killed by SIGSEGV"
    else:
        world.checkin(lease, "lost")
        assert stats(world).last_error == "p: worker 1: its pipe ended"
        world.exit(1, "crash", detail="killed by SIGSEGV")
        assert stats(world).last_error == "worker 1: crash, killed by SIGSEGV"
    assert stats(world).consecutive_failures == 1


def test_a_lost_call_of_an_earlier_worker_does_not_borrow_anothers_end() -> None:
    world = World.ready(2)
    lease = world.checkout(program="p")
    worker_id = world.worker_of(lease)
    world.exit(3 - worker_id, "crash")
    world.checkin(lease, "lost")
    assert stats(world).last_error == f"p: worker {worker_id}: its pipe ended"


def test_a_call_over_its_deadline_is_a_failure_and_one_that_was_cancelled_or_timed_out_in_the_queue_is_not() -> None:
    world = World.ready(1)
    lease, queued, late = world.checkouts(3, program="p")
    world.cancel(queued)
    world.cancel(late, why="timeout")
    assert stats(world).success_rate is None
    world.cancel(lease, written=True, why="timeout", now=4.0)
    seen = stats(world)
    assert (seen.success_rate, seen.consecutive_failures) == (0.0, 1)
    assert (seen.last_error, seen.last_error_age_s) == ("p: it was over its deadline in worker 1", 0.0)
    world.exit(1, "timeout")
    world.all_ready()
    world.cancel(world.checkout(program="p"), written=True)
    assert stats(world).consecutive_failures == 1


@pytest.mark.parametrize("program", ["p", None])
def test_a_lease_past_its_hold_is_a_failure_where_a_call_ran_in_it(program: str | None) -> None:
    world = World.ready(1)
    world.checkout(program=program, hold_s=3.0, now=0.0)
    assert of(world.tick(3.0), Kill)
    assert stats(world).last_error == ("" if program is None else "p: its lease was held longer than hold_s=3")
    assert stats(world).consecutive_failures == (0 if program is None else 1)


def test_a_worker_that_ends_unasked_is_the_last_error_and_no_failed_call() -> None:
    world = World(workers=1)
    world.tick(0.0)
    world.exit(1, "boot_error", 1.0, detail="no module named nltk")
    seen = stats(world)
    assert (seen.last_error, seen.success_rate) == ("worker 1: boot_error, no module named nltk", None)
    world = World.ready(1)
    world.do(Checkin(world.checkout(), "none", Remove("smells")))
    world.exit(1, "removed")
    assert stats(world).last_error == "", "that was asked for"


def test_the_rate_is_that_of_the_last_hundred_calls_and_the_text_is_cut() -> None:
    world = World.ready(1)
    for number in range(1, 251):
        world.core.handle(Checkout(number, number, "p"), 0.0)
        outcome = Checkin(number) if number > 175 else Checkin(number, "failed", error="x" * 9999)
        world.core.handle(outcome, 0.0)
    seen = stats(world)
    assert (seen.success_rate, seen.calls_failed, seen.calls_ok) == (0.75, 175, 75)
    assert len(seen.last_error) == 500
