"""The checks that every other test runs after each step do notice what is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dspool.pool.core import commands as c, invariants
from dspool.pool.core.states import LeaseState, SlotState, WorkerState
from dspool.pool.core.wakes import Wakes
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def leased_to_nobody(world: World) -> None:
    del world.core.leases[1]


def lost_slot(world: World) -> None:
    world.core.workers[2].free.clear()


def idle_beside_a_waiter(world: World) -> None:
    world.do(c.Pause())
    world.checkout()
    world.core.paused = False


def miscounted_group(world: World) -> None:
    world.core.groups["default"].ready += 1


def ghost_in_the_queue(world: World) -> None:
    world.core.queue.count += 1


def forgotten_pin(world: World) -> None:
    world.core.workers[world.core.sessions.table["s"].worker_id or 0].sessions.clear()


def lent_while_draining(world: World) -> None:
    world.core.workers[2].state = WorkerState.DRAINING


def refused_for_no_reason(world: World) -> None:
    world.lease(1).state = LeaseState.CLOSED


def slot_left_behind_for_ever(world: World) -> None:
    world.core.workers[world.worker_of(1)].slots[0].state = SlotState.CANCELLING


def cost_too_many_workers(world: World) -> None:
    world.lease(1).removed = dict.fromkeys(range(10, 15), "bad")


BREACHES: list[Callable[[World], None]] = [
    leased_to_nobody,
    lost_slot,
    idle_beside_a_waiter,
    miscounted_group,
    ghost_in_the_queue,
    forgotten_pin,
    lent_while_draining,
    refused_for_no_reason,
    slot_left_behind_for_ever,
    cost_too_many_workers,
]


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_noticed(breach: Callable[[World], None]) -> None:
    world = World.ready(2)
    lease = world.checkout(session="s")
    if world.worker_of(lease) == 2:
        world = World.ready(3)
        world.checkout(session="s")
    invariants.check(world.core)
    breach(world)
    with pytest.raises(AssertionError):
        invariants.check(world.core)


def test_an_effect_that_does_not_fit_the_tables_is_noticed() -> None:
    world = World.ready(2)
    world.checkout()
    for effect in (
        c.Grant(9),
        c.Reject(1),
        c.Spawn(1, "default"),
        c.Stop(2, "resized", 1.0),
        c.Kill(2, "removed"),
        c.Abandon(1, 0, 1),
    ):
        with pytest.raises((AssertionError, KeyError)):
            invariants.check_effects(world.core, [effect])


def test_a_caller_who_is_not_woken_or_woken_for_nothing_is_noticed() -> None:
    world, wakes = World.ready(1), Wakes()
    world.checkout()
    with pytest.raises(AssertionError, match="woken"):
        wakes.step(world.core, [])
    wakes = Wakes()
    wakes.step(world.core, [c.Grant(1)])
    with pytest.raises(AssertionError, match="woken"):
        wakes.step(world.core, [c.Grant(1)])


@pytest.mark.parametrize("bound", [{"max_waiting": 2}, {"max_waiting_bytes": 100}])
def test_a_queue_over_its_bounds_is_noticed(bound: dict[str, int]) -> None:
    world = World.ready(1, **bound)
    world.checkouts(3, size_bytes=50)
    invariants.check_queue_bounds(world.core)
    world.checkouts(3, size_bytes=50, retry=True)
    with pytest.raises(AssertionError, match="law 7"):
        invariants.check_queue_bounds(world.core)
