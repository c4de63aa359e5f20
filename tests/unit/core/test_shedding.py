"""Overload: a queue that only stands is shed, one that a burst left behind is not. Off unless it is asked for."""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dspool.options import PoolOptions, WorkerGroup
from dspool.pool.core import invariants
from dspool.pool.core.commands import (
    Checkin,
    Checkout,
    Close,
    Drain,
    Grant,
    Pause,
    Refusal,
    Reject,
    Resize,
    Resume,
    Spawn,
    Tick,
    WorkerUnwell,
)
from dspool.pool.core.shedding import Line
from dspool.pool.core.snapshot import pool_stats
from dspool.pool.core.states import LeaseState
from dspool.testing.simulation import SimWorld, swarm
from dspool.types import Remove
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit

GROUPS = [
    WorkerGroup(name="cpu", workers=1, labels=frozenset({"cpu"})),
    WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu"})),
]


def shedding(workers: Any = 1, **options: Any) -> World:
    """A pool whose waits are good up to 1 s, and that sheds after 2 s without a good one."""
    return World.ready(workers, **{"shed_target_s": 1.0, "shed_interval_s": 2.0, **options})


def is_shedding(world: World) -> bool:
    return pool_stats(world.core, "w", world.now).shedding


def overloaded() -> tuple[World, int, int]:
    """At 3.0: a worker is busy since 0.0, a call was shed, one waits since 2.5. Gives holder and waiter."""
    world = shedding()
    holder = world.checkout(now=0.0)
    world.checkout(now=0.0)
    waiter = world.checkout(now=2.5)
    world.run_until(3.0)
    assert is_shedding(world)
    return world, holder, waiter


# --- when it begins ---------------------------------------------------------------------------------------------------


def test_without_a_target_nobody_is_shed_and_nothing_is_kept() -> None:
    world = World.ready(1)
    _, waiter = world.checkouts(2)
    world.run_until(10_000.0)
    assert world.waiting(waiter)
    assert world.core.lines is None
    assert world.core.counters.shed == 0
    assert not is_shedding(world)


def test_a_queue_that_nobody_serves_is_shed_once_it_was_over_the_target_for_an_interval() -> None:
    world = shedding()
    holder, waiter = world.checkouts(2, now=0.0)
    assert world.core.next_deadline() == 3.0, "over the target from 1.0 on, for 2 s"
    assert world.tick(2.9) == []
    assert not is_shedding(world)
    assert world.tick(3.0) == [Reject(waiter)]
    assert world.granted(holder)
    refusal = world.refusal(waiter)
    assert refusal.code == "PoolSaturated"
    assert refusal.message == (
        "is overloaded: for 2 s or longer nobody got a worker within shed_target_s=1; this call has waited 3.000 s, "
        "more than twice that, and is not run; calls that wait: 1; ready workers: 1; try again later, or add workers"
    )
    assert world.core.counters.shed == 1
    assert world.core.counters.rejected == {"PoolSaturated": 1}


def test_only_those_who_waited_more_than_twice_the_target_are_refused_and_the_others_when_they_have() -> None:
    world = shedding()
    _, old = world.checkouts(2, now=0.0)
    young, younger = world.checkout(now=1.5), world.checkout(now=2.95)
    assert world.tick(3.0) == [Reject(old)]
    upcoming = world.core.next_deadline()
    assert upcoming is not None
    assert 3.5 < upcoming <= 3.61, "at most a tenth of the target late"
    assert world.tick(upcoming) == [Reject(young)]
    assert world.waiting(younger)
    world.run_until(5.1)
    assert world.refused(younger) == "PoolSaturated"


def test_its_begin_and_its_end_are_told() -> None:
    world = shedding()
    holder, _ = world.checkouts(2, now=0.0)
    waiter = world.checkout(now=2.5)
    world.tick(3.0)
    began = world.reports[0]
    about = {"groups": ("default",), "priority": 0, "target_s": 1.0}
    assert (began.event, began.fields) == ("pool.shedding_began", {**about, "waiting": 2})
    assert world.checkin(holder, now=3.1) == [Grant(waiter)]
    (ended,) = world.reports
    assert (ended.event, ended.fields) == ("pool.shedding_ended", {**about, "shed": 1})


@pytest.mark.parametrize("wait_s", [1.0, 1.125])
def test_calls_that_are_served_late_are_as_bad_as_calls_that_are_not_served(wait_s: float) -> None:
    world = shedding(max_waiting=10)
    holder = world.checkout(now=0.0)
    waiters: list[tuple[float, int]] = []
    for eighth in range(40):
        now = eighth / 8
        waiters.append((now, world.checkout(now=now)))
        if now >= wait_s and waiters[0][0] <= now - wait_s:
            world.checkin(holder, now=now)
            holder = waiters.pop(0)[1]
            assert world.granted(holder)
        world.tick(now)
    assert is_shedding(world) == (wait_s > 1.0)


def test_a_burst_that_is_worked_off_within_the_interval_is_left_alone() -> None:
    world = shedding()
    leases = world.checkouts(12, now=0.0)
    for number, lease in enumerate(leases):
        assert world.granted(lease)
        world.run_until((number + 1) / 4)
        world.checkin(lease)
    assert world.core.counters.shed == 0
    assert world.core.counters.queue_wait_s_max > 2.0, "some have waited longer than twice the target"


def test_one_good_wait_within_the_interval_shows_that_the_queue_moves() -> None:
    world = shedding()
    holder = world.checkout(session="s", affinity="strict", now=0.0)
    world.do(Resize("default", 2), 0.0)
    world.all_ready()
    stuck = world.checkout(session="s", affinity="strict", now=0.0)
    for now in (1.0, 2.0, 3.0, 4.0, 5.0):
        world.run_until(now)
        world.run(program="p")
    assert world.waiting(stuck), "it waits for its own worker, by its own wish"
    assert world.core.counters.shed == 0
    assert world.granted(holder)


def test_while_a_slot_is_idle_nobody_would_have_to_wait() -> None:
    world = shedding(2)
    world.checkout(session="s", affinity="strict", now=0.0)
    stuck = world.checkout(session="s", affinity="strict", now=0.0)
    world.run_until(20.0)
    assert world.waiting(stuck)
    world.checkout(now=20.0)
    world.run_until(22.1)
    assert world.refused(stuck) == "PoolSaturated", "now all workers are busy, and it is one of those who wait"


# --- when it ends -----------------------------------------------------------------------------------------------------


def test_a_wait_at_the_target_ends_it() -> None:
    world, holder, waiter = overloaded()
    assert world.checkin(holder, now=3.5) == [Grant(waiter)]
    assert world.events == ["pool.shedding_ended"]
    assert not is_shedding(world)


def test_a_wait_over_the_target_does_not_end_it_and_nobody_is_served_past_twice_the_target() -> None:
    world = shedding()
    holder, _ = world.checkouts(2, now=0.0)
    late, next_one = world.checkout(now=1.0), world.checkout(now=2.0)
    world.checkout(now=2.5)
    world.tick(3.0)
    assert world.checkin(holder, now=3.05) == [Reject(late), Grant(next_one)]
    assert is_shedding(world)


def test_a_newcomer_who_is_served_at_once_ends_it() -> None:
    world = shedding(2)
    world.checkouts(2, session="s", affinity="strict", now=0.0)
    world.checkout(now=0.0)
    world.checkout(session="s", affinity="strict", now=2.9)
    world.tick(3.0)
    assert is_shedding(world)
    world.checkin(3, now=3.1)
    assert is_shedding(world)
    assert world.granted(world.checkout(now=3.2))
    assert world.events == ["pool.shedding_ended"]


def test_an_emptied_line_ends_it_and_the_next_burst_has_its_interval_again() -> None:
    world, _, waiter = overloaded()
    world.cancel(waiter, now=3.2)
    assert world.events == ["pool.shedding_ended"]
    waiter = world.checkout(now=10.0)
    world.run_until(12.9)
    assert world.waiting(waiter)
    world.run_until(13.0)
    assert world.refused(waiter) == "PoolSaturated"


def test_a_line_that_nobody_waits_in_is_forgotten() -> None:
    world = shedding()
    holder, waiter = world.checkouts(2, now=0.0)
    world.cancel(waiter, now=0.5)
    assert world.run_until(100.0) == 1
    assert world.core.lines is not None
    assert (world.core.lines.table, world.core.lines.by_number) == ({}, {})
    assert world.granted(holder)


def test_waiters_who_come_and_go_leave_nothing_behind_a_stuck_one() -> None:
    world = shedding(2)
    world.checkout(session="s", affinity="strict", now=0.0)
    world.checkout(session="s", affinity="strict", now=0.0)
    world.checkout(now=0.0)
    for number in range(200):
        world.cancel(world.checkout(now=number / 1000))
    assert world.core.lines is not None
    (line,) = world.core.lines.table.values()
    assert len(line.waiters) == 1


# --- who is judged ----------------------------------------------------------------------------------------------------


def test_the_few_who_go_first_do_not_hide_that_all_others_only_stand() -> None:
    world = shedding()
    holder, low = world.checkout(now=0.0), world.checkout(now=0.0)
    for tenth in range(1, 36):
        now = tenth / 10
        urgent = world.checkout(priority=-1, now=now)
        assert world.checkin(holder, now=now) == [Grant(urgent)]
        holder = urgent
        world.run_until(now)
    assert world.refused(low) == "PoolSaturated"
    assert world.core.counters.shed == 1


def test_those_whose_group_keeps_up_are_not_shed_for_another_groups_sake() -> None:
    world = shedding(GROUPS)
    world.checkout(require="gpu", now=0.0)
    stuck = world.checkout(require="gpu", now=0.0)
    holder = world.checkout(require="cpu", now=0.0)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        waiter = world.checkout(require="cpu", now=now)
        assert world.checkin(holder, now=now + 0.2) == [Grant(waiter)]
        holder = waiter
    world.run_until(3.5)
    assert world.refused(stuck) == "PoolSaturated"
    assert world.core.counters.shed == 1


@pytest.mark.parametrize("affinity", ["hint", "strict"])
def test_a_call_that_waits_for_its_sessions_worker_is_shed_like_the_others(affinity: Any) -> None:
    world = shedding(2)
    world.checkout(session="s", now=0.0)
    world.checkout(now=0.0)
    waiters = [world.checkout(session="s", affinity=affinity, now=0.0), world.checkout(now=0.0)]
    world.run_until(3.0)
    assert [world.refused(lease) for lease in waiters] == ["PoolSaturated"] * 2
    assert not world.core.sessions.table["s"].queued


def test_a_call_that_came_back_from_a_verdict_is_not_shed() -> None:
    world = shedding(2)
    held, other = world.checkouts(2, now=0.0)
    waiter = world.checkout(now=0.0)
    world.skip(held, now=0.1)
    assert world.granted(waiter)
    assert world.waiting(held), "it waits for the other worker"
    newcomer = world.checkout(now=0.2)
    world.run_until(4.0)
    assert world.refused(newcomer) == "PoolSaturated"
    assert world.waiting(held)
    assert world.checkin(other) == [Grant(held)]


def test_a_retry_is_not_shed_and_its_place_at_the_front_shows_nothing() -> None:
    world = shedding()
    first = world.checkout(now=0.0)
    world.checkout(now=0.0)
    world.checkout(now=2.5)
    world.run_until(3.0)
    retry = world.checkout(now=3.0, call_id=first, retry=True)
    assert world.checkin(first, now=3.1) == [Grant(retry)]
    assert is_shedding(world), "0.1 s is a good wait, but not a newcomer's"
    again = world.checkout(now=3.1, call_id=retry, retry=True)
    world.run_until(20.0)
    assert world.waiting(again)


def test_a_call_that_moves_in_the_queue_keeps_its_place_in_the_line() -> None:
    world = shedding(2, affinity_wait_s=0.5)
    world.checkout(session="s", now=0.0)
    world.checkout(now=0.0)
    moving, other = world.checkout(session="s", now=0.1), world.checkout(now=0.2)
    world.run_until(1.0)
    assert world.core.lines is not None
    (line,) = world.core.lines.table.values()
    assert list(line.waiters) == [moving, other]


# --- what is no overload ----------------------------------------------------------------------------------------------


def test_a_call_that_waits_for_the_first_worker_to_start_is_not_shed() -> None:
    world = World(workers=1, lazy=True, shed_target_s=1.0, shed_interval_s=2.0)
    first, second = world.checkouts(2, now=0.0)
    world.run_until(29.5)
    assert world.become_ready(1, 29.5) == [Grant(first)]
    world.run_until(31.4)
    assert world.waiting(second), "only since a worker is ready can it be said that it is too slow"
    world.run_until(31.5)
    assert world.refused(second) == "PoolSaturated"


def test_shedding_ends_when_no_worker_is_left_to_be_too_slow() -> None:
    world = shedding()
    world.checkouts(2, now=0.0)
    waiter = world.checkout(now=2.0)
    world.tick(3.0)
    world.do(WorkerUnwell(1, "killed"), 3.1)
    world.run_until(9.0)
    assert world.waiting(waiter)
    assert not is_shedding(world)
    world.checkin(1, "lost")
    world.exit(1, "killed", 9.0)
    assert world.become_ready(2, 9.0) == [Grant(waiter)]


@pytest.mark.parametrize("stop", [Pause(), Drain()])
def test_nobody_is_shed_while_the_pool_is_paused_or_draining_and_waits_until_then_say_nothing(stop: Any) -> None:
    world = shedding()
    world.checkout(now=0.0)
    waiter = world.checkout(now=0.0)
    world.do(stop, 0.5)
    world.run_until(50.0)
    assert world.waiting(waiter)
    world.do(Resume(), 50.0)
    world.run_until(51.9)
    assert world.waiting(waiter)
    world.run_until(52.0)
    assert world.refused(waiter) == "PoolSaturated"


def test_to_resume_a_pool_that_goes_on_says_nothing_and_ends_no_shedding() -> None:
    world, _, _ = overloaded()
    assert world.do(Resume(), 3.1) == []
    assert is_shedding(world)


def test_a_pause_ends_the_shedding() -> None:
    world = shedding()
    world.checkouts(2, now=0.0)
    waiter = world.checkout(now=2.0)
    world.tick(3.0)
    world.do(Pause(), 3.1)
    world.do(Resume(), 3.2)
    assert "pool.shedding_ended" in world.events
    world.run_until(5.1)
    assert world.waiting(waiter)


def test_a_pool_that_closes_refuses_its_waiters_as_ever() -> None:
    world, holder, waiter = overloaded()
    assert Reject(waiter) in world.do(Close(10.0), 3.5)
    assert world.refused(waiter) == "PoolClosed"
    world.checkin(holder, now=4.0)
    world.run_until(9.0)


def test_a_call_that_is_late_times_out_and_is_not_shed() -> None:
    world = shedding()
    holder, _ = world.checkouts(2, now=0.0)
    late, waiter = world.checkout(now=0.9, deadline=3.0), world.checkout(now=2.9)
    world.tick(3.0)
    assert world.refused(late) == "PoolSaturated"
    late = world.checkout(now=3.0, deadline=3.05)
    assert world.checkin(holder, now=3.1) == [Grant(waiter)]
    assert world.do(Checkin(waiter, "ok", Remove("bad")), 3.2) != []
    assert world.waiting(late), "it stands behind nobody and has no worker"
    world.exit(1, "removed")
    assert world.become_ready(2, 3.3) == [Reject(late)]
    assert world.refused(late) == "QueueTimeout"


def test_the_full_queue_refuses_at_once_whatever_is_shed() -> None:
    world = shedding(max_waiting=2)
    holder, *waiters = world.checkouts(3, now=0.0)
    assert world.refused(world.checkout(now=0.0)) == "PoolSaturated"
    assert world.core.counters.shed == 0
    world.run_until(3.0)
    assert [world.refused(lease) for lease in waiters] == ["PoolSaturated"] * 2
    assert world.waiting(world.checkout(now=3.0)), "there is room again"
    assert world.granted(holder)


def test_overflow_is_started_before_anybody_is_shed() -> None:
    world = shedding(overflow=1)
    _, waiter = world.checkouts(2, now=0.0)
    assert of(world.said, Spawn) == [Spawn(2, "default")]
    assert world.become_ready(2, 2.0) == [Grant(waiter)]
    assert world.core.counters.shed == 0


# --- over a longer time -----------------------------------------------------------------------------------------------


def offer(world: World, per_s: float, begin: float, end: float, run_s: float) -> tuple[int, list[float]]:
    """Calls at an even rate, each run_s long: how many were done, and the waits of those that were granted."""
    done, waits, arrived = 0, [], begin
    ends: list[tuple[float, int]] = []
    waiting: set[int] = set()
    while arrived < end or ends:
        tick = world.core.next_deadline()
        now = min(arrived if arrived < end else end * 10, ends[0][0] if ends else end * 10, tick or end * 10)
        if ends and ends[0][0] == now:
            lease = heapq.heappop(ends)[1]
            world.checkin(lease, now=now)
            done += 1
        elif arrived == now:
            waiting.add(world.checkout(now=now, program="p"))
            arrived += 1 / per_s
        else:
            world.tick(now)
        for lease in [lease for lease in waiting if not world.waiting(lease)]:
            waiting.remove(lease)
            if world.granted(lease):
                waits.append(now - world.lease(lease).created_at)
                heapq.heappush(ends, (now + run_s, lease))
            else:
                world.cancel(lease)
    return done, waits


@pytest.mark.slow
def test_under_ten_times_the_load_the_workers_stay_busy_and_nobody_is_served_late_and_it_is_over_soon() -> None:
    world = shedding(2, shed_target_s=0.5, shed_interval_s=0.5)
    done, waits = offer(world, 80.0, 0.0, 8.0, 0.25)
    assert done >= 0.99 * 8 * 8, "2 workers, 4 calls a second each, for 8 s"
    assert max(waits) <= 1.0
    assert world.core.counters.shed + done == 640
    shed = world.core.counters.shed
    _, waits = offer(world, 6.0, 11.0, 15.0, 0.25)
    assert max(waits) == 0.0
    assert world.core.counters.shed == shed
    assert not is_shedding(world)


def calls_to_shed(waiters: int) -> int:
    """How many functions are called to refuse so many waiters in one step."""
    world = World(workers=1, shed_target_s=1.0, shed_interval_s=2.0, max_waiting=waiters)
    core, calls = world.core, 0
    world.tick(0.0)
    world.all_ready()
    for number in range(1, waiters + 2):
        core.handle(Checkout(number, number), 0.0)
    assert core.queue.count == waiters

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        effects = core.handle(Tick(), 3.0)
    finally:
        sys.setprofile(before)
    assert len(of(effects, Reject)) == waiters
    return calls


def test_ten_times_as_many_waiters_are_refused_in_one_step_with_ten_times_the_work() -> None:
    assert calls_to_shed(5000) <= 11 * calls_to_shed(500)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30_000, 30_016))
def test_a_simulated_pool_that_sheds_holds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(rng: random.Random) -> PoolOptions:
        more = random.Random(seed)
        target_s, interval_s = more.choice((0.05, 0.3, 1.0)), more.choice((0.05, 0.5, 2.0))
        return replace(swarm.draw_options(rng), shed_target_s=target_s, shed_interval_s=interval_s)

    monkeypatch.setattr("dspool.testing.simulation.world.draw_options", drawn)
    first = SimWorld(seed)
    assert first.run() == SimWorld(seed, checked=False).run()


# --- the invariants can fail ------------------------------------------------------------------------------------------


def _the_line(world: World) -> Line:
    assert world.core.lines is not None
    (line,) = world.core.lines.table.values()
    return line


def out_of_line(world: World) -> None:
    _the_line(world).waiters.popitem()


def disordered(world: World) -> None:
    _the_line(world).waiters.move_to_end(2)


def never_looked_at(world: World) -> None:
    world.core.timers.disarm("shed", _the_line(world).number)


def shed_though_nobody_waits(world: World) -> None:
    line = _the_line(world)
    for lease_id in list(line.waiters):
        world.cancel(lease_id)
    line.shedding = True


def granted_before(world: World) -> None:
    world.lease(2).skipped = {7: "no"}


@pytest.mark.parametrize("breach", [out_of_line, disordered, never_looked_at, shed_though_nobody_waits, granted_before])
def test_a_breach_of_the_lines_is_noticed(breach: Callable[[World], None]) -> None:
    world = shedding()
    world.checkouts(2, now=0.0)
    world.checkout(now=0.5)
    invariants.check(world.core)
    breach(world)
    with pytest.raises(AssertionError, match="line"):
        invariants.check(world.core)


@pytest.mark.parametrize("target_s", [1.0, None])
def test_a_waiter_who_is_shed_too_soon_or_in_a_pool_that_does_not_shed_is_noticed(target_s: float | None) -> None:
    world = World.ready(1, shed_target_s=target_s)
    _, waiter = world.checkouts(2, now=0.0)
    world.tick(0.5)
    lease = world.lease(waiter)
    lease.state, lease.refusal = LeaseState.CLOSED, Refusal("PoolSaturated", "is overloaded")
    with pytest.raises(AssertionError, match=r"0\.5 s"):
        invariants.check_effects(world.core, [Reject(waiter)])
