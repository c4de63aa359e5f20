"""Due workers: marked for many reasons, lent until their replacement is ready, kept where it can't start."""

from __future__ import annotations

from typing import Any

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    Command,
    Grant,
    Kill,
    Recycle,
    Reload,
    Renew,
    Resize,
    RssSampled,
    Spawn,
    Stop,
    WorkerUnwell,
)
from tests.unit.core.world import World, of

pytestmark = pytest.mark.unit

MIB = 2**20


def make_due(world: World, reason: str) -> None:
    """Worker 1 becomes due at 100.0, in this way."""
    world.now = 100.0
    if reason == "recycle_requests":
        world.run(program="p")
    elif reason == "recycle_age":
        world.tick(100.0)
    elif reason == "recycle_memory":
        world.run(program="p")
        world.do(RssSampled(1, 900 * MIB))
        world.do(RssSampled(1, 900 * MIB))
    else:
        world.do(Reload())


WHYS = [
    ("recycle_requests", {"max_requests": 1}),
    ("recycle_age", {"max_lifetime_s": 100.0}),
    ("recycle_memory", {"max_rss_bytes": 500 * MIB}),
    ("reloaded", {}),
]


def why_due(world: World) -> str:
    """The detail of the last step's one worker.due."""
    (told,) = [report for report in world.reports if report.event == "worker.due"]
    return str(told.fields["detail"])


@pytest.mark.parametrize(("reason", "options"), WHYS)
def test_a_due_worker_is_lent_until_its_replacement_is_ready_and_then_stopped(reason: Any, options: Any) -> None:
    world = World.ready(1, **options)
    make_due(world, reason)
    assert of(world.said, Spawn) == [Spawn(2, "default")]
    assert world.core.workers[1].due == reason
    assert world.run() == 1
    assert world.become_ready(2, 101.0) == [Stop(1, reason, 106.0)]
    assert world.run() == 2
    assert world.exit(1, reason) == []
    assert world.core.counters.replaced == 1
    assert world.core.counters.start_failures == 0


def test_the_event_says_precisely_why_a_worker_is_due() -> None:
    world = World.ready(1, max_requests=2)
    world.run(program="p")
    world.run(program="p")
    limit = "less up to 10 % of jitter)"
    assert why_due(world) == f"it answered 2 calls; its limit is 2 (max_requests=2, {limit}"
    world = World.ready(1, max_lifetime_s=100.0)
    world.tick(97.0)
    assert why_due(world) == f"it was ready for 97 s (max_lifetime_s=100.0, {limit}"
    world = World.ready(1, max_rss_bytes=1_000_000)
    world.run(program="p")
    for _ in range(2):
        world.do(RssSampled(1, 2_000_000))
    assert why_due(world) == (
        f"it has 2,000,000 bytes resident; its limit is 938,197 (max_rss_bytes=1,000,000, {limit}"
    )
    world = World.ready(1, max_rss_growth_bytes=1_000_000)
    world.run(program="p")
    for size in (500_000, 2_000_000, 2_000_000):
        world.do(RssSampled(1, size))
    assert why_due(world) == (
        "it has 2,000,000 bytes resident, 1,500,000 more than after its first call; "
        f"its limit is 938,197 more (max_rss_growth_bytes=1,000,000, {limit}"
    )
    asked: list[tuple[Command, str]] = [
        (Recycle(1), "recycle() was called"),
        (Recycle(1, "its template died"), "its template died"),
        (Reload(), "reload() was called"),
    ]
    for command, detail in asked:
        world = World.ready(1)
        world.do(command)
        assert why_due(world) == detail


def test_a_worker_that_is_due_says_so_once_and_is_reloaded_all_the_same() -> None:
    world = World.ready(1, max_requests=1)
    world.run(program="p")
    reasons = [world.core.workers[1].due]
    world.do(Recycle(1))
    assert "worker.due" not in world.events
    world.do(Reload())
    reasons.append(world.core.workers[1].due)
    assert reasons == ["recycle_requests", "reloaded"], "whoever waits for the reload waits for this one too"


@pytest.mark.parametrize(("reason", "options"), WHYS)
def test_a_recycled_worker_is_no_failure_of_any_kind(reason: Any, options: Any) -> None:
    world = World.ready(1, max_restarts=0, quarantine_after=1, **options)
    make_due(world, reason)
    lease = world.checkout(program="p")
    world.become_ready(2)
    world.checkin(lease)
    world.exit(1, reason)
    assert world.events == ["worker.ended"]
    assert world.core.counters.exits == {reason: 1}
    assert world.core.counters.start_failures == 0
    assert world.core.groups["default"].breaker.state == "closed"
    assert world.core.quarantine.held() == ()


def test_a_busy_due_worker_finishes_its_call_first() -> None:
    world = World.ready(1)
    lease = world.checkout()
    world.do(Recycle(1))
    assert world.become_ready(2) == []
    assert world.states() == {1: "draining", 2: "ready"}
    assert world.checkin(lease, now=3.0) == [Stop(1, "reloaded", 8.0)]


def test_a_replacement_serves_the_waiters() -> None:
    world = World.ready(1)
    _, waiter = world.checkouts(2)
    world.do(Recycle(1))
    assert world.become_ready(2) == [Grant(waiter)]


def test_a_worker_is_due_after_at_most_max_requests_and_at_least_nine_tenths_of_them() -> None:
    world = World.ready(20, max_requests=100)
    limits = {worker.request_limit for worker in world.workers()}
    assert len(limits) > 5, "they don't all recycle together"
    assert all(90 <= limit <= 100 for limit in limits)


def test_one_sample_over_the_memory_limit_is_not_enough() -> None:
    world = World.ready(1, max_rss_bytes=500 * MIB)
    world.run(program="p")
    assert world.do(RssSampled(1, 900 * MIB)) == []
    assert world.do(RssSampled(1, 100 * MIB)) == []
    assert world.do(RssSampled(1, 900 * MIB)) == []
    assert world.core.workers[1].due is None
    assert world.do(RssSampled(1, 901 * MIB)) == [Spawn(2, "default")]
    assert world.core.workers[1].rss_bytes == 901 * MIB


def test_a_worker_that_ran_nothing_yet_is_not_replaced_for_its_memory_since_another_would_be_as_large() -> None:
    world = World.ready(1, max_rss_bytes=500 * MIB)
    for events in ([], ["worker.too_large"], [], []):
        assert world.do(RssSampled(1, 900 * MIB)) == []
        assert world.events == events
    lease = world.checkout()
    assert world.do(RssSampled(1, 900 * MIB)) == [Spawn(2, "default")]
    assert world.core.workers[1].due == "recycle_memory"
    world.checkin(lease)


def baseline(world: World) -> int | None:
    """What worker 1's growth is counted from."""
    return world.core.workers[1].warm_rss_bytes


def test_growth_counts_from_the_first_sample_after_the_first_answered_call() -> None:
    world = World.ready(1, max_rss_growth_bytes=100 * MIB)
    world.do(RssSampled(1, 50 * MIB))
    lease = world.checkout(program="p")
    world.do(RssSampled(1, 900 * MIB))
    assert baseline(world) is None, "its first call is still loading things"
    world.checkin(lease)
    world.do(RssSampled(1, 400 * MIB))
    assert baseline(world) == 400 * MIB
    for _ in range(3):
        assert world.do(RssSampled(1, 489 * MIB)) == [], "it may grow by 100 MiB, less at most a tenth"
    world.do(RssSampled(1, 501 * MIB))
    world.do(RssSampled(1, 489 * MIB))
    assert world.do(RssSampled(1, 501 * MIB)) == [], "not two in a row"
    assert world.do(RssSampled(1, 502 * MIB)) == [Spawn(2, "default")]
    assert world.core.workers[1].due == "recycle_memory"


def test_a_busy_worker_that_grows_is_due_while_it_runs_and_goes_after_its_call() -> None:
    world = World.ready(1, max_rss_growth_bytes=100 * MIB)
    world.run(program="p")
    world.do(RssSampled(1, 400 * MIB))
    lease = world.checkout(program="p")
    world.do(RssSampled(1, 800 * MIB))
    assert world.do(RssSampled(1, 800 * MIB)) == [Spawn(2, "default")]
    assert world.become_ready(2, 3.0) == []
    assert world.states() == {1: "draining", 2: "ready"}
    assert world.checkin(lease, now=4.0) == [Stop(1, "recycle_memory", 9.0)]


def test_growth_is_limited_differently_for_each_worker() -> None:
    world = World.ready(20, max_rss_growth_bytes=100 * MIB)
    leases = world.checkouts(20, program="p")
    for lease in leases:
        world.checkin(lease)
    due_at = {}
    for worker_id in range(1, 21):
        world.do(RssSampled(worker_id, 0))
        for size in range(85 * MIB, 105 * MIB, MIB):
            world.do(RssSampled(worker_id, size))
            if worker_id not in due_at and world.core.workers[worker_id].due is not None:
                due_at[worker_id] = size
    assert len(set(due_at.values())) > 5
    assert all(90 * MIB <= size <= 102 * MIB for size in due_at.values())


def test_a_successor_has_a_baseline_of_its_own() -> None:
    world = World.ready(1, max_rss_growth_bytes=100 * MIB)
    world.run(program="p")
    for size in (400, 800, 800):
        world.do(RssSampled(1, size * MIB))
    world.become_ready(2)
    world.run(program="p")
    for size in (900, 950, 980):
        assert world.do(RssSampled(2, size * MIB)) == []
    assert world.core.workers[2].due is None


def test_memory_is_only_noted_where_it_is_not_limited() -> None:
    world = World.ready(1)
    for _ in range(3):
        assert world.do(RssSampled(1, 10**12)) == []
    assert world.core.workers[1].rss_bytes == 10**12
    assert world.do(RssSampled(9, 1)) == []


def test_a_reload_replaces_every_worker_one_at_a_time() -> None:
    world = World.ready(3)
    world.do(Reload())
    order: list[int] = []
    for _ in range(3):
        (starting,) = [worker for worker in world.workers() if worker.state == "starting"]
        (stop,) = world.become_ready(starting.worker_id)
        assert isinstance(stop, Stop)
        order.append(stop.worker_id)
        assert len([worker for worker in world.workers() if worker.state == "ready"]) == 3
        world.exit(stop.worker_id, "reloaded")
    assert sorted(order) == [1, 2, 3]
    assert world.core.counters.replaced == 3
    assert len(world.workers()) == 3


def test_a_reload_asks_for_fresh_templates_before_it_starts_anybody() -> None:
    world = World.ready(2)
    assert world.do(Reload()) == [Renew(), Spawn(3, "default")]


def test_a_worker_that_was_starting_during_a_reload_is_replaced_too() -> None:
    world = World(workers=1)
    world.tick(0.0)
    assert world.do(Reload()) == [Renew()]
    assert world.become_ready(1) == [Spawn(2, "default")]
    assert of(world.become_ready(2), Stop) == [Stop(1, "reloaded", 5.0)]


def test_due_workers_of_two_groups_are_replaced_one_at_a_time_too() -> None:
    world = World.ready([WorkerGroup(name="a", workers=1), WorkerGroup(name="b", workers=1)])
    world.do(Reload())
    assert len(of(world.said, Spawn)) == 1
    (spawn,) = of(world.said, Spawn)
    assert isinstance(spawn, Spawn)
    world.become_ready(spawn.worker_id)
    assert len(of(world.said, Spawn)) + len(world.workers()) >= 3


def test_a_worker_that_becomes_due_while_another_is_replaced_waits_for_its_turn() -> None:
    world = World.ready(2)
    world.do(Recycle(1))
    assert world.do(Recycle(2)) == []
    assert world.states() == {1: "ready", 2: "ready", 3: "starting"}
    assert world.become_ready(3) == [Stop(1, "reloaded", 5.0)]
    assert world.exit(1, "reloaded") == [Spawn(4, "default")]
    assert world.become_ready(4) == [Stop(2, "reloaded", 5.0)]


def test_a_due_worker_is_kept_if_its_replacement_cannot_start_and_another_is_tried() -> None:
    world = World.ready(1)
    world.do(Recycle(1))
    assert world.exit(2, "boot_error") == []
    assert world.states() == {1: "ready"}
    assert world.run() == 1
    world.run_until(1.0)
    assert world.states() == {1: "ready", 3: "starting"}
    assert of(world.become_ready(3), Stop) == [Stop(1, "reloaded", 6.0)]


def test_a_reload_whose_new_workers_cannot_start_keeps_the_old_ones_for_as_long_as_that_lasts() -> None:
    world = World.ready(2, max_restarts=2, restart_window_s=1000.0)
    for worker_id in (1, 2):
        world.run(program=f"p{worker_id}")
    world.do(Reload())
    for _ in range(9):
        (starting,) = [worker for worker in world.workers() if worker.state == "starting"]
        world.exit(starting.worker_id, "boot_error")
        assert world.states() == {1: "ready", 2: "ready"}
        held = world.checkouts(2)
        assert all(map(world.granted, held))
        for lease in held:
            world.checkin(lease)
        world.run_until(world.now + 31.0)
    for replaced in (1, 2):
        world.all_ready()
        world.run(program="p")
        assert world.states()[replaced] == "stopping"
        world.exit(replaced, "reloaded")
    assert list(world.states().values()) == ["ready", "ready"]


def test_a_due_worker_is_kept_if_its_replacement_is_too_slow() -> None:
    world = World.ready(1, start_timeout_s=10.0)
    world.do(Recycle(1), 1.0)
    assert [type(effect) for effect in world.tick(11.0)] == [Kill]
    assert world.run() == 1
    world.exit(2, "start_timeout")
    world.run_until(12.0)
    assert world.states() == {1: "ready", 3: "starting"}


def test_a_due_worker_is_kept_while_the_breaker_is_open() -> None:
    world = World.ready(1, max_restarts=0)
    world.do(Recycle(1))
    world.exit(2, "boot_error")
    assert world.core.groups["default"].breaker.state == "open"
    assert world.run() == 1
    world.run_until(29.0)
    assert world.states() == {1: "ready"}
    world.run_until(31.0)
    assert world.states() == {1: "ready", 3: "starting"}
    world.become_ready(3)
    assert world.states() == {1: "stopping", 3: "ready"}


def test_a_due_worker_that_dies_by_itself_makes_its_replacement_an_ordinary_worker() -> None:
    world = World.ready(1)
    world.run(program="p")
    world.do(Recycle(1))
    assert world.exit(1) == []
    assert world.become_ready(2) == []
    assert world.states() == {2: "ready"}


def test_a_due_worker_that_is_removed_makes_its_replacement_an_ordinary_worker() -> None:
    world = World.ready(2)
    world.do(Recycle(1))
    world.do(WorkerUnwell(1, "hung"))
    assert world.exit(1, "hung") == []
    assert world.become_ready(3) == []
    assert world.states() == {2: "ready", 3: "ready"}


def test_recycling_twice_or_what_is_not_there_or_not_ready_changes_nothing() -> None:
    world = World.ready(2)
    assert world.do(Recycle(9)) == []
    world.do(Recycle(1))
    assert world.do(Recycle(1)) == []
    world.do(WorkerUnwell(2, "killed"))
    assert world.do(Recycle(2)) == []


def test_an_overflow_worker_that_is_due_is_not_replaced() -> None:
    world = World.ready(1, overflow=1)
    world.checkouts(2)
    world.become_ready(2)
    assert world.do(Recycle(2)) == []
    assert world.states() == {1: "ready", 2: "draining"}
    assert world.checkin(2, now=1.0) == [Stop(2, "reloaded", 6.0)]


def test_an_overflow_worker_that_reached_max_requests_is_stopped_at_the_end_of_that_call() -> None:
    world = World.ready(1, overflow=1, max_requests=1)
    world.checkouts(2, program="p")
    world.become_ready(2)
    assert of(world.checkin(2, now=1.0), Stop) == [Stop(2, "recycle_requests", 6.0)]


def test_resizing_down_while_a_replacement_starts_leaves_the_right_number() -> None:
    world = World.ready(2)
    world.do(Recycle(1))
    world.do(Resize("default", 1))
    for worker_id, state in list(world.states().items()):
        if state == "stopping":
            world.exit(worker_id, "resized")
    world.all_ready()
    for worker_id, state in list(world.states().items()):
        if state == "stopping":
            world.exit(worker_id, "reloaded")
    assert list(world.states().values()) == ["ready"]


def test_resizing_to_nothing_while_a_replacement_starts_ends_both() -> None:
    world = World.ready(1)
    world.do(Recycle(1))
    world.do(Resize("default", 0))
    world.all_ready()
    assert set(world.states().values()) == {"stopping"}


def test_a_replacement_does_not_start_while_another_worker_is_on_its_way_out() -> None:
    world = World.ready(2)
    world.do(WorkerUnwell(2, "killed"))
    assert world.do(Recycle(1)) == []
    assert world.exit(2, "killed") == [Spawn(3, "default"), Spawn(4, "default")]
    assert world.core.workers[4].replaces == 1


def test_age_is_counted_from_readiness_with_jitter_and_not_for_workers_that_are_leaving() -> None:
    world = World.ready(4, max_lifetime_s=100.0)
    first = world.core.next_deadline()
    assert first is not None
    assert 90.0 <= first <= 100.0
    world.do(WorkerUnwell(1, "killed"))
    world.run_until(101.0)
    assert world.core.workers[1].due is None


def test_an_overflow_worker_that_became_due_while_it_started_is_stopped_when_it_is_ready() -> None:
    world = World.ready(1, overflow=1)
    _, waiter = world.checkouts(2)
    world.do(Recycle(2))
    said = world.become_ready(2)
    assert Stop(2, "reloaded", 5.0) in said
    assert Grant(waiter) not in said


def test_a_replacement_serves_the_sessions_that_waited_for_the_due_worker() -> None:
    world = World.ready(1)
    world.run(session="s", program="p")
    world.checkout(session="s")
    waiter = world.checkout(session="s", affinity="strict")
    world.do(Recycle(1))
    assert world.become_ready(2) == [Grant(waiter)]
    assert world.lease(waiter).session_restarted
    assert world.states() == {1: "draining", 2: "ready"}
