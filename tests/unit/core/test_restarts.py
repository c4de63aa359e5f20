"""Boot failures: back-off, budget, breaker. Per worker group, never mixed with deaths in calls."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    Checkin,
    Checkout,
    Grant,
    Kill,
    Probe,
    ProbeAnswered,
    Reject,
    Reload,
    Renew,
    Spawn,
    WorkerUnwell,
)
from dspool.pool.core.restarts import FIRST_PING_S, Breaker
from dspool.types import ExitReason, Remove
from tests.unit.core.world import World, exit_report, of

pytestmark = pytest.mark.unit


def breaker(world: World, group: str = "default") -> Breaker:
    return world.core.groups[group].breaker


def broken(**options: object) -> World:
    """An eager pool of one worker whose breaker opened at 10.0."""
    world = World(workers=1, max_restarts=0, **options)
    world.tick(0.0)
    world.exit(1, "boot_error", 10.0, "no module named nltk")
    assert breaker(world).state == "open"
    return world


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_pause_doubles_from_a_tenth_of_a_second_to_30_with_jitter(jitter: float) -> None:
    subject = Breaker(max_restarts=100, window_s=1.0)
    pauses = []
    for _ in range(12):
        subject.failed(1, exit_report(1, "boot_error"), 100.0, jitter, was_ready=False)
        pauses.append(subject.not_before - 100.0)
    nominal = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
    assert pauses == pytest.approx([pause * (0.5 + jitter / 2) for pause in nominal])


def test_a_worker_that_fails_to_start_is_tried_again_after_a_pause_that_grows() -> None:
    world = World(workers=1, max_restarts=100)
    world.tick(0.0)
    pauses = []
    for _ in range(5):
        world.fail_start()
        retry = world.core.next_deadline()
        assert retry is not None
        pauses.append(retry - world.now)
        world.run_until(retry)
        assert len(of(world.said, Spawn)) == 1
    for pause, nominal in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1.6], strict=True):
        assert nominal / 2 <= pause <= nominal


def test_the_pause_starts_over_once_a_worker_became_ready() -> None:
    world = World(workers=1, max_restarts=100)
    world.tick(0.0)
    for _ in range(6):
        world.fail_start()
        world.run_until(world.now + 10.0)
    world.all_ready()
    assert breaker(world).consecutive == 0
    assert breaker(world).not_before <= world.now


def test_a_worker_that_was_good_is_replaced_at_once() -> None:
    world = World.ready(1)
    world.run(program="p")
    assert world.exit(1) == [Spawn(2, "default")]
    assert world.core.counters.start_failures == 0
    assert world.core.counters.replaced == 1


def test_a_worker_that_dies_idle_before_its_first_good_answer_is_a_boot_failure() -> None:
    world = World.ready(1)
    assert world.exit(1) == [Spawn(2, "default")], "but it was ready, so there is no pause"
    assert world.core.counters.start_failures == 1


def test_a_worker_that_answered_a_ping_is_good_before_its_first_call() -> None:
    world = World.ready(1, ping_interval_s=30.0)
    world.tick(30.0)
    world.do(ProbeAnswered(1, ok=True), 30.1)
    assert world.exit(1, "crash", 31.0) == [Spawn(2, "default")]
    assert world.core.counters.start_failures == 0


def test_a_worker_that_missed_its_first_pings_is_a_boot_failure() -> None:
    world = World.ready(1, ping_interval_s=30.0, ping_failures=1)
    world.tick(30.0)
    assert of(world.do(ProbeAnswered(1, ok=False), 35.0), Kill)
    world.exit(1, "hung", 35.1)
    assert world.core.counters.start_failures == 1


@pytest.mark.parametrize(("lived_s", "failures"), [(59.9, 1), (60.0, 0)])
def test_a_worker_that_lived_idle_for_the_whole_window_is_part_of_no_loop(lived_s: float, failures: int) -> None:
    world = World.ready(1, restart_window_s=60.0)
    assert world.exit(1, "oom_suspect", lived_s) == [Spawn(2, "default")]
    assert world.core.counters.start_failures == failures


def test_idle_workers_that_are_struck_down_together_late_in_their_lives_do_not_open_the_breaker() -> None:
    world = World.ready(8, max_restarts=3)
    for worker_id in range(1, 9):
        assert len(of(world.exit(worker_id, "oom_suspect", 600.0), Spawn)) == 1
    assert breaker(world).state == "closed"


def test_fresh_idle_workers_that_are_struck_down_together_count_as_one_failure() -> None:
    world = World.ready(8, max_restarts=1)
    for worker_id in range(1, 9):
        assert len(of(world.exit(worker_id, "oom_suspect", 0.5 + worker_id / 100), Spawn)) == 1
    assert (breaker(world).state, len(breaker(world).failures)) == ("closed", 1)
    assert world.core.counters.start_failures == 8, "each is counted where it is only told of"


def test_workers_that_keep_dying_as_soon_as_they_are_ready_open_the_breaker_however_many_they_are() -> None:
    world = World.ready(8, max_restarts=3, ping_interval_s=30.0)
    deaths = 0
    while breaker(world).state == "closed" and deaths < 1000:
        deaths += 1
        world.all_ready()
        world.exit(min(world.states()), "crash", deaths * 0.01)
    assert breaker(world).state == "open"
    assert world.now < 0.5
    assert of(world.said, Spawn) == []


def test_workers_that_fail_before_they_are_ready_count_each_also_together() -> None:
    world = World(workers=8, max_restarts=3)
    world.tick(0.0)
    for worker_id in range(1, 5):
        world.exit(worker_id, "boot_error", 1.0)
    assert breaker(world).state == "open"


def test_a_fresh_idle_worker_is_pinged_after_a_second_and_its_pong_makes_it_good() -> None:
    world = World.ready(4, max_restarts=0, ping_interval_s=30.0)
    for now in (0.0, 1.5, 3.0):
        world.all_ready()
        world.tick(now + FIRST_PING_S)
        assert of(world.said, Probe)
        for worker_id in world.states():
            world.do(ProbeAnswered(worker_id, ok=True))
        world.exit(min(world.states()), "oom_suspect", now + 1.4)
    assert breaker(world).state == "closed"
    assert world.core.counters.start_failures == 0


def test_a_trial_that_outlives_the_window_without_a_word_fails_all_the_same() -> None:
    world = broken(restart_window_s=5.0, ping_failures=1)
    world.tick(15.0)
    world.become_ready(2)
    assert of(world.do(ProbeAnswered(2, ok=False), 30.0), Kill)
    world.exit(2, "hung", 30.1)
    assert breaker(world).state == "open"


def test_a_worker_that_dies_in_its_first_call_is_no_boot_failure() -> None:
    world = World.ready(1)
    world.checkout(program="p")
    assert world.exit(1) == [Spawn(2, "default")]
    assert world.core.counters.start_failures == 0


def test_a_worker_that_dies_in_a_cancelled_first_call_is_no_boot_failure() -> None:
    world = World.ready(1)
    lease = world.checkout(program="p", cancellable=True)
    world.cancel(lease, written=True)
    world.exit(1)
    assert world.core.counters.start_failures == 0


@pytest.mark.parametrize("reason", ["stopped", "resized", "reloaded", "removed", "killed", "timeout", "cancelled"])
def test_our_own_ends_are_never_boot_failures(reason: ExitReason) -> None:
    world = World(workers=1, max_restarts=0)
    world.tick(0.0)
    world.do(WorkerUnwell(1, reason))
    assert world.exit(1, reason) == [Spawn(2, "default")]
    assert world.core.counters.start_failures == 0


@pytest.mark.parametrize("reason", ["boot_error", "start_timeout", "crash", "exited", "oom_suspect", "protocol_error"])
def test_every_end_of_a_start_that_nobody_asked_for_is_a_boot_failure(reason: ExitReason) -> None:
    world = World(workers=1, max_restarts=0)
    world.tick(0.0)
    world.fail_start(reason)
    assert world.core.counters.start_failures == 1
    assert breaker(world).state == "open"


def test_more_than_max_restarts_failures_in_the_window_open_the_breaker() -> None:
    world = World(workers=1, max_restarts=3, restart_window_s=60.0)
    world.tick(0.0)
    for now in (1.0, 2.0, 3.0):
        world.fail_start(now=now)
        world.run_until(now + 0.5)
        assert breaker(world).state == "closed"
    world.fail_start(now=4.0)
    assert breaker(world).state == "open"
    assert "pool.breaker_opened" in world.events
    world.run_until(33.9)
    assert world.states() == {}, "no starts while it is open"


def test_failures_older_than_the_window_are_forgiven() -> None:
    world = World(workers=1, max_restarts=1, restart_window_s=10.0)
    world.tick(0.0)
    for now in (1.0, 11.0, 21.0, 31.0):
        world.fail_start(now=now)
        world.run_until(now + 5.0)
    assert breaker(world).state == "closed"
    world.fail_start(now=40.0)
    assert breaker(world).state == "open"


def test_with_the_breaker_open_queued_and_new_calls_fail_at_once_with_the_last_reports() -> None:
    world = World(workers=1, max_restarts=0)
    world.tick(0.0)
    waiter = world.checkout()
    assert world.exit(1, "boot_error", 10.0, "no module named nltk") == [Reject(waiter)]
    refusal = world.refusal(waiter)
    assert refusal.code == "PoolBroken"
    assert [report.reason for report in refusal.reports] == ["boot_error"]
    assert "no module named nltk" in refusal.message
    assert world.do(Checkout(9, 9)) == [Reject(9)]
    assert world.refused(9) == "PoolBroken"


def test_a_full_queue_does_not_hide_that_the_pool_is_broken() -> None:
    world = broken(max_waiting=0)
    assert world.refused(world.checkout()) == "PoolBroken"


def test_with_the_breaker_open_live_workers_are_still_lent_and_waited_for() -> None:
    world = World.ready(2, max_restarts=0)
    world.exit(1, "crash", 1.0)
    assert breaker(world).state == "open"
    lease, waiter = world.checkout(), world.checkout()
    assert world.worker_of(lease) == 2
    assert world.waiting(waiter)
    assert world.checkin(lease) == [Grant(waiter)]
    assert world.exit(2, "crash", 2.0) == []
    world.remove(waiter, died=True)
    assert world.refused(waiter) == "PoolBroken"


def test_the_death_of_the_last_live_worker_fails_the_queue_in_that_step() -> None:
    world = World.ready(2, max_restarts=0)
    good = world.run(program="p")
    world.exit(3 - good, "crash", 1.0)
    (last,) = world.workers()
    world.checkout(program="p")
    waiter = world.checkout()
    assert world.exit(last.worker_id, "crash", 2.0) == [Reject(waiter)]


def test_a_call_waits_for_a_worker_that_was_starting_when_the_breaker_opened() -> None:
    world = World(workers=2, max_restarts=0)
    world.tick(0.0)
    waiter = world.checkout()
    world.exit(1, "boot_error", 1.0)
    assert breaker(world).state == "open"
    assert world.waiting(waiter)
    assert world.become_ready(2) == [Grant(waiter)]


def test_half_open_tries_one_worker_without_demand_and_a_pong_closes() -> None:
    world = broken()
    assert world.core.next_deadline() == 40.0
    assert world.tick(40.0) == [Spawn(2, "default")]
    assert breaker(world).state == "half_open"
    assert world.become_ready(2) == [Probe(2)]
    assert breaker(world).state == "half_open", "ready is not yet good"
    world.do(ProbeAnswered(2, ok=True))
    assert breaker(world).state == "closed"
    assert "pool.breaker_closed" in world.events


def test_half_open_tries_one_worker_of_a_lazy_pool_too() -> None:
    world = World(workers=2, lazy=True, max_restarts=0)
    world.checkout(now=0.0)
    world.exit(1, "boot_error", 10.0)
    assert world.tick(40.0) == [Spawn(2, "default")]


def test_half_open_starts_one_worker_only_and_closing_starts_the_rest() -> None:
    world = World(workers=3, max_restarts=0)
    world.tick(0.0)
    for worker_id in (1, 2, 3):
        world.exit(worker_id, "boot_error", 10.0)
    assert world.tick(40.0) == [Spawn(4, "default")]
    world.become_ready(4)
    assert world.do(ProbeAnswered(4, ok=True)) == [Spawn(5, "default"), Spawn(6, "default")]


def test_the_first_good_answer_of_the_trial_closes() -> None:
    world = broken()
    world.tick(40.0)
    waiter = world.checkout(program="p")
    assert world.waiting(waiter), "half open, it is worth waiting"
    assert of(world.become_ready(2), Grant) == [Grant(waiter)]
    world.checkin(waiter)
    assert breaker(world).state == "closed"


def test_a_trial_that_fails_opens_again_and_fails_who_waited() -> None:
    world = broken()
    world.tick(40.0)
    waiter = world.checkout()
    assert world.exit(2, "boot_error", 41.0) == [Reject(waiter)]
    assert world.refused(waiter) == "PoolBroken"
    assert breaker(world).state == "open"
    world.run_until(70.9)
    assert world.states() == {}
    world.run_until(71.0)
    assert world.states() == {3: "starting"}


def test_a_trial_that_answers_no_ping_fails() -> None:
    world = broken(ping_failures=2)
    world.tick(40.0)
    world.become_ready(2)
    assert world.do(ProbeAnswered(2, ok=False)) == [Probe(2)]
    assert [type(effect) for effect in world.do(ProbeAnswered(2, ok=False))] == [Kill]
    world.exit(2, "hung")
    assert breaker(world).state == "open"


def test_a_trial_that_we_ended_ourselves_is_followed_by_another() -> None:
    world = broken()
    world.tick(40.0)
    world.become_ready(2)
    world.do(Checkin(world.checkout(program="p"), "none", Remove("not this one")))
    assert world.exit(2, "removed") == [Spawn(3, "default")]
    assert breaker(world).state == "half_open"


def test_a_trial_whose_ping_was_missed_while_it_was_lent_is_judged_later() -> None:
    world = broken(ping_failures=1)
    world.tick(40.0)
    world.become_ready(2, 41.0)
    lease = world.checkout(program="p")
    world.do(ProbeAnswered(2, ok=False), 46.0)
    world.cancel(lease, now=47.0)
    world.run_until(200.0)
    assert breaker(world).trial is None or world.core.workers[2].probing, "somebody still waits for its word"


def test_each_group_has_a_breaker_of_its_own() -> None:
    groups = [
        WorkerGroup(name="good", workers=1, labels=frozenset({"good"})),
        WorkerGroup(name="bad", workers=1, labels=frozenset({"bad"})),
    ]
    world = World(workers=groups, max_restarts=0)
    world.tick(0.0)
    world.become_ready(1)
    world.exit(2, "boot_error", 1.0)
    assert (breaker(world, "good").state, breaker(world, "bad").state) == ("closed", "open")
    assert world.refused(world.checkout(require="bad")) == "PoolBroken"
    assert world.granted(world.checkout(require="good"))
    assert world.waiting(world.checkout()), "the good one will be free"


def test_a_group_cools_down_for_its_own_time() -> None:
    world = World(workers=[WorkerGroup(name="a", workers=1), WorkerGroup(name="b", workers=1)], max_restarts=0)
    world.tick(0.0)
    world.exit(1, "boot_error", 10.0)
    world.exit(2, "boot_error", 35.0)
    world.run_until(41.0)
    assert (breaker(world, "a").state, breaker(world, "b").state) == ("half_open", "open")
    world.run_until(65.0)
    assert breaker(world, "b").state == "half_open"


def test_a_breaker_that_was_closed_and_opened_again_cools_down_anew() -> None:
    world = broken()
    assert world.do(Reload(), 20.0) == [Renew(), Spawn(2, "default")]
    assert breaker(world).state == "closed"
    world.exit(2, "boot_error", 30.0)
    world.run_until(59.0)
    assert breaker(world).state == "open"
    world.run_until(60.0)
    assert breaker(world).state == "half_open"


def test_a_reload_closes_the_breaker_and_starts_at_once() -> None:
    world = broken()
    assert world.do(Reload()) == [Renew(), Spawn(2, "default")]
    assert "pool.breaker_closed" in world.events
    assert breaker(world).failures == type(breaker(world).failures)()


def test_the_failures_that_are_remembered_are_bounded() -> None:
    subject = Breaker(max_restarts=2, window_s=1e9)
    for number in range(100):
        subject.failed(number, exit_report(number, "boot_error"), float(number), 0.0, was_ready=False)
    assert len(subject.failures) <= 3
    assert [report.worker_id for report in subject.reports] == [95, 96, 97, 98, 99]


def test_an_exit_at_time_zero_is_an_exit_like_any_other() -> None:
    world = World.ready(1)
    world.run(program="p", now=0.0)
    world.exit(1, "crash", 0.0)
    assert world.core.counters.replaced == 1


def test_a_trial_that_is_killed_and_will_not_end_is_followed_by_another() -> None:
    world = broken(grace_s=5.0)
    world.tick(40.0)
    world.do(WorkerUnwell(2, "killed"))
    assert world.tick(45.0) == [Spawn(3, "default")]
    assert breaker(world).trial == 3
