"""Checkout, checkin, and which worker a call gets."""

from __future__ import annotations

import pytest

from dspool.options import WorkerGroup
from dspool.pool.core.commands import (
    Checkin,
    Checkout,
    CheckoutVerdict,
    Grant,
    Kill,
    Reject,
    RunEnded,
    RunStarted,
    Spawn,
)
from dspool.pool.core.states import LeaseState
from dspool.types import KEEP, Remove, Verdict
from tests.unit.core.world import World

pytestmark = pytest.mark.unit

GPU = [
    WorkerGroup(name="cpu", workers=1, labels=frozenset({"cpu"})),
    WorkerGroup(name="gpu", workers=1, labels=frozenset({"gpu", "cuda"})),
]


def keep(*_: object) -> Verdict:
    return KEEP


def test_a_pool_starts_its_workers_lends_one_takes_it_back_and_lends_it_again() -> None:
    world = World(workers=1)
    assert world.tick(0.0) == [Spawn(1, "default")]
    assert world.become_ready(1, 0.5) == []
    assert world.do(Checkout(1, 1), 1.0) == [Grant(1)]
    assert world.do(Checkin(1), 2.0) == []
    assert world.do(Checkout(2, 2), 3.0) == [Grant(2)]
    assert world.worker_of(2) == 1


def test_nothing_is_granted_before_a_worker_is_ready() -> None:
    world = World(workers=1)
    world.tick(0.0)
    assert world.do(Checkout(1, 1)) == []
    assert world.become_ready(1) == [Grant(1)]


def test_the_slot_is_leased_in_the_step_that_grants_it() -> None:
    world = World.ready(1)
    world.checkout()
    assert world.slots(1) == ["leased"]


def test_a_lease_without_a_hook_is_granted_and_with_a_hook_it_is_checking_first() -> None:
    plain, hooked = World.ready(1), World.ready(1, check=keep)
    assert plain.lease(plain.checkout()).state is LeaseState.GRANTED
    lease = hooked.checkout()
    assert hooked.lease(lease).state is LeaseState.CHECKING
    for _ in range(2):
        assert hooked.do(CheckoutVerdict(lease, KEEP)) == []
        assert hooked.lease(lease).state is LeaseState.GRANTED


def test_a_lease_id_that_is_in_use_is_not_checked_out_again() -> None:
    world = World.ready(2)
    world.checkout()
    assert world.do(Checkout(1, 1)) == []
    assert world.core.counters.checkouts == 1


def test_a_lease_that_is_over_is_forgotten_and_its_end_is_idempotent() -> None:
    world = World.ready(1)
    lease = world.checkout()
    world.checkin(lease)
    assert lease not in world.core.leases
    assert world.checkin(lease) == []
    assert world.core.counters.calls_ok == 0, "it ran no program"


def test_the_last_used_of_the_idle_workers_is_lent_first() -> None:
    world = World.ready(3)
    first, second, third = world.checkouts(3)
    order = [world.worker_of(lease) for lease in (second, third, first)]
    for lease in (second, third, first):
        world.checkin(lease)
    assert [world.worker_of(lease) for lease in world.checkouts(3)] == order[::-1]


def test_an_idle_worker_that_holds_the_program_is_preferred_to_the_last_used_one() -> None:
    world = World.ready(2)
    holder = world.run(program="p")
    p, other = world.checkout(program="p"), world.checkout()
    world.checkin(p)
    world.checkin(other)
    assert world.worker_of(world.checkout(program="p")) == holder


def test_of_several_holders_the_last_used_is_lent() -> None:
    world = World.ready(3)
    one, two = world.checkout(program="p"), world.checkout(program="p")
    workers = world.worker_of(one), world.worker_of(two)
    world.checkin(two)
    world.checkin(one)
    assert world.worker_of(world.checkout(program="p")) == workers[0]


def test_of_several_that_lack_the_program_the_last_used_is_lent_while_its_holders_are_busy() -> None:
    world = World.ready(4)
    held = world.checkout(program="p"), world.checkout(program="p")
    for lease in held:
        world.checkin(lease)
    busy = world.checkout(program="p"), world.checkout(program="p")
    holders = {world.worker_of(lease) for lease in busy}
    others = world.checkouts(2)
    assert {world.worker_of(lease) for lease in others}.isdisjoint(holders)
    last = world.worker_of(others[0])
    world.checkin(others[1])
    world.checkin(others[0])
    assert world.worker_of(world.checkout(program="p")) == last


def test_a_busy_holder_is_not_waited_for() -> None:
    world = World.ready(2)
    holder = world.run(program="p")
    assert world.worker_of(world.checkout(program="p")) == holder
    assert world.worker_of(world.checkout(program="p")) != holder


def test_a_worker_holds_as_many_programs_as_it_keeps_loaded_and_forgets_the_oldest() -> None:
    world = World.ready(2, max_programs=2)
    one, two = world.checkouts(2)
    worker_id = world.worker_of(one)
    for program in ("a", "b", "c"):
        world.do(RunStarted(one, program))
        world.do(RunEnded(one, "ok"))
    world.checkin(one)
    world.checkin(two)
    assert list(world.core.workers[worker_id].programs) == ["b", "c"]
    assert world.worker_of(world.checkout(program="a")) != worker_id
    assert world.worker_of(world.checkout(program="b")) == worker_id


def test_a_program_that_is_used_again_is_not_the_one_that_is_forgotten() -> None:
    world = World.ready(1, max_programs=2)
    for program in ("a", "b", "a", "c"):
        world.run(program=program)
    assert set(world.core.workers[1].programs) == {"a", "c"}


def test_the_least_busy_worker_is_lent_where_workers_have_several_slots() -> None:
    world = World.ready(2, slots=2)
    workers = [world.worker_of(lease) for lease in world.checkouts(4)]
    assert sorted(workers[:2]) == sorted(workers[2:]) == [1, 2]
    assert world.waiting(world.checkout())


def test_labels_choose_the_group() -> None:
    world = World.ready(GPU)
    lease = world.checkout(require="gpu")
    assert world.core.workers[world.worker_of(lease)].group.name == "gpu"
    assert world.waiting(world.checkout(require="cuda")), "the idle cpu worker doesn't do"


def test_labels_that_no_group_has_fail_at_once_and_name_what_there_is() -> None:
    world = World.ready(GPU)
    assert world.do(Checkout(1, 1, require=frozenset({"gpu", "cpu"}))) == [Reject(1)]
    refusal = world.refusal(1)
    assert refusal.code == "CheckoutSkipped"
    assert "['cuda', 'gpu']" in refusal.message


def test_a_refused_lease_stays_until_its_caller_has_read_why() -> None:
    world = World.ready(GPU)
    lease = world.checkout(require="tpu")
    assert world.checkin(lease) == []
    assert lease not in world.core.leases
    lease = world.checkout(require="tpu")
    world.cancel(lease)
    assert lease not in world.core.leases


def test_a_verdict_after_the_lease_was_refused_or_closed_is_a_no_op() -> None:
    world = World.ready(GPU)
    lease = world.checkout(require="tpu")
    assert world.remove(lease) == []
    assert world.do(CheckoutVerdict(99, KEEP)) == []


def test_remove_at_checkin_kills_the_worker_and_replaces_it_when_its_exit_is_known() -> None:
    world = World.ready(1)
    lease = world.checkout(program="p")
    assert world.do(Checkin(lease, "ok", Remove("leaky"))) == [Kill(1, "removed", "leaky")]
    assert world.states() == {1: "stopping"}
    assert world.exit(1, "removed") == [Spawn(2, "default")]
    assert world.core.counters.calls_ok == 1, "the caller had its result"


def test_a_waiter_is_served_after_a_remove_at_checkin() -> None:
    world = World.ready(1)
    holder, waiter = world.checkouts(2)
    world.do(Checkin(holder, "ok", Remove("leaky")))
    world.exit(1, "removed")
    assert world.become_ready(2) == [Grant(waiter)]


def test_a_lost_call_ends_its_worker_which_is_made_sure_of() -> None:
    world = World.ready(1)
    lease = world.checkout(program="p")
    assert world.checkin(lease, "lost") == [Kill(1, None, "its pipe ended")]
    assert world.core.counters.calls_lost == 1
    assert world.exit(1) == [Spawn(2, "default")]


def test_a_call_whose_worker_is_known_to_be_gone_is_lost_without_another_kill() -> None:
    world = World.ready(1)
    lease = world.checkout(program="p")
    world.exit(1)
    assert world.checkin(lease, "lost") == []
    assert world.core.counters.calls_lost == 1


def test_a_complete_answer_wins_over_the_exit_that_follows_it() -> None:
    world = World.ready(1, quarantine_after=1)
    lease = world.checkout(program="p")
    world.exit(1)
    world.checkin(lease, "ok")
    assert (world.core.counters.calls_ok, world.core.counters.calls_lost) == (1, 0)
    assert world.core.quarantine.held() == ()
    assert world.core.counters.start_failures == 0


def test_a_lease_without_a_program_runs_several() -> None:
    world = World.ready(1)
    lease = world.checkout(now=0.0)
    for program, started, ended in (("a", 1.0, 3.0), ("b", 5.0, 6.0)):
        assert world.do(RunStarted(lease, program), started) == []
        assert world.do(RunEnded(lease, "ok"), ended) == []
    world.checkin(lease, "none", 9.0)
    assert world.core.counters.calls_ok == 2
    assert world.core.workers[1].calls == 2


def test_the_run_time_of_a_lease_without_a_program_is_that_of_its_runs() -> None:
    world = World.ready(1)
    lease = world.checkout(now=0.0)
    world.do(RunStarted(lease, "a"), 10.0)
    world.do(RunEnded(lease, "ok"), 12.0)
    world.do(RunStarted(lease, "b"), 20.0)
    world.do(RunEnded(lease, "failed"), 21.0)
    assert world.core.counters.run_s_sum == 3.0
    assert world.core.counters.run_s_max == 2.0


def test_a_run_that_is_lost_takes_the_worker_with_it() -> None:
    world = World.ready(1)
    lease = world.checkout()
    world.do(RunStarted(lease, "a"))
    world.do(RunEnded(lease, "lost"))
    assert (world.core.counters.calls_lost, world.core.counters.calls_failed) == (1, 0)
    assert not world.core.workers[1].good
    assert world.states() == {1: "stopping"}


def test_runs_of_leases_that_hold_no_slot_are_no_ops() -> None:
    world = World.ready(1, check=keep)
    checking, waiting = world.checkouts(2)
    for lease in (checking, waiting, 99):
        assert world.do(RunStarted(lease, "p")) == []
        assert world.do(RunEnded(lease, "ok")) == []
    assert world.core.counters.calls_ok == 0


def test_an_end_without_a_run_proves_nothing_and_counts_nothing() -> None:
    world = World.ready(1)
    lease = world.checkout(program="p")
    world.checkin(lease, "none")
    counters = world.core.counters
    assert (counters.calls_ok, counters.calls_failed, counters.calls_lost) == (0, 0, 0)
    assert not world.core.workers[1].good


def test_checking_in_a_waiting_lease_forgets_it() -> None:
    world = World.ready(1)
    _, waiter = world.checkouts(2)
    world.checkin(waiter, "none")
    assert waiter not in world.core.leases
    assert world.core.queue.count == 0


def test_a_run_without_a_program_counts_as_an_answer_and_blames_and_warms_nothing() -> None:
    world = World.ready(1, quarantine_after=1)
    lease = world.checkout()
    world.do(RunStarted(lease, None))
    world.do(RunEnded(lease, "ok"))
    assert world.core.counters.calls_ok == 1
    assert world.core.workers[1].programs == {}
    world.do(RunStarted(lease, None))
    world.exit(1)
    assert world.core.quarantine.held() == ()


def test_a_holder_that_skipped_the_call_is_passed_over_for_another_holder() -> None:
    world = World.ready(3)
    leases = [world.checkout(program="p") for _ in range(2)]
    holders = {world.worker_of(lease) for lease in leases}
    for lease in leases:
        world.checkin(lease)
    lease = world.checkout(program="p")
    skipped = world.worker_of(lease)
    world.skip(lease)
    assert {skipped, world.worker_of(lease)} == holders
    world.skip(lease)
    assert world.worker_of(lease) not in holders, "the first is idle again, and was asked"


def test_a_program_that_one_worker_forgets_is_still_warm_in_the_other() -> None:
    world = World.ready(2, max_programs=1)
    one, two = world.checkout(program="p"), world.checkout(program="p")
    forgetful, holder = world.worker_of(one), world.worker_of(two)
    world.checkin(two)
    world.do(RunEnded(one, "ok"))
    world.do(RunStarted(one, "q"))
    world.checkin(one)
    assert list(world.core.workers[forgetful].programs) == ["q"]
    assert world.worker_of(world.checkout(program="p")) == holder


def test_label_sets_that_nobody_has_are_not_remembered_without_limit() -> None:
    world = World.ready(1)
    for number in range(1200):
        world.checkin(world.checkout(require=f"label-{number}"), "none")
    assert len(world.core._fits) <= 1000
