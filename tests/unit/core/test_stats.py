"""Counters, and the tables as users see them."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import Checkin, Drain, Pause, Recycle, Resize, RssSampled, WorkerReady, WorkerUnwell
from dspool.pool.core.snapshot import breaker_state, pool_health, pool_stats, seen_state, worker_info
from dspool.types import PoolStats, Remove, WorkerInfo
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def stats(world: World) -> PoolStats:
    return pool_stats(world.core, "w", world.now)


def info(world: World, worker_id: int) -> WorkerInfo:
    return worker_info(world.core.workers[worker_id], world.now, pid=1000 + worker_id, start_method="spawn")


def test_a_new_pool_has_a_target_and_nothing_else() -> None:
    seen = stats(World(workers=3))
    assert (seen.name, seen.workers, seen.target, seen.idle, seen.checkouts) == ("w", 0, 3, 0, 0)
    assert (seen.breaker, seen.paused, seen.quarantined, seen.last_exit) == ("closed", False, (), None)


def test_the_gauges_count_workers_by_what_users_see() -> None:
    world = World(workers=5)
    world.tick(0.0)
    for worker_id in (1, 2, 3, 4):
        world.become_ready(worker_id)
    world.checkouts(2)
    busy = [worker.worker_id for worker in world.workers() if seen_state(worker) == "busy"]
    idle = [worker.worker_id for worker in world.workers() if seen_state(worker) == "idle"]
    world.do(Recycle(busy[0]))
    world.do(WorkerUnwell(idle[0], "killed"))
    seen = stats(world)
    assert (seen.workers, seen.starting, seen.idle, seen.busy, seen.draining, seen.stopping) == (6, 2, 1, 2, 0, 1)
    world.exit(idle[0], "killed")
    world.all_ready()
    world.all_ready()
    assert stats(world).draining == 1


def test_a_worker_with_an_idle_slot_is_idle_and_without_one_busy() -> None:
    world = World.ready(1, slots=2)
    world.checkout()
    assert seen_state(world.core.workers[1]) == "idle"
    assert info(world, 1).busy == 1
    world.checkout()
    assert seen_state(world.core.workers[1]) == "busy"
    assert info(world, 1).busy == 2


@pytest.mark.parametrize("state", ["starting", "draining", "stopping"])
def test_the_other_states_are_called_by_their_names(state: str) -> None:
    world = World(workers=1)
    world.tick(0.0)
    if state == "draining":
        world.all_ready()
        world.checkout()
        world.do(Resize("default", 0))
    elif state == "stopping":
        world.do(WorkerUnwell(1, "killed"))
    assert seen_state(world.core.workers[1]) == state


def test_worker_info_is_one_row_of_the_table() -> None:
    world = World.ready([WorkerGroup(name="gpu", workers=1, labels=frozenset({"cuda"}))], slots=2)
    world.run(session="s", program="p")
    world.do(RssSampled(1, 77))
    world.do(Recycle(1))
    world.checkout(now=9.0)
    assert info(world, 1) == WorkerInfo(
        worker_id=1,
        pid=1001,
        group="gpu",
        state="idle",
        labels=frozenset({"cuda"}),
        slots=2,
        busy=1,
        programs=1,
        sessions=1,
        calls=1,
        age_s=9.0,
        rss_bytes=77,
        start_method="spawn",
        due="reloaded",
        overflow=False,
    )


def test_a_worker_holds_what_it_loaded_at_its_start_and_what_it_ran() -> None:
    world = World(workers=1, max_programs=3)
    world.tick(0.0)
    world.do(WorkerReady(1, ("warm", "other")))
    assert info(world, 1).programs == 2
    world.run(program="warm")
    assert info(world, 1).programs == 2
    world.run(program="p")
    assert info(world, 1).programs == 3
    world.run(program="q")
    assert info(world, 1).programs == 3, "the one used longest ago was put out"
    assert list(world.core.workers[1].programs) == ["warm", "p", "q"]


def test_a_starting_worker_is_busy_with_nothing() -> None:
    world = World(workers=1)
    world.tick(0.0)
    assert info(world, 1).busy == 0


def test_a_draining_worker_is_busy_with_what_it_still_runs() -> None:
    world = World.ready(1, slots=3)
    one, _ = world.checkouts(2)
    world.do(Resize("default", 0))
    assert info(world, 1).busy == 2
    world.checkin(one)
    assert info(world, 1).busy == 1


def test_the_queue_is_counted_in_calls_and_bytes() -> None:
    world = World.ready(1)
    world.checkout(size_bytes=7)
    world.checkout(size_bytes=10)
    world.checkout(size_bytes=20)
    seen = stats(world)
    assert (seen.waiting, seen.waiting_bytes, seen.leased) == (2, 30, 1)


def test_a_lease_that_is_over_is_not_leased_even_while_its_worker_is_being_killed() -> None:
    world = World.ready(1)
    world.cancel(world.checkout(), written=True)
    assert stats(world).leased == 0
    world.exit(1, "cancelled")
    world.all_ready()
    world.do(Checkin(world.checkout(), "ok", Remove("leaky")))
    assert stats(world).leased == 0


def test_times_are_summed_and_the_longest_is_kept() -> None:
    world = World.ready(1)
    first = world.checkout(program="p", now=0.0)
    second = world.checkout(program="p", now=1.0)
    third = world.checkout(program="p", now=1.0)
    world.checkin(first, now=4.0)
    world.checkin(second, now=5.0)
    world.checkin(third, "failed", now=7.0)
    seen = stats(world)
    assert (seen.queue_wait_s_sum, seen.queue_wait_s_max) == (7.0, 4.0)
    assert (seen.run_s_sum, seen.run_s_max) == (7.0, 4.0)
    assert (seen.checkouts, seen.granted, seen.calls_ok, seen.calls_failed) == (3, 3, 2, 1)


def test_refusals_are_counted_by_name() -> None:
    world = World.ready(1, max_waiting=0)
    world.checkouts(3)
    world.checkout(require="gpu")
    world.do(Drain())
    world.checkout()
    assert stats(world).rejected == {"PoolSaturated": 2, "CheckoutSkipped": 1, "PoolClosed": 1}


def test_exits_are_counted_by_reason_and_the_last_is_kept() -> None:
    world = World.ready(3)
    world.run(program="p")
    world.exit(1, "crash")
    world.exit(2, "crash")
    world.exit(3, "killed")
    seen = stats(world)
    assert seen.exits == {"crash": 2, "killed": 1}
    assert seen.last_exit is not None
    assert seen.last_exit.worker_id == 3


def test_more_that_the_driver_knows_is_passed_through() -> None:
    assert pool_stats(World(workers=1).core, "w", 0.0, start_method_reason="why").start_method_reason == "why"


def test_sessions_suspects_and_quarantined_programs_are_listed() -> None:
    world = World.ready(2, quarantine_after=1)
    lease = world.checkout(program="p", session="s")
    world.exit(world.worker_of(lease))
    seen = stats(world)
    assert (seen.sessions, seen.quarantined, seen.suspects) == (1, ("p",), ())
    world.do(Pause())
    assert stats(world).paused


def test_health_is_ready_workers_against_the_target() -> None:
    world = World(workers=2, max_restarts=0)
    world.tick(0.0)
    assert pool_health(world.core, world.now).status == "unhealthy"
    world.become_ready(1)
    health = pool_health(world.core, world.now)
    assert (health.status, health.ready, health.target) == ("degraded", 1, 2)
    world.become_ready(2)
    assert pool_health(world.core, world.now).status == "healthy"
    world.exit(1)
    world.exit(2)
    health = pool_health(world.core, world.now)
    assert (health.status, health.breaker) == ("unhealthy", "open")
    assert health.last_exit is not None


def test_a_lazy_pool_without_workers_is_healthy_until_it_cannot_start_any() -> None:
    world = World(workers=2, lazy=True, max_restarts=0)
    assert pool_health(world.core, world.now).status == "healthy"
    world.checkout()
    world.exit(1, "boot_error")
    assert pool_health(world.core, world.now).status == "unhealthy"


def test_the_worst_of_the_groups_breakers_is_the_pools() -> None:
    groups = [WorkerGroup(name=name, workers=1) for name in "ab"]
    world = World(workers=groups, max_restarts=0)
    world.tick(0.0)
    assert breaker_state(world.core) == "closed"
    world.exit(1, "boot_error", 0.0)
    assert breaker_state(world.core) == "open"
    world.run_until(31.0)
    assert breaker_state(world.core) == "half_open"


def test_counters_never_go_down_and_count_what_their_names_say() -> None:
    world = World.ready(1)
    world.checkout(retry=True)
    world.skip(1)
    world.remove(world.checkout())
    seen = stats(world)
    assert (seen.retries, seen.skips, seen.removals, seen.started) == (1, 1, 1, 1)
