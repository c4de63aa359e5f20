"""Timers: one per (what, whose); what is no longer armed leaves nothing behind."""

from __future__ import annotations

import pytest

from dspool.pool.core.timers import Timers
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def test_timers_come_due_in_order_and_once() -> None:
    timers = Timers()
    timers.arm(3.0, "start", 1)
    timers.arm(1.0, "stop", 2)
    timers.arm(2.0, "cancel", 3, 4)
    assert timers.next() == 1.0
    assert timers.pop_due(0.9) is None
    assert [timers.pop_due(2.5) for _ in range(3)] == [("stop", 2, 0), ("cancel", 3, 4), None]
    assert timers.pop_due(3.0) == ("start", 1, 0)
    assert timers.next() is None


def test_arming_again_moves_a_timer_either_way() -> None:
    timers = Timers()
    timers.arm(1.0, "ping", 1)
    timers.arm(5.0, "ping", 1)
    assert timers.pop_due(4.0) is None
    timers.arm(2.0, "ping", 1)
    assert timers.pop_due(2.0) == ("ping", 1, 0)
    assert timers.pop_due(9.0) is None


def test_a_disarmed_timer_is_not_called_for_and_disarming_is_idempotent() -> None:
    timers = Timers()
    timers.arm(1.0, "hint", 1)
    timers.disarm("hint", 1)
    timers.disarm("hint", 1)
    assert timers.next() is None
    assert not timers.armed("hint", 1)


def test_infinity_is_never() -> None:
    timers = Timers()
    timers.arm(1.0, "hold", 1)
    timers.arm(float("inf"), "hold", 1)
    assert timers.next() is None


def test_timers_that_are_gone_take_no_room() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.arm(1000.0 + number, "hold", number)
        if number != 5000:
            timers.disarm("hold", number)
    assert len(timers) == 1
    assert len(timers._heap) < 200
    assert timers.next() == 6000.0


def test_calls_that_end_in_time_leave_no_timers_behind() -> None:
    world = World.ready(2)
    for number in range(200):
        lease = world.checkout(session="s", hold_s=3600.0, deadline=1e6, now=number / 1000)
        late = world.checkout(session="s", hold_s=3600.0)
        world.cancel(late)
        world.checkin(lease)
    assert len(world.core.timers) <= 3
