"""Pause, drain and close, in every state; the order in which workers stop."""

from __future__ import annotations

import pytest

from dspool.pool.core.commands import (
    Cancel,
    Checkin,
    Checkout,
    Close,
    Drain,
    Grant,
    Kill,
    Pause,
    ProbeAnswered,
    Recycle,
    Reject,
    Release,
    Reload,
    Resize,
    Resume,
    Spawn,
    Stop,
    WorkerReady,
    WorkerUnwell,
)
from dspool.pool.core.states import PoolState
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit


def test_closing_an_idle_pool_stops_its_workers_in_the_order_of_their_ids() -> None:
    world = World.ready(3)
    assert world.do(Close(deadline=10.0), 7.0) == [
        Stop(1, "stopped", 10.0),
        Stop(2, "stopped", 10.0),
        Stop(3, "stopped", 10.0),
    ]
    for worker_id in (2, 1):
        assert world.exit(worker_id, "stopped") == []
        assert world.core.state is PoolState.CLOSING
    world.exit(3, "stopped")
    assert world.core.state is PoolState.CLOSED
    assert world.events[-1] == "pool.closed"


def test_a_worker_gets_grace_s_to_stop_if_the_pool_has_more_time_than_that() -> None:
    world = World.ready(1, grace_s=5.0)
    assert world.do(Close(deadline=100.0), 7.0) == [Stop(1, "stopped", 12.0)]


def test_closing_a_pool_without_workers_closes_it_at_once() -> None:
    world = World(workers=1, lazy=True)
    world.do(Close(deadline=1.0))
    assert world.events == ["pool.closing", "pool.closed"]
    assert world.core.state is PoolState.CLOSED


def test_closing_kills_what_is_still_starting() -> None:
    world = World(workers=1)
    world.tick(0.0)
    assert world.do(Close(deadline=5.0)) == [Kill(1, "stopped")]
    assert world.do(WorkerReady(1)) == []
    world.exit(1, "stopped")
    assert world.core.state is PoolState.CLOSED
    assert world.core.counters.start_failures == 0


def test_queued_callers_are_refused_at_once_and_running_ones_are_not() -> None:
    world = World.ready(1)
    running, queued, also = world.checkouts(3)
    assert world.do(Close(deadline=5.0), 1.0) == [Reject(queued), Reject(also)]
    assert world.refused(queued) == "PoolClosed"
    assert "was not run" in world.refusal(queued).message
    assert world.granted(running)
    assert world.checkin(running, now=2.0) == [Stop(1, "stopped", 5.0)]


def test_running_calls_are_killed_at_the_deadline() -> None:
    world = World.ready(2)
    running = world.checkout()
    worker_id = world.worker_of(running)
    world.do(Close(deadline=6.0), 1.0)
    world.exit(3 - worker_id, "stopped")
    assert world.core.next_deadline() == 6.0
    (kill,) = world.tick(6.0)
    assert isinstance(kill, Kill)
    assert (kill.worker_id, kill.reason) == (worker_id, "stopped")
    world.exit(worker_id, "stopped")
    assert world.core.state is PoolState.CLOSED
    assert world.checkin(running, "lost") == []


def test_close_is_idempotent_and_an_earlier_deadline_wins() -> None:
    world = World.ready(1)
    world.checkout()
    world.do(Close(deadline=60.0), 1.0)
    assert world.do(Close(deadline=90.0)) == []
    assert world.do(Close(deadline=2.0)) == []
    assert [type(effect) for effect in world.tick(2.0)] == [Kill]
    world.exit(1, "stopped")
    assert world.do(Close(deadline=1.0)) == []
    assert world.core.state is PoolState.CLOSED


def test_a_close_without_a_deadline_waits_for_the_running_calls() -> None:
    world = World.ready(1)
    running = world.checkout()
    world.do(Close(deadline=float("inf")), 1.0)
    world.run_until(1000.0)
    assert world.granted(running)
    assert world.checkin(running, now=1000.0) == [Stop(1, "stopped", 1005.0)]


def test_a_close_whose_deadline_is_past_kills_at_the_next_tick() -> None:
    world = World.ready(1)
    world.checkout()
    world.do(Close(deadline=1.0), 1.0)
    assert [type(effect) for effect in world.tick(1.0)] == [Kill]


def test_closing_leaves_draining_and_stopping_workers_on_their_way() -> None:
    world = World.ready(3)
    draining = world.worker_of(world.checkout())
    world.do(Recycle(draining))
    world.become_ready(4)
    gone = next(worker_id for worker_id in (1, 2, 3) if worker_id != draining)
    world.do(WorkerUnwell(gone, "killed"))
    before = world.states()
    world.do(Close(deadline=5.0))
    assert {worker_id: world.states()[worker_id] for worker_id in (draining, gone)} == {
        draining: before[draining],
        gone: before[gone],
    }
    assert draining not in {effect.worker_id for effect in world.said if isinstance(effect, (Stop, Kill))}


@pytest.mark.parametrize("closed", [False, True])
def test_a_closing_or_closed_pool_refuses_calls_and_starts_nothing(closed: bool) -> None:
    world = World.ready(1)
    world.do(Close(deadline=5.0))
    if closed:
        world.exit(1, "stopped")
    assert world.do(Checkout(9, 9)) == [Reject(9)]
    assert world.refused(9) == "PoolClosed"
    for command in (Resize("default", 9), Reload(), Recycle(1), Pause(), Drain(), Resume(), Release("p")):
        assert of(world.do(command), Spawn, Grant, Kill) == []
        assert world.core.state is (PoolState.CLOSED if closed else PoolState.CLOSING)
    world.run_until(1000.0)
    assert of(world.said, Spawn) == []


def test_a_worker_that_was_asked_to_stop_and_is_still_there_at_the_deadline_is_killed_once() -> None:
    world = World.ready(1, grace_s=5.0)
    assert world.do(Close(deadline=5.0)) == [Stop(1, "stopped", 5.0)]
    assert [type(effect) for effect in world.tick(5.0)] == [Kill]
    assert world.do(Close(deadline=4.0), 6.0) == []
    assert world.tick(7.0) == []


def test_a_worker_that_dies_while_the_pool_closes_is_not_replaced() -> None:
    world = World.ready(2)
    world.run(program="p")
    world.do(Close(deadline=5.0))
    assert world.exit(1, "crash") == []
    assert world.core.counters.replaced == 0


def test_a_paused_pool_can_be_closed() -> None:
    world = World.ready(1)
    world.do(Pause())
    waiter = world.checkout()
    assert world.do(Close(deadline=5.0)) == [Reject(waiter), Stop(1, "stopped", 5.0)]
    assert not world.core.paused


def test_a_draining_pool_can_be_closed() -> None:
    world = World.ready(1)
    world.do(Drain())
    world.do(Close(deadline=5.0))
    assert world.core.state is PoolState.CLOSING


def test_a_draining_pool_finishes_what_it_accepted_and_takes_nothing_new() -> None:
    world = World.ready(1)
    running, queued = world.checkouts(2)
    world.do(Drain())
    assert world.events == ["pool.draining"]
    assert world.refused(world.checkout()) == "PoolClosed"
    assert world.checkin(running) == [Grant(queued)]
    assert world.checkin(queued) == []
    assert world.states() == {1: "ready"}


def test_a_draining_pool_still_replaces_workers_for_what_it_accepted() -> None:
    world = World.ready(1)
    running, queued = world.checkout(program="p"), world.checkout()
    world.do(Drain())
    assert world.exit(1) == [Spawn(2, "default")]
    world.checkin(running, "lost")
    assert world.become_ready(2) == [Grant(queued)]


def test_a_retry_of_an_accepted_call_is_accepted_while_draining() -> None:
    world = World.ready(1)
    running = world.checkout(program="p", call_id=1)
    world.do(Drain())
    world.exit(1)
    world.checkin(running, "lost")
    retry = world.checkout(program="p", call_id=1, retry=True)
    assert world.become_ready(2) == [Grant(retry)]


def test_a_removed_callers_lease_goes_on_while_draining() -> None:
    world = World.ready(2)
    lease = world.checkout()
    world.do(Drain())
    assert of(world.remove(lease), Grant) == [Grant(lease)]


def test_resume_opens_a_draining_pool_again_and_draining_twice_is_once() -> None:
    world = World.ready(1)
    world.do(Drain())
    assert world.do(Drain()) == []
    assert world.events == []
    world.do(Resume())
    assert world.core.state is PoolState.OPEN
    assert world.granted(world.checkout())


def test_a_paused_pool_still_takes_calls_back_cancels_and_replaces() -> None:
    world = World.ready(2)
    one, two = world.checkouts(2)
    world.do(Pause())
    waiter = world.checkout()
    assert world.do(Checkin(one)) == []
    assert [type(effect) for effect in world.do(Cancel(two, written=True))] == [Kill]
    worker_id = next(worker_id for worker_id, state in world.states().items() if state == "stopping")
    assert world.exit(worker_id, "cancelled") == [Spawn(3, "default")]
    assert world.become_ready(3) == []
    assert world.waiting(waiter)
    assert of(world.do(Resume()), Grant) == [Grant(waiter)]


def test_an_idle_worker_of_a_paused_pool_is_still_pinged() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    world.do(Pause())
    assert len(world.tick(30.0)) == 1
    assert world.do(ProbeAnswered(1, ok=True)) == []


def test_a_lease_that_outlives_the_pool_ends_quietly() -> None:
    world = World.ready(1)
    running = world.checkout(session="s", program="p")
    world.do(Close(deadline=1.0), 0.5)
    world.tick(1.0)
    world.exit(1, "stopped")
    assert world.core.state is PoolState.CLOSED
    assert world.checkin(running, "lost") == []
    assert world.core.leases == {}


def test_resume_serves_with_the_workers_that_are_ready_and_waits_for_the_others() -> None:
    world = World(workers=2)
    world.tick(0.0)
    world.do(Pause())
    first, second = world.checkouts(2)
    world.become_ready(1)
    assert world.do(Resume()) == [Grant(first)]
    assert world.become_ready(2) == [Grant(second)]
