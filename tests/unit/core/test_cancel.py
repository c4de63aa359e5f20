"""Law 2: Cancel in every lease state, written or not, with one slot or several, cancellable or not; idempotent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dspool.pool.core.commands import (
    Abandon,
    Cancel,
    CancelCall,
    Effect,
    Grant,
    Kill,
    Resize,
    RunStarted,
    SlotSettled,
    Spawn,
    Stop,
    WorkerUnwell,
)
from dspool.types import KEEP
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit

LEASE_STATES = ("unknown", "queued", "checking", "granted", "refused")
EVERY_CASE = list(itertools.product(LEASE_STATES, (False, True), (1, 2), (False, True)))


def lease_in(state: str, *, slots: int, cancellable: bool) -> tuple[World, int]:
    """A pool of one worker and a lease in that state."""
    hook: Any = (lambda *_: KEEP) if state == "checking" else None
    world = World.ready(1, slots=slots, check=hook, max_waiting=1)
    if state == "unknown":
        return world, 99
    if state in ("queued", "refused"):
        world.checkouts(slots + (state == "refused"))
    return world, world.checkout(cancellable=cancellable)


def expected_slot_and_effects(lease: int, slots: int, cancellable: bool) -> tuple[str, list[Effect]]:
    """What a written call leaves behind."""
    if cancellable:
        return "cancelling", [CancelCall(1, 0, lease)]
    if slots > 1:
        return "abandoned", [Abandon(1, 0, lease)]
    return "closed", [Kill(1, "cancelled", f"lease {lease}, 0.000 s after it was granted")]


@pytest.mark.parametrize(("state", "written", "slots", "cancellable"), EVERY_CASE)
def test_every_case_of_cancel(state: str, written: bool, slots: int, cancellable: bool) -> None:
    world, lease = lease_in(state, slots=slots, cancellable=cancellable)
    before = world.slots(1)
    said = world.do(Cancel(lease, written))
    assert lease not in world.core.leases
    if state in ("checking", "granted") and written:
        slot, effects = expected_slot_and_effects(lease, slots, cancellable)
        assert said == effects
        assert world.slots(1)[0] == slot
        assert world.states()[1] == ("stopping" if slot == "closed" else "ready")
    else:
        assert said == []
        assert world.states()[1] == "ready"
        assert world.slots(1) == (["idle"] * slots if state in ("checking", "granted") else before)
    assert world.do(Cancel(lease, written)) == [], "idempotent"
    assert world.do(Cancel(lease, not written)) == []


@pytest.mark.parametrize("why", ["cancelled", "timeout"])
def test_a_written_call_of_a_worker_with_one_slot_takes_the_worker_with_it_and_the_next_caller_waits(why: Any) -> None:
    world = World.ready(1)
    lease, waiter = world.checkouts(2)
    detail = f"lease {lease}, 2.000 s after it was granted"
    assert world.cancel(lease, written=True, why=why, now=2.0) == [Kill(1, why, detail, dump=why == "timeout")]
    assert world.exit(1, why) == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(waiter)]


def test_an_unwritten_call_gives_its_slot_to_the_next_caller() -> None:
    world = World.ready(1)
    lease, waiter = world.checkouts(2)
    assert world.cancel(lease) == [Grant(waiter)]


def test_a_client_that_crashes_while_it_waits_is_forgotten() -> None:
    world = World.ready(1)
    holder, crashed, waiter = world.checkouts(3)
    world.cancel(crashed)
    assert world.checkin(holder) == [Grant(waiter)]


def test_a_waiter_on_a_lazy_pool_is_woken_after_the_holder_crashed() -> None:
    world = World(workers=1, lazy=True)
    holder, waiter = world.checkouts(2)
    assert world.become_ready(1) == [Grant(holder)]
    assert of(world.cancel(holder, written=True), Kill)
    assert world.exit(1, "cancelled") == [Spawn(2, "default")]
    assert world.become_ready(2) == [Grant(waiter)]


def test_the_counters_tell_a_timeout_from_a_cancel_and_a_wait_from_a_run() -> None:
    world = World.ready(1)
    holder, one, two = world.checkouts(3)
    world.cancel(one)
    world.cancel(two, why="timeout")
    world.cancel(holder, written=True, why="timeout")
    counters = world.core.counters
    assert (counters.calls_cancelled, counters.calls_timeout, counters.queue_timeouts) == (1, 1, 1)


def test_a_cancelled_call_whose_final_frame_was_read_gives_its_slot_back() -> None:
    world = World.ready(1)
    lease, waiter = world.checkout(cancellable=True), world.checkout()
    world.cancel(lease, written=True, now=1.0)
    assert world.waiting(waiter), "a slot with an unanswered frame is never lent"
    assert world.do(SlotSettled(1, 0, lease), 1.5) == [Grant(waiter)]
    assert world.tick(2.0) == [], "the grace period is over, and so is the call"


def test_a_cancelled_call_that_does_not_end_in_cancel_grace_s_takes_the_worker_with_it() -> None:
    world = World.ready(1, cancel_grace_s=1.0)
    lease = world.checkout(cancellable=True)
    world.cancel(lease, written=True, now=1.0)
    assert world.core.next_deadline() == 2.0
    (kill,) = world.tick(2.0)
    assert isinstance(kill, Kill)
    assert (kill.worker_id, kill.reason) == (1, "cancelled")


def test_a_cancelled_call_that_does_not_end_spares_its_neighbours() -> None:
    world = World.ready(1, slots=2, cancel_grace_s=1.0)
    lease, neighbour = world.checkout(cancellable=True), world.checkout(program="p")
    world.cancel(lease, written=True, now=1.0)
    assert of(world.tick(2.0), Kill) == []
    assert world.states()[1] == "draining"
    (kill,) = of(world.checkin(neighbour, now=3.0), Kill)
    assert isinstance(kill, Kill)
    assert kill.worker_id == 1


def test_an_abandoned_slots_late_answer_is_dropped_and_it_is_lent_again() -> None:
    world = World.ready(1, slots=2)
    lease, _, waiter = world.checkouts(3)
    assert world.cancel(lease, written=True, why="timeout") == [Abandon(1, 0, lease)]
    assert world.waiting(waiter)
    assert world.do(SlotSettled(1, 0, lease)) == [Grant(waiter)]


def test_a_worker_whose_abandoned_call_does_not_end_drains_and_is_killed_when_its_neighbours_are_done() -> None:
    world = World.ready(1, slots=2, grace_s=5.0)
    lease, neighbour = world.checkouts(2)
    world.cancel(lease, written=True, why="timeout", now=1.0)
    assert world.tick(5.9) == []
    assert world.states() == {1: "ready"}
    assert world.tick(6.0) == []
    assert world.states() == {1: "draining"}
    assert world.checkin(neighbour, now=8.0) == [Kill(1, "timeout")]


def test_a_late_answer_of_a_draining_workers_abandoned_call_lets_it_stop_in_peace() -> None:
    world = World.ready(1, slots=2, grace_s=5.0)
    lease, neighbour = world.checkouts(2)
    world.cancel(lease, written=True, why="timeout", now=1.0)
    world.tick(6.0)
    assert world.do(SlotSettled(1, 0, lease), 7.0) == []
    assert world.checkin(neighbour, now=8.0) == [Stop(1, "timeout", 13.0)]


def test_a_worker_all_of_whose_calls_were_abandoned_is_killed_after_grace_s() -> None:
    world = World.ready(1, slots=2, grace_s=5.0)
    one, two = world.checkouts(2)
    world.cancel(one, written=True, now=1.0)
    said = world.cancel(two, written=True, now=2.0)
    if not of(said, Kill):
        said = world.tick(6.0)
    assert [type(effect) for effect in said] == [Kill]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_written_call_of_a_draining_worker_takes_it_with_it_when_no_neighbour_is_left(slots: int) -> None:
    world = World.ready(1, slots=slots)
    lease = world.checkout()
    world.do(Resize("default", 0))
    assert world.states() == {1: "draining"}
    said = world.cancel(lease, written=True)
    assert len(of(said, Kill)) == 1
    assert of(said, Stop) == []


def test_an_unwritten_call_of_a_draining_worker_lets_it_stop_in_peace() -> None:
    world = World.ready(1)
    lease = world.checkout(now=1.0)
    world.do(Resize("default", 0))
    assert world.cancel(lease, now=2.0) == [Stop(1, "resized", 7.0)]


def test_a_written_call_of_a_draining_worker_leaves_it_to_the_neighbour() -> None:
    world = World.ready(1, slots=2)
    lease, neighbour = world.checkouts(2)
    world.do(Resize("default", 0))
    assert of(world.cancel(lease, written=True), Kill, Stop) == []
    assert of(world.checkin(neighbour), Kill) == [Kill(1, "resized")]


@pytest.mark.parametrize("written", [False, True])
def test_cancelling_a_call_whose_worker_is_gone_or_going_has_no_effect(written: bool) -> None:
    world = World.ready(2)
    one, two = world.checkouts(2)
    world.exit(world.worker_of(one))
    assert world.cancel(one, written=written) == []
    world.checkin(two, "lost")
    three = world.checkout()
    assert world.waiting(three)
    assert world.cancel(two, written=written) == []


def test_cancelling_a_call_whose_worker_is_being_killed_kills_it_no_second_time() -> None:
    world = World.ready(1)
    lease = world.checkout()
    assert of(world.do(WorkerUnwell(1, "killed")), Kill) == [Kill(1, "killed")]
    assert world.cancel(lease, written=True) == []
    assert lease not in world.core.leases


def test_a_settled_slot_is_believed_only_for_the_call_it_was_left_by() -> None:
    world = World.ready(1, slots=2)
    lease, other = world.checkouts(2)
    assert world.do(SlotSettled(1, 1, other)) == [], "it is leased"
    world.cancel(lease, written=True)
    for command in (SlotSettled(1, 0, other), SlotSettled(1, 1, lease), SlotSettled(1, 7, lease), SlotSettled(9, 0, 1)):
        assert world.do(command) == []
        assert world.slots(1) == ["abandoned", "leased"]
    assert world.do(SlotSettled(1, -2, lease)) == []
    assert world.slots(1) == ["abandoned", "leased"]
    world.do(SlotSettled(1, 0, lease))
    assert world.slots(1) == ["idle", "leased"]
    assert world.do(SlotSettled(1, 0, lease)) == []


def test_a_settled_slot_of_a_worker_that_is_being_killed_is_not_lent() -> None:
    world = World.ready(1, cancel_grace_s=1.0)
    lease = world.checkout(cancellable=True)
    world.cancel(lease, written=True, now=1.0)
    world.tick(2.0)
    waiter = world.checkout()
    assert world.do(SlotSettled(1, 0, lease)) == []
    assert world.waiting(waiter)


def test_an_abandoned_calls_grace_is_over_while_its_worker_drains_already() -> None:
    world = World.ready(1, slots=2, grace_s=5.0)
    lease, neighbour = world.checkouts(2)
    world.cancel(lease, written=True, why="timeout", now=1.0)
    world.do(Resize("default", 0), 2.0)
    assert world.tick(6.0) == []
    assert world.checkin(neighbour, now=8.0) == [Kill(1, "resized")]


def test_an_abandoned_call_has_until_grace_s_after_its_deadline() -> None:
    world = World.ready(1, slots=2, grace_s=5.0)
    lease, _ = world.checkout(deadline=60.0), world.checkout()
    world.cancel(lease, written=True, now=1.0)
    world.run_until(64.9)
    assert world.states() == {1: "ready"}
    world.run_until(65.0)
    assert world.states() == {1: "draining"}


@pytest.mark.parametrize(("taken", "run", "cancelled"), [(False, True, True), (True, False, False), (True, None, True)])
def test_whether_a_run_in_a_lease_can_be_cancelled_is_the_runs_own(
    taken: bool, run: bool | None, cancelled: bool
) -> None:
    world = World.ready(1)
    lease = world.checkout(cancellable=taken)
    world.do(RunStarted(lease, "p", run))
    assert world.do(Cancel(lease, written=True)) == expected_slot_and_effects(lease, 1, cancelled)[1]
