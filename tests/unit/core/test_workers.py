"""Starting and resizing: eager, lazy, overflow, law 4, late and slow starts."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    Checkin,
    Grant,
    Kill,
    Pause,
    Resize,
    Spawn,
    Stop,
    WorkerReady,
    WorkerUnwell,
)
from dspool.types import Remove
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit


def started(world: World) -> list[int]:
    """The workers that the last step started."""
    return [effect.worker_id for effect in world.said if isinstance(effect, Spawn)]


def test_an_eager_pool_starts_all_its_workers_without_being_asked() -> None:
    world = World(workers=3)
    assert world.tick(0.0) == [Spawn(1, "default"), Spawn(2, "default"), Spawn(3, "default")]


def test_no_more_than_start_concurrency_workers_are_starting() -> None:
    world = World(workers=5, start_concurrency=2)
    world.tick(0.0)
    assert started(world) == [1, 2]
    assert world.become_ready(2) == [Spawn(3, "default")]
    assert world.exit(1, "boot_error") == []
    world.tick(1.0)
    assert started(world) == [4]


def test_start_concurrency_counts_all_groups_together() -> None:
    world = World(workers=[WorkerGroup(name="a", workers=2), WorkerGroup(name="b", workers=2)], start_concurrency=3)
    assert world.tick(0.0) == [Spawn(1, "a"), Spawn(2, "a"), Spawn(3, "b")]


def test_a_lazy_pool_starts_nothing_before_a_call_wants_it() -> None:
    world = World(workers=2, lazy=True)
    assert world.tick(0.0) == []
    world.checkout()
    assert started(world) == [1]


def test_a_lazy_pool_reuses_its_one_worker_while_it_is_idle() -> None:
    world = World(workers=2, lazy=True)
    lease = world.checkout()
    assert world.become_ready(1) == [Grant(lease)]
    world.checkin(lease)
    for _ in range(3):
        assert world.run() == 1
    assert world.core.counters.started == 1


def test_a_lazy_pool_of_2_serves_six_checkouts_that_came_while_its_first_worker_started() -> None:
    world = World(workers=2, lazy=True)
    leases = world.checkouts(6)
    assert world.core.counters.started == 2
    assert world.become_ready(1) == [Grant(leases[0])]
    assert world.become_ready(2) == [Grant(leases[1])]
    for holder, waiter in zip(leases, leases[2:], strict=False):
        assert world.checkin(holder) == [Grant(waiter)]
    assert world.checkin(leases[4]) == []
    assert world.checkin(leases[5]) == []
    assert world.core.counters.started == 2


def test_a_lazy_pool_counts_the_slots_of_starting_workers() -> None:
    world = World(workers=3, lazy=True, slots=2)
    world.checkouts(2)
    assert world.core.counters.started == 1
    world.checkout()
    assert world.core.counters.started == 2


def test_a_lazy_pool_starts_a_worker_for_those_who_waited_for_one_that_failed() -> None:
    world = World(workers=1, lazy=True)
    lease = world.checkout(now=0.0)
    world.fail_start()
    assert world.waiting(lease)
    world.run_until(1.0)
    assert world.become_ready(2) == [Grant(lease)]


def test_a_lazy_pool_does_not_start_more_workers_than_its_groups_waiters_need() -> None:
    groups = [WorkerGroup(name="a", workers=2), WorkerGroup(name="b", workers=2)]
    world = World(workers=groups, lazy=True)
    world.checkout()
    assert len(started(world)) == 1


def test_a_lazy_pool_does_not_replace_a_worker_that_nobody_wants() -> None:
    world = World(workers=2, lazy=True)
    world.checkin(world.checkout(program="p"))
    world.become_ready(1)
    assert world.exit(1) == []
    world.run_until(100.0)
    assert world.states() == {}


def test_overflow_workers_are_started_while_calls_wait_and_not_before() -> None:
    world = World.ready(1, overflow=2)
    holder, waiter = world.checkout(), world.checkout()
    assert started(world) == [2]
    assert world.become_ready(2) == [Grant(waiter)]
    assert world.core.workers[2].overflow
    assert world.checkin(holder) == []
    assert started(world) == []


def test_overflow_is_limited() -> None:
    world = World.ready(1, overflow=2)
    world.checkouts(9)
    assert world.core.counters.started == 3


def test_an_overflow_worker_that_was_idle_for_overflow_linger_s_is_stopped() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2)
    world.become_ready(2, 1.0)
    world.checkin(2, now=5.0)
    assert world.tick(14.9) == []
    assert world.tick(15.0) == [Stop(2, "resized", 20.0)]


def test_an_overflow_worker_that_became_ready_too_late_to_be_used_lingers_as_well() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    _, waiter = world.checkouts(2)
    world.cancel(waiter)
    world.become_ready(2, 1.0)
    world.run_until(11.5)
    assert world.states()[2] == "stopping"


def test_an_overflow_worker_that_is_used_again_stays() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2)
    world.become_ready(2, 0.0)
    world.checkin(2, now=5.0)
    lease = world.checkout(now=12.0)
    world.run_until(40.0)
    assert world.states() == {1: "ready", 2: "ready"}
    world.checkin(lease, now=40.0)
    world.run_until(49.0)
    assert world.states() == {1: "ready", 2: "ready"}
    world.run_until(50.1)
    assert world.states() == {1: "ready", 2: "stopping"}


def test_a_busy_overflow_worker_costs_one_look_per_linger_time() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2)
    world.become_ready(2, 0.0)
    for number in range(200):
        world.checkin(2 + number, now=number / 40)
        world.checkout(now=number / 40)
    assert world.run_until(105.0) <= 25


def test_an_overflow_worker_takes_the_place_of_one_that_is_gone() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2, program="p")
    world.become_ready(2, 0.0)
    assert world.exit(1) == [], "one is wanted, one is there"
    world.checkin(1, "lost")
    world.checkin(2, now=1.0)
    world.run_until(100.0)
    assert world.states() == {2: "ready"}
    assert not world.core.workers[2].overflow


def test_a_stopping_worker_counts_until_it_is_reaped() -> None:
    world = World.ready(1)
    world.do(Checkin(world.checkout(program="p", now=1.0), "ok", Remove("bad")))
    waiter = world.checkout()
    assert started(world) == []
    assert world.exit(1, "removed") == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(waiter)]


def test_a_killed_worker_that_will_not_end_counts_for_grace_s() -> None:
    world = World.ready(1, grace_s=5.0)
    world.do(WorkerUnwell(1, "killed"), 1.0)
    assert world.tick(5.9) == []
    assert world.tick(6.0) == [Spawn(2, "default")]
    assert "worker.wont_end" in world.events
    assert world.states() == {1: "stopping", 2: "starting"}
    assert world.exit(1, "killed", 30.0) == []
    assert world.states() == {2: "starting"}


def test_law_4_a_due_worker_and_its_replacement_are_one_too_many_and_no_more() -> None:
    world = World.ready(2, max_requests=1)
    for _ in range(2):
        world.run(program="p")
    assert world.core.groups["default"].present == 3


def test_a_worker_that_is_not_ready_in_start_timeout_s_is_killed_and_counts_as_a_failure() -> None:
    world = World(workers=1, start_timeout_s=60.0)
    world.tick(0.0)
    assert world.core.next_deadline() == 60.0
    (kill,) = world.tick(60.0)
    assert isinstance(kill, Kill)
    assert (kill.worker_id, kill.reason, kill.dump) == (1, "start_timeout", True)
    world.exit(1, "start_timeout")
    assert world.core.counters.start_failures == 1


def test_a_worker_that_is_ready_in_time_is_not_killed_at_the_start_timeout() -> None:
    world = World(workers=1, start_timeout_s=60.0)
    world.tick(0.0)
    world.become_ready(1, 59.0)
    assert world.tick(60.0) == []


def test_a_worker_that_becomes_ready_after_it_was_given_up_is_not_lent() -> None:
    world = World(workers=1, start_timeout_s=60.0)
    lease = world.checkout(now=0.0)
    world.tick(60.0)
    world.become_ready(1, 60.1)
    assert of(world.said, Grant) == []
    assert world.waiting(lease)


def test_a_worker_that_becomes_ready_after_it_was_forgotten_is_killed() -> None:
    world = World.ready(1)
    world.exit(1)
    (kill,) = world.do(WorkerReady(1))
    assert isinstance(kill, Kill)
    assert kill.worker_id == 1
    assert of(world.do(WorkerReady(77)), Kill)


def test_a_worker_that_says_it_is_ready_twice_is_believed_once() -> None:
    world = World.ready(1)
    assert world.do(WorkerReady(1)) == []
    lease = world.checkout()
    assert world.do(WorkerReady(1)) == []
    world.do(Resize("default", 0))
    assert world.states() == {1: "draining"}
    assert world.do(WorkerReady(1)) == []
    assert world.checkin(lease) == [Stop(1, "resized", 5.0)]


def test_an_exit_that_is_reported_twice_counts_once() -> None:
    world = World.ready(2)
    world.exit(1)
    assert world.exit(1) == []
    assert world.core.counters.exits == {"crash": 1}


def test_a_worker_that_could_not_even_be_started_is_a_failed_start() -> None:
    world = World(workers=1)
    world.tick(0.0)
    world.exit(1, "boot_error", 0.0, "no such interpreter")
    assert world.core.counters.start_failures == 1
    assert world.events[0] == "worker.lost"


@pytest.mark.parametrize("state", ["starting", "idle", "busy", "draining", "stopping"])
def test_resizing_down_ends_a_worker_in_any_state(state: str) -> None:
    world = World(workers=1) if state == "starting" else World.ready(1)
    world.tick(0.0)
    lease = world.checkout() if state in ("busy", "draining") else 0
    if state == "draining":
        world.do(Resize("default", 0))
    if state == "stopping":
        world.do(WorkerUnwell(1, "killed"))
    said = world.do(Resize("default", 0), 1.0)
    if state == "starting":
        assert said == [Kill(1, "resized")]
    elif state == "idle":
        assert said == [Stop(1, "resized", 6.0)]
    else:
        assert said == []
    if state in ("busy", "draining"):
        assert world.checkin(lease, now=2.0) == [Stop(1, "resized", 7.0)]
    assert world.states() == {1: "stopping"}
    assert world.exit(1, "resized") == []
    assert world.states() == {}


def test_resizing_down_ends_starting_workers_first_then_idle_ones_then_busy_ones() -> None:
    world = World.ready(2)
    world.do(Resize("default", 3))
    busy = world.worker_of(world.checkout())
    world.do(Resize("default", 2))
    assert world.states()[3] == "stopping"
    world.do(Resize("default", 1))
    assert world.states()[3 - busy] == "stopping"
    world.do(Resize("default", 0))
    assert world.states()[busy] == "draining"


def test_resizing_up_starts_workers() -> None:
    world = World.ready(1)
    assert world.do(Resize("default", 3)) == [Spawn(2, "default"), Spawn(3, "default")]


def test_resizing_up_again_waits_for_the_workers_that_are_on_their_way_out() -> None:
    world = World.ready(2)
    world.checkouts(2)
    world.do(Resize("default", 0))
    assert world.do(Resize("default", 3)) == [Spawn(3, "default")]
    world.checkin(1)
    assert world.exit(world.workers()[0].worker_id, "resized") == [Spawn(4, "default")]


def test_resizing_an_unknown_group_or_below_nothing_is_harmless() -> None:
    world = World.ready(1)
    assert world.do(Resize("gpu", 4)) == []
    world.do(Resize("default", -3))
    assert world.core.groups["default"].size == 0


def test_a_paused_pool_with_an_idle_worker_starts_no_overflow() -> None:
    world = World.ready(1, overflow=1)
    world.do(Pause())
    world.checkout()
    assert started(world) == []


def test_a_pool_resized_to_nothing_keeps_its_waiters_for_the_next_resize() -> None:
    world = World.ready(1)
    holder, waiter = world.checkouts(2)
    world.do(Resize("default", 0))
    world.checkin(holder)
    world.exit(1, "resized")
    assert world.waiting(waiter)
    assert world.do(Resize("default", 1)) == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(waiter)]


def test_a_busy_overflow_worker_takes_the_place_of_one_that_is_gone_too() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2, program="p")
    world.become_ready(2, 0.0)
    world.checkin(2, now=1.0)
    lease = world.checkout(program="p", now=2.0)
    world.exit(1)
    world.checkin(1, "lost")
    world.run_until(20.0)
    assert not world.core.workers[2].overflow
    world.checkin(lease, now=20.0)
    world.run_until(100.0)
    assert world.states() == {2: "ready"}


def test_an_overflow_worker_that_was_used_meanwhile_lingers_from_its_last_use() -> None:
    world = World.ready(1, overflow=1, overflow_linger_s=10.0)
    world.checkouts(2)
    world.become_ready(2, 0.0)
    world.checkin(2, now=5.0)
    world.checkin(world.checkout(now=6.0), now=8.0)
    assert world.tick(15.0) == []
    assert world.tick(18.0) == [Stop(2, "resized", 23.0)]


def test_with_grace_s_0_a_worker_that_a_timer_kills_is_replaced_in_the_same_step() -> None:
    world = World.ready(1, grace_s=0.0)
    world.checkout(hold_s=1.0, now=0.0)
    assert [type(effect) for effect in world.tick(1.0)] == [Kill, Spawn]
