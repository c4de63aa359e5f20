"""Waiting: order, classes, bounds, deadlines, and what the queue does with ids that no longer stand in it."""

from __future__ import annotations

import itertools

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    AT_ONCE,
    Checkin,
    Checkout,
    CheckoutVerdict,
    Grant,
    Pause,
    Reject,
    Resize,
    Resume,
    Spawn,
)
from dspool.pool.core.states import WorkerState
from dspool.types import KEEP, Remove
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit

HELD = "longest held: worker 1 for 4.000 s, by works"
GROUPS = [
    WorkerGroup(name="cpu", workers=1, labels=frozenset({"cpu"})),
    WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu"})),
]


def test_waiters_are_served_in_the_order_they_came() -> None:
    world = World.ready(1)
    leases = world.checkouts(4)
    for holder, waiter in itertools.pairwise(leases):
        assert world.do(Checkin(holder)) == [Grant(waiter)]


def test_a_lower_priority_number_goes_first_and_equals_stand_in_order() -> None:
    world = World.ready(1)
    holder = world.checkout()
    late, first, second = world.checkout(priority=5), world.checkout(priority=-1), world.checkout(priority=-1)
    for lease, waiter in ((holder, first), (first, second), (second, late)):
        assert world.checkin(lease) == [Grant(waiter)]


def test_a_retry_keeps_the_place_of_its_first_try() -> None:
    world = World.ready(1)
    world.checkout(call_id=10)
    later = world.checkout(call_id=30)
    retry = world.checkout(call_id=20, retry=True)
    assert world.checkin(1) == [Grant(retry)]
    assert world.waiting(later)
    assert world.core.counters.retries == 1


def test_a_newcomer_takes_no_slot_that_an_earlier_waiter_may_use() -> None:
    world = World.ready(1)
    holder, waiter = world.checkouts(2)
    assert world.checkin(holder) == [Grant(waiter)]
    assert world.waiting(world.checkout(priority=-100))


def test_waiters_who_cant_be_served_block_nobody() -> None:
    world = World.ready(GROUPS)
    gpu = world.checkout(require="gpu")
    blocked = world.checkouts(3, require="gpu")
    cpu = world.checkout(require="cpu")
    anything = world.checkout()
    assert world.checkin(cpu) == [Grant(anything)]
    assert world.checkin(gpu) == [Grant(blocked[0])]


def test_classes_are_merged_by_their_place() -> None:
    world = World.ready(GROUPS)
    world.checkout(require="cpu")
    gpu = world.checkout(require="gpu")
    first, second = world.checkout(require="gpu"), world.checkout()
    third = world.checkout(require="gpu")
    for lease, waiter in ((gpu, first), (first, second), (second, third)):
        assert world.checkin(lease) == [Grant(waiter)]


def test_a_waiter_who_gives_up_is_passed_over() -> None:
    world = World.ready(1)
    holder, quitter, waiter = world.checkouts(3)
    assert world.cancel(quitter) == []
    assert world.checkin(holder) == [Grant(waiter)]


def test_the_pool_is_full_at_max_waiting_and_says_so_with_numbers() -> None:
    world = World.ready(1, max_waiting=2)
    world.checkouts(3)
    assert world.do(Checkout(9, 9)) == [Reject(9)]
    refusal = world.refusal(9)
    assert refusal.code == "PoolSaturated"
    assert "2 calls" in refusal.message
    assert "max_waiting=2" in refusal.message
    world.cancel(2)
    assert world.waiting(world.checkout(lease_id=10))


def test_the_pool_is_full_at_max_waiting_bytes() -> None:
    world = World.ready(1, max_waiting_bytes=100)
    world.checkout(size_bytes=1000)
    assert world.waiting(world.checkout(size_bytes=60)), "what is running doesn't count"
    assert world.refused(world.checkout(size_bytes=41)) == "PoolSaturated"
    assert world.waiting(world.checkout(size_bytes=40))
    world.cancel(2)
    assert world.waiting(world.checkout(size_bytes=60))


def test_max_waiting_0_never_queues() -> None:
    world = World.ready(1, max_waiting=0)
    assert world.granted(world.checkout())
    assert world.refused(world.checkout()) == "PoolSaturated"


def test_max_waiting_0_on_a_lazy_pool_still_starts_a_worker() -> None:
    world = World(workers=1, lazy=True, max_waiting=0)
    world.checkout()
    assert of(world.said, Spawn) == [Spawn(1, "default")]


def test_a_lease_that_was_granted_once_comes_back_to_a_full_queue() -> None:
    world = World.ready(1, max_waiting=1)
    holder, waiter = world.checkouts(2)
    world.remove(holder)
    assert world.waiting(holder)
    world.exit(1, "removed")
    assert world.become_ready(2) == [Grant(holder)]
    assert world.waiting(waiter)


def test_a_timeout_of_0_is_now_or_never() -> None:
    world = World.ready(1)
    assert world.granted(world.checkout(deadline=5.0, now=5.0))
    assert world.do(Checkout(2, 2, deadline=5.0), 5.0) == [Reject(2)]
    assert world.refused(2) == "QueueTimeout"
    assert world.core.counters.queue_timeouts == 1
    assert world.core.counters.rejected == {}


def test_now_or_never_is_decided_in_the_step_of_the_checkout_whenever_that_is() -> None:
    world = World.ready(1)
    world.now = 5
    granted, late = world.checkout(deadline=AT_ONCE), world.checkout(deadline=AT_ONCE)
    assert world.core.leases[granted].is_granted
    refusal = world.core.leases[late].refusal
    assert refusal is not None
    assert refusal.code == "QueueTimeout"


def test_now_or_never_goes_on_to_the_next_idle_worker_when_its_first_one_is_found_dead() -> None:
    world = World.ready(2)
    lease = world.checkout(deadline=AT_ONCE, now=5.0)
    dead = world.worker_of(lease)
    assert Grant(lease) in world.remove(lease, "its pipe ended", 5.1, died=True)
    assert world.worker_of(lease) != dead


def test_now_or_never_is_refused_when_no_other_worker_is_idle() -> None:
    world = World.ready(2)
    world.checkout()
    lease = world.checkout(deadline=AT_ONCE, now=5.0)
    assert Reject(lease) in world.remove(lease, "its pipe ended", 5.1, died=True)
    refusal = world.refusal(lease)
    assert refusal.code == "QueueTimeout"
    assert "no worker free within 0.100 s" in refusal.message


def test_a_wait_that_begins_anew_with_a_verdict_may_be_now_or_never() -> None:
    world = World.ready(2)
    lease = world.checkout(deadline=60.0)
    world.do(CheckoutVerdict(lease, Remove("it had not read the call"), died=True, deadline=AT_ONCE), 5.0)
    assert world.granted(lease), "another worker is idle"
    world.do(CheckoutVerdict(lease, Remove("the same"), died=True, deadline=AT_ONCE), 6.0)
    assert world.refused(lease) == "QueueTimeout"


def test_now_or_never_does_not_wait_for_the_end_of_a_pause() -> None:
    world = World.ready(2)
    lease = world.checkout(deadline=AT_ONCE)
    world.do(Pause())
    world.remove(lease, died=True)
    assert world.refused(lease) == "QueueTimeout"


def test_now_or_never_leaves_an_idle_worker_to_whoever_came_before() -> None:
    world = World.ready(3, slots=1, check=lambda *_: KEEP)
    first, last = world.checkout(), world.checkout(deadline=AT_ONCE)
    busy = world.checkout()
    world.skip(first)
    assert world.waiting(first), "the two others are taken"
    world.checkin(busy)
    assert world.worker_of(first) == 1
    assert world.skip(last) == [Grant(last)], "the one that the first does not want"
    assert world.worker_of(last) == 3


def test_now_or_never_asks_every_idle_worker_that_the_hook_may_skip() -> None:
    world = World.ready(3, check=lambda *_: KEEP)
    lease = world.checkout(deadline=AT_ONCE)
    asked = [world.worker_of(lease)]
    for now in (1.0, 2.0):
        assert Grant(lease) in world.skip(lease, now=now)
        asked.append(world.worker_of(lease))
    assert sorted(asked) == [1, 2, 3]
    world.skip(lease, now=3.0)
    assert world.refused(lease) == "CheckoutSkipped"


def test_now_or_never_of_a_strict_session_does_not_wait_for_its_worker() -> None:
    world = World.ready(2, slots=2, check=lambda *_: KEEP)
    held = world.checkout(session="s", affinity="strict")
    assert world.granted(held)
    world.checkout(session="s", affinity="strict")
    late = world.checkout(session="s", affinity="strict", deadline=AT_ONCE)
    assert world.refused(late) == "QueueTimeout"


@pytest.mark.parametrize("max_waiting", [0, 10])
def test_a_call_that_waits_for_a_group_of_size_0_is_told_to_resize_it(max_waiting: int) -> None:
    groups = [WorkerGroup(name="a", workers=1), WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu"}))]
    world = World.ready(groups, max_waiting=max_waiting)
    world.do(Resize("gpu", 0))
    world.exit(2, "resized")
    lease = world.checkout(require="gpu", deadline=AT_ONCE if max_waiting else 60.0)
    refusal = world.refusal(lease)
    assert refusal.code == ("QueueTimeout" if max_waiting else "PoolSaturated")
    assert refusal.message.endswith("the size of group gpu is 0: call resize() to have workers started")
    assert "add workers" not in refusal.message


def test_a_call_whose_deadline_is_past_gets_no_worker_even_if_one_is_idle() -> None:
    world = World.ready(1)
    assert world.do(Checkout(1, 1, deadline=4.0), 5.0) == [Reject(1)]
    assert world.refused(1) == "QueueTimeout"


def test_a_deadline_that_passed_while_the_hook_ran_ends_the_call_and_costs_no_further_worker() -> None:
    world = World.ready(2)
    lease = world.checkout(deadline=5.0, now=0.0)
    assert world.skip(lease, now=6.0) == [Reject(lease)]
    assert world.refused(lease) == "QueueTimeout"


def test_deadlines_expire_before_a_worker_is_spent_on_them() -> None:
    world = World.ready(1)
    holder = world.checkout(now=0.0)
    late, waiter = world.checkout(deadline=3.0), world.checkout(deadline=9.0)
    assert world.do(Checkin(holder), 4.0) == [Reject(late), Grant(waiter)]
    assert world.refusal(late).code == "QueueTimeout"
    assert "within 4.000 s" in world.refusal(late).message


@pytest.mark.parametrize(
    ("workers", "ready", "paused", "said"),
    [
        (1, 1, False, f"workers: 1 ready, 0 starting; {HELD}; add workers, or allow more time"),
        (3, 1, False, f"workers: 1 ready, 2 starting; {HELD}; add workers, or allow more time"),
        (2, 0, False, "workers: 0 ready, 2 starting; they were still starting: allow more time"),
        (1, 1, True, f"workers: 1 ready, 0 starting; {HELD}; the pool is paused: call resume()"),
    ],
)
def test_a_timeout_in_the_queue_says_what_the_workers_did(workers: int, ready: int, paused: bool, said: str) -> None:
    world = World(workers=workers)
    world.tick(0.0)
    for worker_id in range(1, ready + 1):
        world.become_ready(worker_id)
        world.checkout(now=0.0, program="works")
    if paused:
        world.do(Pause())
    world.checkout()
    late = world.checkout(deadline=4.0, now=4.0)
    assert f"had no worker free within 0.000 s; calls that wait: 1; {said}" in world.refusal(late).message


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("Predict-" + "0123456789abcdef" * 2, "Predict"),
        ("callable:app.jobs.work#12", "app.jobs.work"),
        ("import:app.jobs:work", "app.jobs:work"),
        ("my-program", "my-program"),
    ],
)
def test_what_holds_a_worker_is_called_by_its_name(program: str, name: str) -> None:
    world = World.ready(1)
    world.checkout(program=program)
    late = world.checkout(deadline=4.0, now=4.0)
    assert f"s, by {name}; add workers" in world.refusal(late).message


def test_workers_that_leave_are_told_of_where_there_are_any() -> None:
    world = World.ready(2)
    held = world.checkout(), world.checkout()
    world.do(Resize("default", 1))
    late = world.checkout(deadline=4.0, now=4.0)
    assert "workers: 1 ready, 0 starting, 1 draining; longest held: worker " in world.refusal(late).message
    assert all(map(world.granted, held))


def test_a_checkout_timeout_leaves_the_worker_alone() -> None:
    world = World.ready(1)
    holder, late = world.checkouts(2)
    assert world.cancel(late, why="timeout") == []
    assert world.core.counters.queue_timeouts == 1
    assert world.core.counters.calls_timeout == 0
    assert world.checkin(holder) == []
    assert world.granted(world.checkout())
    assert world.states() == {1: "ready"}


def test_the_third_of_three_callers_times_out_and_the_other_two_are_served() -> None:
    world = World.ready(2)
    one, two, three = world.checkouts(3)
    assert world.cancel(three, why="timeout") == []
    assert world.checkin(one) == []
    assert world.checkin(two) == []


def test_ids_that_no_longer_stand_in_the_queue_are_skipped_when_they_surface() -> None:
    world = World.ready(1)
    holder, *waiters = world.checkouts(6)
    for lease in waiters[:4]:
        world.cancel(lease)
    assert world.checkin(holder) == [Grant(waiters[4])]


def test_ids_that_no_longer_stand_in_the_queue_are_cleared_out_when_they_outnumber_the_rest() -> None:
    world = World.ready(1)
    holder, *waiters = world.checkouts(101)
    for lease in waiters[1:]:
        world.cancel(lease)
    (waiting,) = world.core.queue._open.values()
    assert len(waiting.heap) <= 40
    assert world.core.queue.count == 1
    assert world.checkin(holder) == [Grant(waiters[0])]


def test_a_lease_id_that_is_used_again_stands_where_it_stands_now() -> None:
    world = World.ready(1)
    holder = world.checkout(call_id=1)
    world.checkout(lease_id=50, call_id=2)
    world.cancel(50)
    other = world.checkout(lease_id=60, call_id=3)
    world.checkout(lease_id=50, call_id=4)
    assert [lease.lease_id for lease in world.core.queue.everybody()] == [50, 60] or world.core.queue.count == 2
    assert world.checkin(holder) == [Grant(other)]
    assert world.checkin(other) == [Grant(50)]


def test_one_call_per_class_waits_behind_a_hundred_of_another() -> None:
    world = World.ready(GROUPS)
    cpu, _ = world.checkout(require="cpu"), world.checkout(require="gpu")
    world.checkouts(100, require="gpu")
    waiter = world.checkout(require="cpu")
    assert world.checkin(cpu) == [Grant(waiter)]


def test_pause_grants_nothing_and_resume_serves_everybody_in_order() -> None:
    world = World.ready(2)
    assert world.do(Pause()) == []
    first, second, third = world.checkouts(3)
    assert not any(world.granted(lease) for lease in (first, second, third))
    assert world.do(Resume()) == [Grant(first), Grant(second)]
    assert world.checkin(first) == [Grant(third)]


def test_a_slot_that_comes_back_while_paused_is_kept_for_later() -> None:
    world = World.ready(1)
    holder, waiter = world.checkouts(2)
    world.do(Pause())
    assert world.checkin(holder) == []
    assert world.do(Resume()) == [Grant(waiter)]


def test_a_start_that_is_owed_to_who_waits_lets_nobody_else_into_a_full_queue() -> None:
    world = World(workers=1, lazy=True, max_waiting=0)
    world.tick(0.0)
    first = world.checkout()
    world.fail_start(now=1.0)
    late = world.checkout(now=9.0)
    assert world.waiting(first)
    assert world.refused(late) == "PoolSaturated", "the back-off was over, and the start was the first one's"
    (worker,) = world.workers(WorkerState.STARTING)
    assert world.become_ready(worker.worker_id) == [Grant(first)]
