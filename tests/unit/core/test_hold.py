"""hold_s: a lease that is held too long is taken back, and the worker with it, but not its neighbours' calls."""

from __future__ import annotations

import pytest

from dspool.pool.core.commands import CheckoutVerdict, Grant, Kill, Resize, Tick, WorkerUnwell
from dspool.types import KEEP
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit


def test_a_lease_held_longer_than_hold_s_is_taken_back_with_its_worker() -> None:
    world = World.ready(1)
    lease = world.checkout(hold_s=5.0, now=1.0)
    assert world.core.next_deadline() == 6.0
    said = world.tick(6.0)
    assert [type(effect) for effect in said] == [Kill]
    assert isinstance(said[0], Kill)
    assert said[0].reason == "timeout"
    assert world.events == ["lease.expired", "pool.health"]
    assert lease not in world.core.leases


def test_a_lease_checked_in_in_time_is_not_taken_back() -> None:
    world = World.ready(1)
    world.checkin(world.checkout(hold_s=5.0, now=1.0), now=2.0)
    assert world.tick(6.0) == []


def test_hold_s_counts_from_the_grant_that_lasted() -> None:
    world = World.ready(2)
    lease = world.checkout(hold_s=5.0, now=0.0)
    world.remove(lease, now=4.0)
    assert world.granted(lease)
    assert world.tick(5.0) == []
    assert world.granted(lease)
    world.tick(9.0)
    assert lease not in world.core.leases


def test_hold_s_begins_when_the_check_hook_has_decided() -> None:
    world = World.ready(1, check=lambda *_: KEEP)
    lease = world.checkout(hold_s=5.0, now=0.0)
    assert world.tick(20.0) == [], "the hook still looks at the worker"
    world.do(CheckoutVerdict(lease, KEEP), 30.0)
    assert world.tick(34.9) == []
    assert [type(effect) for effect in world.tick(35.0)] == [Kill]


def test_the_neighbours_of_a_lease_held_too_long_finish_first() -> None:
    world = World.ready(1, slots=2)
    lease, neighbour = world.checkout(hold_s=5.0, now=1.0), world.checkout(now=1.0)
    assert of(world.tick(6.0), Kill) == []
    assert lease not in world.core.leases
    assert world.states()[1] == "draining"
    assert world.granted(neighbour)
    assert len(of(world.checkin(neighbour, now=9.0), Kill)) == 1


def test_a_lease_held_too_long_on_a_draining_worker_leaves_it_to_the_neighbour() -> None:
    world = World.ready(1, slots=2)
    world.checkout(hold_s=5.0, now=1.0)
    neighbour = world.checkout()
    world.do(Resize("default", 0))
    assert of(world.tick(6.0), Kill) == []
    assert len(of(world.checkin(neighbour, now=9.0), Kill)) == 1


@pytest.mark.parametrize("gone", [False, True])
def test_a_lease_held_too_long_whose_worker_is_gone_or_going_just_ends(gone: bool) -> None:
    world = World.ready(1)
    lease = world.checkout(hold_s=5.0, now=1.0)
    world.do(WorkerUnwell(1, "killed"))
    if gone:
        world.exit(1, "killed")
    assert of(world.do(Tick(), 6.0), Kill) == []
    assert lease not in world.core.leases
    assert world.core.counters.calls_timeout == 1


def test_a_trial_that_is_held_too_long_makes_room_for_another() -> None:
    world = World.ready(2, quarantine_after=1, quarantine_s=30.0)
    first = world.checkout(program="p")
    world.exit(world.worker_of(first))
    world.checkin(first, "lost")
    world.checkout(program="p", hold_s=5.0, now=30.0)
    world.tick(35.0)
    again = world.checkout(program="p")
    assert world.granted(again) or world.waiting(again)


def test_hold_s_0_is_over_at_the_next_tick() -> None:
    world = World.ready(1)
    lease = world.checkout(hold_s=0.0, now=1.0)
    assert world.granted(lease)
    assert [type(effect) for effect in world.tick(1.5)] == [Kill]


def test_a_lease_is_never_over_in_the_step_that_grants_it() -> None:
    world = World.ready(2, affinity_wait_s=0.25)
    world.checkout(session="s", now=1.0)
    lease = world.checkout(session="s", hold_s=0.0)
    assert world.tick(1.25) == [Grant(lease)]
    assert world.granted(lease)
    assert [type(effect) for effect in world.tick(1.5)] == [Kill]
