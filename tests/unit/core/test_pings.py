"""Idle workers are pinged; one that does not answer is removed; a busy one is judged by its call's deadline."""

from __future__ import annotations

import pytest

from dspool.pool.core.commands import Kill, Probe, ProbeAnswered, Resize, Spawn, WorkerUnwell
from tests.unit.core.world import World

pytestmark = pytest.mark.unit


def test_a_worker_is_pinged_when_it_was_idle_for_ping_interval_s_and_again_after_that() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    world.run(program="p", now=0.0)
    assert world.tick(29.9) == []
    assert world.tick(30.0) == [Probe(1)]
    assert world.do(ProbeAnswered(1, ok=True), 30.1) == []
    assert world.tick(60.0) == [Probe(1)]


def test_a_worker_that_ran_nothing_yet_is_pinged_a_second_after_it_became_ready() -> None:
    world = World.ready(2, ping_interval_s=30.0)
    good = world.run(program="p", now=0.5)
    assert world.tick(0.9) == []
    assert world.tick(1.0) == [Probe(3 - good)]
    assert world.do(ProbeAnswered(3 - good, ok=True), 1.1) == []
    assert world.run_until(30.4) < 10, "from now on it has the interval of all others"
    assert world.tick(30.5) == [Probe(good)]


def test_a_first_call_that_takes_longer_than_a_second_is_left_in_peace() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    lease = world.checkout(program="p", now=0.5)
    assert world.tick(1.0) == []
    assert world.tick(2.0) == []
    world.checkin(lease, now=2.5)
    assert world.tick(32.4) == []
    assert world.tick(32.5) == [Probe(1)]


def test_only_idle_workers_are_pinged() -> None:
    world = World.ready(2, ping_interval_s=30.0)
    busy = world.worker_of(world.checkout())
    assert world.tick(30.0) == [Probe(3 - busy)]


def test_a_ping_counts_from_the_end_of_the_last_call() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    world.run(program="p", now=0.0)
    world.run(now=20.0)
    assert world.tick(30.0) == []
    assert world.tick(49.9) == []
    assert world.tick(50.0) == [Probe(1)]


def test_pings_leave_the_order_of_the_workers_alone() -> None:
    world = World.ready(3, ping_interval_s=30.0)
    last = world.run()
    world.tick(30.0)
    for worker_id in (1, 2, 3):
        world.do(ProbeAnswered(worker_id, ok=True))
    assert world.run() == last


def test_ping_failures_pings_in_a_row_without_an_answer_remove_the_worker() -> None:
    world = World.ready(1, ping_interval_s=30.0, ping_failures=3)
    world.run(program="p", now=0.0)
    world.tick(30.0)
    assert world.do(ProbeAnswered(1, ok=False), 35.0) == [Probe(1)]
    assert world.do(ProbeAnswered(1, ok=False), 40.0) == [Probe(1)]
    (kill,) = world.do(ProbeAnswered(1, ok=False), 45.0)
    assert isinstance(kill, Kill)
    assert (kill.reason, kill.dump) == ("hung", True)
    assert "3 pings in a row" in kill.detail
    assert world.exit(1, "hung") == [Spawn(2, "default")]


def test_a_pong_in_between_starts_the_count_over() -> None:
    world = World.ready(1, ping_interval_s=30.0, ping_failures=2)
    for now in (30.0, 60.0, 90.0):
        world.tick(now)
        assert world.do(ProbeAnswered(1, ok=False), now + 5.0) == [Probe(1)]
        assert world.do(ProbeAnswered(1, ok=True), now + 6.0) == []
    assert world.states() == {1: "ready"}


def test_a_missed_ping_of_a_worker_that_was_lent_meanwhile_does_not_count() -> None:
    world = World.ready(1, ping_interval_s=30.0, ping_failures=1)
    world.tick(30.0)
    world.checkout()
    assert world.do(ProbeAnswered(1, ok=False), 35.0) == []
    assert world.core.workers[1].missed_pings == 0


def test_an_answer_that_nobody_asked_for_is_ignored() -> None:
    world = World.ready(1, ping_failures=1)
    assert world.do(ProbeAnswered(1, ok=False)) == []
    assert world.do(ProbeAnswered(9, ok=False)) == []


def test_a_worker_is_not_pinged_twice_at_a_time() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    world.tick(30.0)
    assert world.tick(60.0) == []


def test_a_worker_that_leaves_is_not_pinged() -> None:
    world = World.ready(2, ping_interval_s=30.0)
    world.do(WorkerUnwell(1, "killed"), 1.0)
    assert Probe(1) not in world.tick(30.0)
    assert Probe(2) in world.said


def test_without_an_interval_nobody_is_pinged() -> None:
    world = World.ready(1, ping_interval_s=None)
    assert world.run_until(10_000.0) <= 1


def test_a_worker_found_unwell_is_removed_for_that_reason_in_any_state_and_once() -> None:
    world = World(workers=1)
    world.tick(0.0)
    assert world.do(WorkerUnwell(1, "protocol_error", "garbage")) == [Kill(1, "protocol_error", "garbage")]
    assert world.do(WorkerUnwell(1, "protocol_error", "garbage")) == []
    assert world.do(WorkerUnwell(9, "hung")) == []


def test_an_answer_from_a_worker_that_drains_is_ignored() -> None:
    world = World.ready(1, ping_interval_s=30.0, ping_failures=1)
    world.tick(30.0)
    world.checkout()
    world.do(Resize("default", 0))
    assert world.do(ProbeAnswered(1, ok=False)) == []
    assert world.states() == {1: "draining"}
