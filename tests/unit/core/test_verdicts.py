"""Remove and skip: the same caller is served by another worker, or told why not, in exactly the right step."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import CheckoutVerdict, Close, Grant, Kill, Recycle, Reject, Resize, Spawn
from dspool.types import KEEP, Skip, Verdict
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit


def test_remove_kills_the_worker_and_serves_the_same_caller_by_another() -> None:
    world = World.ready(2)
    lease = world.checkout()
    first = world.worker_of(lease)
    assert world.remove(lease, "stale") == [Kill(first, "removed", "stale"), Grant(lease)]
    assert world.worker_of(lease) != first
    assert world.core.counters.removals == 1
    assert world.lease(lease).removed == {first: "stale"}


def test_a_worker_that_was_found_dead_is_not_killed_for_our_reason() -> None:
    world = World.ready(1)
    lease = world.checkout()
    assert world.remove(lease, "its pipe ended", died=True) == [Kill(1, None, "its pipe ended")]


def test_a_removed_worker_is_replaced_and_the_caller_waits_for_the_replacement() -> None:
    world = World.ready(1)
    lease = world.checkout()
    world.remove(lease)
    assert world.waiting(lease)
    assert world.exit(1, "removed") == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(lease)]


def test_a_caller_whose_worker_was_removed_keeps_its_place() -> None:
    world = World.ready(1)
    lease, later = world.checkouts(2)
    world.remove(lease)
    world.exit(1, "removed")
    assert world.become_ready(2) == [Grant(lease)]
    assert world.checkin(lease) == [Grant(later)]


def test_a_caller_whose_worker_died_before_the_verdict_goes_on_to_another() -> None:
    world = World.ready(2)
    lease = world.checkout()
    world.exit(world.worker_of(lease))
    assert world.remove(lease, died=True) == [Grant(lease)]


def test_keep_for_a_worker_that_was_killed_meanwhile_counts_as_a_removal() -> None:
    world = World.ready(2, check=lambda *_: KEEP)
    lease = world.checkout()
    first = world.worker_of(lease)
    world.exit(first)
    assert world.do(CheckoutVerdict(lease, KEEP)) == [Grant(lease)]
    assert list(world.lease(lease).removed) == [first]


def test_skip_for_a_worker_that_died_meanwhile_counts_as_a_removal() -> None:
    world = World.ready(2, check=lambda *_: KEEP)
    lease = world.checkout()
    first = world.worker_of(lease)
    world.exit(first)
    assert world.skip(lease) == [Grant(lease)]
    assert world.lease(lease).removed == {first: "no"}
    assert world.lease(lease).skipped == {}


def test_keep_for_a_worker_that_is_drained_meanwhile_stands() -> None:
    world = World.ready(1, check=lambda *_: KEEP)
    lease = world.checkout()
    world.do(Resize("default", 0))
    assert world.states() == {1: "draining"}
    assert world.do(CheckoutVerdict(lease, KEEP)) == []
    assert world.granted(lease)


def test_no_more_than_3_workers_are_removed_for_one_checkout() -> None:
    world = World.ready(5)
    lease = world.checkout()
    world.remove(lease, "a")
    world.remove(lease, "b")
    third = world.worker_of(lease)
    assert world.remove(lease, "c") == [Kill(third, "removed", "c"), Reject(lease)]
    refusal = world.refusal(lease)
    assert refusal.code == "CheckoutSkipped"
    assert list(refusal.reasons.values()) == ["a", "b", "c"]
    assert "removed 3 workers" in refusal.message


def test_three_workers_that_were_found_dead_are_no_reason_against_trying_again() -> None:
    world = World.ready(5)
    lease = world.checkout()
    for reason in ("a", "b", "c"):
        world.remove(lease, reason, died=True)
    assert world.refusal(lease).retryable


def test_a_worker_that_was_removed_alive_is_a_reason_against_trying_again() -> None:
    world = World.ready(5)
    lease = world.checkout()
    world.remove(lease, "a", died=True)
    world.remove(lease, "b", died=True)
    world.remove(lease, "c")
    assert not world.refusal(lease).retryable


def test_skip_leaves_the_worker_where_it_is_and_asks_the_next() -> None:
    world = World.ready(2)
    lease = world.checkout()
    first = world.worker_of(lease)
    assert world.skip(lease, "wrong model") == [Grant(lease)]
    assert world.worker_of(lease) != first
    assert world.slots(first) == ["idle"]
    assert world.core.counters.skips == 1
    assert world.worker_of(world.checkout()) == first


def test_the_skip_that_leaves_no_worker_ends_the_checkout_with_the_reasons() -> None:
    world = World.ready(2)
    lease = world.checkout()
    first = world.worker_of(lease)
    world.skip(lease, "a")
    assert world.skip(lease, "b") == [Reject(lease)]
    refusal = world.refusal(lease)
    assert refusal.code == "CheckoutSkipped"
    assert refusal.reasons == {first: "a", 3 - first: "b"}
    assert world.states() == {1: "ready", 2: "ready"}, "nobody is restarted for it"
    assert of(world.said, Spawn, Kill) == []


def test_a_busy_worker_is_asked_when_it_is_free() -> None:
    world = World.ready(2)
    busy, lease = world.checkouts(2)
    assert world.skip(lease) == []
    assert world.waiting(lease)
    assert world.checkin(busy) == [Grant(lease)]
    assert world.skip(lease) == [Reject(lease)]


def test_a_worker_that_skipped_a_waiter_goes_to_the_next_waiter() -> None:
    world = World.ready(2)
    world.checkout()
    lease, waiter = world.checkouts(2)
    assert world.skip(lease) == [Grant(waiter)]
    assert world.waiting(lease)


def test_a_worker_that_skipped_everybody_is_idle_again() -> None:
    world = World.ready(2)
    _, lease = world.checkouts(2)
    skipped = world.worker_of(lease)
    world.skip(lease)
    assert world.slots(skipped) == ["idle"]
    assert world.worker_of(world.checkout()) == skipped


def test_a_starting_worker_may_suit() -> None:
    world = World(workers=2)
    world.tick(0.0)
    world.become_ready(1)
    lease = world.checkout()
    assert world.skip(lease) == []
    assert world.become_ready(2) == [Grant(lease)]
    assert world.skip(lease) == [Reject(lease)]


def test_a_worker_that_may_still_be_started_may_suit() -> None:
    world = World(workers=2, lazy=True)
    lease = world.checkout()
    world.become_ready(1)
    assert world.skip(lease) == [Spawn(2, "default")]
    assert world.waiting(lease)
    assert world.become_ready(2) == [Grant(lease)]


def test_overflow_is_started_for_a_call_that_everybody_skipped() -> None:
    world = World.ready(1, overflow=1)
    lease = world.checkout()
    assert world.skip(lease) == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(lease)]
    assert world.skip(lease) == [Reject(lease)]


def test_a_retirement_that_leaves_only_workers_that_skipped_ends_the_checkout_in_that_step() -> None:
    world = World.ready(2)
    busy, lease = world.checkouts(2)
    unasked = world.worker_of(busy)
    world.skip(lease, "a")
    assert world.waiting(lease)
    world.do(Recycle(unasked))
    world.become_ready(3)
    assert world.granted(lease), "the replacement was not asked yet"
    assert world.skip(lease, "b") == [Reject(lease)], "the old one drains and is not asked any more"


def test_a_resize_that_leaves_only_workers_that_skipped_ends_the_checkout_in_that_step() -> None:
    groups = [WorkerGroup(name="a", workers=1), WorkerGroup(name="b", workers=1)]
    world = World.ready(groups)
    first, lease = world.checkouts(2)
    unasked = world.core.workers[world.worker_of(first)].group.name
    world.skip(lease)
    assert world.waiting(lease)
    assert world.do(Resize(unasked, 0)) == [Reject(lease)]
    assert world.refused(lease) == "CheckoutSkipped"


def test_the_death_of_the_last_worker_that_was_not_asked_brings_another_that_may_suit() -> None:
    world = World.ready(2)
    busy, lease = world.checkouts(2, program="p")
    unasked = world.worker_of(busy)
    world.skip(lease)
    assert world.exit(unasked) == [Spawn(3, "default")]
    assert world.waiting(lease)
    assert world.become_ready(3) == [Grant(lease)]


def test_the_last_worker_not_asked_can_be_removed_while_its_replacement_is_awaited() -> None:
    world = World.ready(2)
    busy, lease = world.checkouts(2)
    world.skip(lease)
    world.remove(busy)
    assert world.waiting(lease), "a start is allowed once the removed one is gone"


def test_labels_limit_who_is_asked() -> None:
    gpu = WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu"}))
    world = World.ready([WorkerGroup(name="cpu", workers=3), gpu])
    lease = world.checkout(require="gpu")
    assert world.skip(lease) == [Reject(lease)]
    assert len(world.refusal(lease).reasons) == 1


def test_a_verdict_for_a_waiting_lease_is_a_no_op() -> None:
    world = World.ready(1)
    _, waiter = world.checkouts(2)
    assert world.remove(waiter) == []
    assert world.skip(waiter) == []
    assert world.waiting(waiter)


def test_a_verdict_from_a_closing_pool_ends_the_call() -> None:
    world = World.ready(2)
    one, two = world.checkouts(2)
    world.do(Close(deadline=9.0), 1.0)
    for lease, verdict in ((one, Skip("no")), (two, KEEP)):
        world.do(CheckoutVerdict(lease, verdict))
    assert world.refused(one) == "PoolClosed"
    assert world.granted(two)


def test_a_caller_whose_worker_was_removed_is_served_before_its_sessions_later_calls() -> None:
    world = World.ready(2)
    world.run(session="s", program="p")
    first = world.checkout(session="s", affinity="strict")
    second = world.checkout(session="s", affinity="strict")
    removed = world.worker_of(first)
    world.remove(first)
    assert world.worker_of(first) != removed
    assert world.waiting(second)


def test_a_sessions_first_call_that_was_skipped_is_served_before_its_second() -> None:
    world = World.ready(2)
    first = world.checkout(session="s", affinity="strict")
    second = world.checkout(session="s", affinity="strict")
    world.skip(first)
    assert world.granted(first)
    assert world.waiting(second)


def test_a_removed_workers_sessions_are_served_in_the_order_of_their_calls() -> None:
    world = World.ready(2)
    other = world.checkout()
    world.run(session="a", program="p")
    pinned = world.run(session="b", program="p")
    world.checkout(session="a")
    earlier = world.checkout(session="b", affinity="strict")
    later = world.checkout(session="a", affinity="strict")
    world.checkin(other)
    assert world.waiting(earlier)
    assert world.waiting(later)
    world.exit(pinned)
    assert world.granted(earlier)
    assert world.waiting(later)


def test_a_skipped_call_that_moves_to_another_slot_number_gives_back_the_right_slot() -> None:
    world = World.ready(2, slots=2)
    leases = world.checkouts(4)
    lease = leases[3]
    worker_id, index = world.worker_of(lease), world.lease(lease).slot
    (free,) = [other for other in leases if world.worker_of(other) != worker_id and world.lease(other).slot != index]
    world.checkin(free)
    assert world.skip(lease) == [Grant(lease)]
    assert world.lease(lease).slot != index
    assert world.slots(worker_id)[index] == "idle"


def look(*_: object) -> Verdict:
    return KEEP


def test_a_slot_that_a_hook_still_looks_at_when_the_calls_deadline_comes_goes_to_the_next() -> None:
    world = World.ready(1, check=look)
    lease = world.checkout(deadline=5.0, now=1.0)
    waiter = world.checkout(now=2.0)
    assert world.core.next_deadline() == 5.0
    record = world.lease(lease)
    assert of(world.tick(5.0), Grant, Kill) == [Grant(waiter)]
    assert world.events == ["hook.late"]
    assert record.refusal is not None
    assert "had worker 1 for this call, but the check hook still looked at it" in record.refusal.message
    assert lease not in world.core.leases
    assert world.core.counters.queue_timeouts == 1
    assert world.do(CheckoutVerdict(lease, KEEP)) == [], "the hook returns after all"
    assert world.granted(waiter)


def test_a_hook_that_answered_in_time_is_not_late() -> None:
    world = World.ready(1, check=look)
    lease = world.checkout(deadline=5.0, now=1.0)
    world.do(CheckoutVerdict(lease, KEEP), now=2.0)
    assert world.tick(5.0) == []
    assert world.granted(lease)


def test_a_call_that_a_worker_was_removed_from_is_not_late_while_it_waits() -> None:
    world = World.ready(1, check=look)
    lease = world.checkout(deadline=5.0, now=1.0)
    world.remove(lease, now=2.0)
    world.tick(5.0)
    assert world.events.count("hook.late") == 0


def test_a_call_that_had_to_be_served_now_or_never_is_not_late() -> None:
    world = World.ready(1, check=look)
    lease = world.checkout(deadline=1.0, now=1.0)
    assert world.tick(9.0) == []
    assert world.do(CheckoutVerdict(lease, KEEP)) == []
    assert world.granted(lease)
