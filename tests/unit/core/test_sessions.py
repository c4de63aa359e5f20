"""Sessions: pinned, waited for, moved, lost, forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.affinity import Session
from dspool.pool.core.commands import (
    Cancel,
    Checkin,
    Checkout,
    Grant,
    Kill,
    Pause,
    Recycle,
    Reject,
    Resize,
    Resume,
    Spawn,
    WorkerUnwell,
)
from dspool.types import Affinity
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit

MODES: tuple[Affinity, ...] = ("hint", "strict", "strict_fail_fast")
GROUPS = [
    WorkerGroup(name="cpu", workers=1, labels=frozenset({"cpu"})),
    WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu"})),
]


def session(world: World, name: str = "s") -> Session:
    return world.core.sessions.table[name]


def pinned(workers: int = 2, **options: Any) -> tuple[World, int]:
    """A pool whose session "s" has run a call, and the worker it is pinned to: never the last used one."""
    world = World.ready(workers, **options)
    lease = world.checkout(session="s", program="p")
    worker_id = world.worker_of(lease)
    others = [world.checkout() for _ in range(workers - 1)]
    world.checkin(lease)
    for other in others:
        world.checkin(other)
    return world, worker_id


@pytest.mark.parametrize("affinity", MODES)
def test_a_sessions_calls_go_to_the_same_worker(affinity: Affinity) -> None:
    world, worker_id = pinned()
    lease = world.checkout(session="s", affinity=affinity)
    assert world.worker_of(lease) == worker_id
    assert not world.lease(lease).session_restarted


def test_a_hint_waits_for_its_worker_and_takes_another_after_affinity_wait_s() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    world.checkout(session="s", now=1.0)
    lease = world.checkout(session="s", now=2.0)
    assert world.waiting(lease)
    assert world.core.next_deadline() == 2.25
    assert world.tick(2.25) == [Grant(lease)]
    assert world.worker_of(lease) != worker_id
    assert world.core.counters.spills == 1


def test_a_hint_whose_worker_is_free_in_time_stays_there() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    holder = world.checkout(session="s", now=1.0)
    lease = world.checkout(session="s")
    assert world.do(Checkin(holder), 1.1) == [Grant(lease)]
    assert world.worker_of(lease) == worker_id
    assert world.tick(1.25) == []
    assert world.worker_of(lease) == worker_id


def test_the_session_moves_with_the_call_that_spilled() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    holder = world.checkout(session="s", now=1.0)
    moved, follower = world.checkout(session="s"), world.checkout(session="s", affinity="strict")
    world.tick(1.25)
    other = world.worker_of(moved)
    assert other != worker_id
    assert session(world).worker_id == other
    assert world.lease(moved).session_restarted
    assert world.checkin(holder) == [], "the follower waits where the session is now"
    assert world.checkin(moved) == [Grant(follower)]
    assert world.worker_of(follower) == other
    assert not world.lease(follower).session_restarted, "told once"


def test_a_spilled_call_waits_for_any_worker_if_all_are_busy() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    holder, other, lease = world.checkout(session="s"), world.checkout(), world.checkout(session="s", now=1.0)
    assert world.tick(1.25) == []
    assert world.checkin(other) == [Grant(lease)]
    assert world.worker_of(lease) != worker_id
    world.checkin(holder)


def test_a_spilled_call_may_come_back_to_its_own_worker() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    holder, _, lease = world.checkout(session="s"), world.checkout(), world.checkout(session="s", now=1.0)
    world.tick(1.25)
    assert world.checkin(holder) == [Grant(lease)]
    assert world.worker_of(lease) == worker_id
    assert world.core.counters.spills == 0
    assert not world.lease(lease).session_restarted


def test_a_spill_that_loses_state_raises_for_who_wants_to_know() -> None:
    world, _ = pinned(affinity_wait_s=0.25)
    world.checkout(session="s")
    lease = world.checkout(session="s", session_lost_is_error=True, now=1.0)
    world.tick(1.25)
    assert world.refused(lease) == "SessionLost" or world.waiting(lease), "it was never promised another worker's state"


def test_strict_waits_for_its_worker_within_its_own_deadline() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    holder = world.checkout(session="s", now=1.0)
    lease = world.checkout(session="s", affinity="strict", deadline=60.0)
    assert world.run_until(50.0) == 0
    assert world.do(Checkin(holder), 50.0) == [Grant(lease)]
    assert world.worker_of(lease) == worker_id


def test_strict_fail_fast_is_refused_at_once_when_its_worker_is_busy() -> None:
    world, worker_id = pinned()
    world.checkout(session="s")
    assert world.do(Checkout(9, 9, session="s", affinity="strict_fail_fast")) == [Reject(9)]
    assert world.refusal(9).code == "SessionBusy"
    assert f"worker {worker_id}" in world.refusal(9).message


def test_a_pinned_waiter_starts_no_worker() -> None:
    world = World(workers=2, lazy=True)
    holder = world.checkout(session="s", program="p")
    world.become_ready(1)
    world.checkin(holder)
    world.checkout(session="s")
    lease = world.checkout(session="s", affinity="strict")
    assert of(world.said, Spawn) == []
    assert world.waiting(lease)


@pytest.mark.parametrize("affinity", MODES)
def test_first_calls_of_a_session_never_split(affinity: Affinity) -> None:
    world = World.ready(2)
    first = world.checkout(session="s", affinity=affinity)
    second = world.checkout(session="s", affinity=affinity)
    assert world.granted(first)
    assert not world.granted(second)
    assert session(world).worker_id == world.worker_of(first)


def test_first_calls_that_wait_together_go_to_one_worker() -> None:
    world = World.ready(2)
    holders = world.checkouts(2)
    first, second = world.checkout(session="s", affinity="strict"), world.checkout(session="s", affinity="strict")
    assert world.checkin(holders[0]) == [Grant(first)]
    assert world.checkin(holders[1]) == [], "the second waits for the first's worker"
    assert world.checkin(first) == [Grant(second)]


def test_first_calls_that_wait_together_share_a_worker_with_several_slots() -> None:
    world = World(workers=1, slots=3)
    world.tick(0.0)
    first, second, other = world.checkout(session="s"), world.checkout(session="s"), world.checkout()
    assert world.become_ready(1) == [Grant(first), Grant(second), Grant(other)]


def test_a_first_call_that_was_cancelled_unsent_leaves_no_state_to_lose() -> None:
    world = World.ready(2)
    lease = world.checkout(session="s")
    worker_id = world.worker_of(lease)
    world.cancel(lease)
    world.exit(worker_id)
    following = world.checkout(session="s")
    assert not world.lease(following).session_restarted
    assert session(world).generation == 0


@pytest.mark.parametrize("end", ["exit", "unwell", "resize", "recycle"])
def test_a_session_is_unpinned_in_the_step_in_which_its_worker_leaves(end: str) -> None:
    world, worker_id = pinned()
    for lease in [world.checkout() for _ in range(2)]:
        if world.worker_of(lease) != worker_id:
            world.checkin(lease)
    if end == "exit":
        world.exit(worker_id)
    elif end == "unwell":
        world.do(WorkerUnwell(worker_id, "hung"))
    elif end == "resize":
        world.do(Resize("default", 0))
    else:
        world.do(Recycle(worker_id))
        assert session(world).worker_id == worker_id, "still lent until its replacement is ready"
        world.become_ready(3)
    assert session(world).worker_id is None
    assert session(world).generation == 1
    assert world.core.counters.repins == 1


def test_the_first_caller_after_a_loss_is_told_and_the_next_is_not() -> None:
    world, worker_id = pinned()
    world.exit(worker_id)
    lease = world.checkout(session="s", program="p")
    assert world.lease(lease).session_restarted
    world.checkin(lease)
    assert not world.lease(world.checkout(session="s")).session_restarted


def test_session_lost_is_raised_once_for_who_wants_to_know() -> None:
    world, worker_id = pinned()
    world.exit(worker_id)
    assert world.do(Checkout(8, 8, session="s", session_lost_is_error=True)) == [Reject(8)]
    assert world.refusal(8).code == "SessionLost"
    again = world.checkout(lease_id=9, session="s", session_lost_is_error=True)
    assert world.granted(again)
    assert not world.lease(again).session_restarted


def test_session_lost_is_raised_for_a_waiter_whose_worker_leaves_and_the_next_waiter_is_served() -> None:
    world, worker_id = pinned()
    holder = world.checkout(session="s")
    lease = world.checkout(session="s", affinity="strict", session_lost_is_error=True)
    following = world.checkout(session="s", affinity="strict", session_lost_is_error=True)
    world.exit(worker_id)
    assert world.refused(lease) == "SessionLost"
    assert world.granted(following)
    world.checkin(holder, "lost")


def test_a_loss_is_told_again_if_the_worker_that_was_told_of_was_removed_before_anything_was_sent() -> None:
    world, worker_id = pinned(3)
    world.exit(worker_id)
    lease = world.checkout(session="s")
    assert world.lease(lease).session_restarted
    world.remove(lease)
    assert world.lease(lease).session_restarted
    world.cancel(lease)


def test_strict_and_its_worker_skips_is_refused_at_once() -> None:
    world, worker_id = pinned()
    lease = world.checkout(session="s", affinity="strict")
    assert world.skip(lease, "wrong") == [Reject(lease)]
    refusal = world.refusal(lease)
    assert refusal.code == "CheckoutSkipped"
    assert refusal.reasons == {worker_id: "wrong"}


def test_strict_and_its_worker_is_removed_is_pinned_elsewhere() -> None:
    world, worker_id = pinned()
    lease = world.checkout(session="s", affinity="strict")
    assert of(world.remove(lease), Grant) == [Grant(lease)]
    assert session(world).worker_id == world.worker_of(lease) != worker_id
    assert world.lease(lease).session_restarted


def test_a_hint_whose_worker_skips_goes_to_another_and_takes_the_session_along() -> None:
    world, worker_id = pinned()
    lease = world.checkout(session="s")
    assert world.skip(lease) == [Grant(lease)]
    assert session(world).worker_id == world.worker_of(lease) != worker_id


def test_a_strict_call_whose_labels_its_worker_lacks_is_refused_at_once() -> None:
    world = World.ready(GROUPS)
    world.run(session="s", require="cpu", program="p")
    lease = world.checkout(session="s", affinity="strict", require="gpu")
    assert world.refused(lease) == "CheckoutSkipped"
    assert "['gpu']" in world.refusal(lease).message


def test_a_hint_call_whose_labels_its_worker_lacks_moves_the_session() -> None:
    world = World.ready(GROUPS)
    cpu = world.run(session="s", require="cpu", program="p")
    assert world.worker_of(world.checkout(session="s", require="gpu")) != cpu


def test_overflow_workers_are_pinned_last() -> None:
    world = World.ready(1, overflow=1)
    regular, spare = world.checkouts(2)
    world.become_ready(2)
    assert world.worker_of(spare) == 2
    world.checkin(regular)
    world.checkin(spare)
    assert world.worker_of(world.checkout(session="s")) == 1, "though 2 was used last"
    assert world.worker_of(world.checkout(session="t")) == 2, "there is no other"


def test_an_overflow_worker_that_holds_the_program_is_lent_to_calls_without_a_session() -> None:
    world = World.ready(1, overflow=1)
    regular, spare = world.checkout(), world.checkout(program="p")
    world.become_ready(2)
    world.checkin(spare)
    world.checkin(regular)
    assert world.worker_of(world.checkout(program="p")) == 2
    assert world.worker_of(world.checkout()) == 1


def test_calls_of_one_session_overlap_where_there_are_slots() -> None:
    world = World.ready(2, slots=2)
    one, two = world.checkout(session="s"), world.checkout(session="s")
    assert world.worker_of(one) == world.worker_of(two)


def test_a_waiter_that_gives_up_leaves_the_session() -> None:
    world, _ = pinned()
    world.checkout(session="s")
    lease = world.checkout(session="s", affinity="strict")
    assert world.do(Cancel(lease, written=False)) == []
    assert session(world).queued == {}


def test_a_pause_holds_a_sessions_calls_back_and_fail_fast_fails() -> None:
    world, worker_id = pinned()
    world.do(Pause())
    lease = world.checkout(session="s", affinity="strict")
    assert world.waiting(lease)
    assert world.refused(world.checkout(session="s", affinity="strict_fail_fast")) == "SessionBusy"
    assert world.do(Resume()) == [Grant(lease)]
    assert world.worker_of(lease) == worker_id


def test_a_cancelled_call_that_was_written_counts_as_state_to_lose() -> None:
    world = World.ready(2)
    lease = world.checkout(session="s", program="p", cancellable=True)
    worker_id = world.worker_of(lease)
    world.cancel(lease, written=True)
    assert of(world.do(WorkerUnwell(worker_id, "hung")), Kill) == [Kill(worker_id, "hung")]
    assert world.lease(world.checkout(session="s")).session_restarted


def test_a_hint_whose_wait_is_over_while_the_pool_is_paused_takes_another_worker_at_resume() -> None:
    world, worker_id = pinned(affinity_wait_s=0.25)
    world.checkout(session="s")
    lease = world.checkout(session="s", now=1.0)
    world.do(Pause())
    assert world.tick(2.0) == []
    assert world.waiting(lease)
    assert world.do(Resume(), 3.0) == [Grant(lease)]
    assert world.worker_of(lease) != worker_id


def test_a_hint_whose_wait_is_not_over_at_resume_waits_on() -> None:
    world, _ = pinned(affinity_wait_s=0.25)
    world.checkout(session="s")
    lease = world.checkout(session="s", now=1.0)
    world.do(Pause())
    assert world.do(Resume(), 1.1) == []
    assert world.tick(1.25) == [Grant(lease)]


def test_a_session_whose_worker_died_before_the_verdict_moves_with_its_call() -> None:
    world, worker_id = pinned()
    lease = world.checkout(session="s")
    world.exit(worker_id)
    assert world.remove(lease, died=True) == [Grant(lease)]
    assert session(world).worker_id == 3 - worker_id
    assert world.lease(lease).session_restarted


def test_with_affinity_wait_s_0_whoever_must_wait_again_is_free_to_go_in_the_same_tick() -> None:
    world, _ = pinned(3, affinity_wait_s=0.0)
    world.checkout(session="s", now=1.0)
    first, second = world.checkout(session="s"), world.checkout(session="s")
    assert world.tick(1.0) == [Grant(first), Grant(second)]
    assert world.worker_of(first) != world.worker_of(second)
