"""How long sessions are remembered: TTL from last use, LRU beyond max_sessions, bounded work."""

from __future__ import annotations

import pytest

from dspool.pool.core.commands import Recycle, RunEnded, RunStarted
from dspool.pool.core.states import WorkerState
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def test_a_session_is_forgotten_session_ttl_s_after_its_last_use() -> None:
    world = World.ready(1, session_ttl_s=100.0)
    world.run(session="s", now=0.0)
    world.run(session="s", now=60.0)
    world.run_until(159.0)
    assert "s" in world.core.sessions.table
    world.run_until(161.0)
    assert "s" not in world.core.sessions.table
    assert world.core.workers[1].sessions == {}


def test_a_session_in_use_is_not_forgotten() -> None:
    world = World.ready(1, session_ttl_s=100.0)
    lease = world.checkout(session="s", now=0.0)
    waiter = world.checkout(session="t", now=0.0)
    world.run_until(500.0)
    assert set(world.core.sessions.table) == {"s", "t"}
    world.checkin(lease, now=500.0)
    world.checkin(waiter, now=500.0)
    world.run_until(602.0)
    assert set(world.core.sessions.table) == set()


def test_the_session_longest_out_of_use_is_forgotten_first() -> None:
    world = World.ready(2, max_sessions=2)
    long = world.checkout(session="long", now=0.0)
    world.run(session="short", now=50.0)
    world.checkin(long, now=100.0)
    world.run(session="new", now=101.0)
    assert set(world.core.sessions.table) == {"long", "new"}


def test_more_sessions_than_max_sessions_are_kept_only_while_they_are_in_use() -> None:
    world = World.ready(3, max_sessions=2)
    leases = [world.checkout(session=name) for name in "abc"]
    assert len(world.core.sessions) == 3
    for lease in leases:
        world.checkin(lease)
    assert len(world.core.sessions) == 2


def test_forgetting_sessions_costs_a_bounded_number_of_wakeups() -> None:
    world = World.ready(1, max_sessions=1, session_ttl_s=1000.0)
    for number in range(200):
        world.run(session=f"s{number}", now=float(number))
    assert world.run_until(5000.0) <= 20


def test_a_session_whose_worker_is_gone_is_forgotten_too() -> None:
    world = World.ready(2, session_ttl_s=10.0)
    world.exit(world.run(session="s", program="p"))
    assert len(world.core.sessions) == 1
    world.run_until(20.0)
    assert len(world.core.sessions) == 0


def test_state_is_lost_if_the_first_call_is_answered_by_a_worker_that_is_on_its_way_out() -> None:
    world = World.ready(1)
    first = world.checkout(session="s", program="p")
    world.do(Recycle(1))
    world.become_ready(2)
    assert world.core.sessions.table["s"].generation == 0, "nothing is known to be lost yet"
    world.checkin(first)
    assert world.core.sessions.table["s"].generation == 1
    assert world.lease(world.checkout(session="s")).session_restarted


def test_no_state_is_lost_if_the_first_call_never_ran_in_the_worker_that_is_on_its_way_out() -> None:
    world = World.ready(1)
    first = world.checkout(session="s", program="p")
    world.do(Recycle(1))
    world.become_ready(2)
    world.checkin(first, "none")
    assert not world.lease(world.checkout(session="s")).session_restarted


def test_a_loss_is_counted_once_however_many_calls_the_old_worker_still_answers() -> None:
    world = World.ready(1, slots=2)
    world.run(session="s", program="p")
    leases = [world.checkout(session="s", program="p") for _ in range(2)]
    world.do(Recycle(1))
    world.become_ready(2)
    for lease in leases:
        world.checkin(lease)
    assert world.core.sessions.table["s"].generation == 1
    assert world.lease(world.checkout(session="s")).session_restarted


def lost() -> World:
    """A pool of three workers, and a session "s" whose worker, the first, is gone with what the session kept in it."""
    world = World.ready(3)
    lease = world.checkout(session="s", program="p")
    worker_id = world.worker_of(lease)
    world.checkin(lease)
    world.exit(worker_id)
    return world


def test_a_loss_is_told_again_if_the_call_it_was_told_to_was_cancelled_before_it_looked() -> None:
    world = lost()
    told = world.checkout(session="s", program="p")
    assert world.lease(told).session_restarted
    world.cancel(told)
    following = world.checkout(session="s", program="p")
    assert world.lease(following).session_restarted, "the session stayed where it was, and nobody knows of the loss"
    world.checkin(following)
    assert not world.lease(world.checkout(session="s", program="p")).session_restarted


def test_a_loss_is_not_told_again_if_the_lease_it_was_told_to_ran_something_and_was_cancelled_then() -> None:
    world = lost()
    told = world.checkout(session="s")
    assert world.lease(told).session_restarted
    world.do(RunStarted(told, "p"))
    world.do(RunEnded(told, "ok"))
    world.cancel(told)
    assert not world.lease(world.checkout(session="s", program="p")).session_restarted


def test_the_late_answer_of_a_worker_on_its_way_out_takes_nothing_from_the_sessions_new_worker() -> None:
    world = World.ready(3)
    first = world.checkout(session="s", program="p")
    old = world.worker_of(first)
    world.do(Recycle(old))
    (heir,) = world.workers(WorkerState.STARTING)
    world.become_ready(heir.worker_id)
    second = world.checkout(session="s", program="p")
    new = world.worker_of(second)
    assert new != old
    world.checkin(second)
    world.checkin(first)
    told = world.checkout(session="s", program="p")
    assert world.lease(told).session_restarted, "what the first call left is out of reach"
    world.checkin(told, "none")
    world.exit(new)
    assert world.lease(world.checkout(session="s", program="p")).session_restarted, "what the second left is gone too"
