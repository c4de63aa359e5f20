"""The simulator can fail: a core that is broken by hand, in one place, is found out within a few seeds.

Each mutant is a mistake that somebody could make: a Grant dropped, a cancel forgotten, a slot counted twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dspool.pool.core import commands as c
from dspool.pool.core.affinity import Session
from dspool.pool.core.dispatch import Dispatch
from dspool.pool.core.endings import Endings
from dspool.pool.core.fleet import Fleet
from dspool.pool.core.health import History
from dspool.pool.core.idle import IdleWorkers
from dspool.pool.core.machine import _HANDLERS, PoolCore
from dspool.pool.core.queue import WaitQueue
from dspool.pool.core.records import Group, Lease, Worker
from dspool.pool.core.restarts import Breaker, Quarantine
from dspool.pool.core.states import SlotState
from dspool.pool.core.timers import Timers
from dspool.pool.core.upkeep import Upkeep
from dspool.testing.simulation import SimulationFailure, SimWorld

pytestmark = [pytest.mark.unit, pytest.mark.slow]

MOST_SEEDS = 150
Mutation = tuple[type, str, Callable[..., Any]]
"""Of which class, which method, and what it does instead."""


def _nothing(*_: Any, **__: Any) -> None:
    return


_refuse, _take_slot, _first_for, _lend = Dispatch._refuse, Dispatch._take_slot, WaitQueue.first_for, IdleWorkers.lend
_arm = Timers.arm


def _refuses_silently(self: Dispatch, lease: Lease, refusal: c.Refusal) -> None:
    _refuse(self, lease, refusal)
    self._effects.remove(c.Reject(lease.lease_id))


def _grants_silently(self: Dispatch, lease: Lease, worker: Worker) -> None:
    _take_slot(self, lease, worker)
    if lease.lease_id % 5 == 0:
        self._effects.remove(c.Grant(lease.lease_id))


def _starts_too_many(self: Fleet, group: Group) -> bool:
    return group.lendable < group.size + 3


def _retires_at_once(self: Upkeep, worker: Worker) -> None:
    assert worker.due is not None
    self._retire(worker, worker.due)


def _trusts_everybody(self: Endings, lease: Lease, worker: Worker, why: Any) -> None:
    self._end(lease)
    self._give_back(worker, lease.slot)


def _lends_a_slot_twice(self: IdleWorkers, worker: Worker) -> int:
    index = _lend(self, worker)
    if not worker.free and len(worker.slots) > 1:
        worker.free.append(index)
    return index


def _serves_the_last(self: WaitQueue, worker: Worker) -> Lease | None:
    first = _first_for(self, worker)
    if first is None or first.wait_key is None or first.wait_key[0] is not None:
        return first
    same = [lease for lease in self.everybody() if lease.wait_key == first.wait_key]
    return max(same, key=lambda lease: (lease.priority, lease.call_id))


def _drops_late_waiters(self: Dispatch, worker: Worker) -> None:
    while worker.free and self.queue.count and not self.paused:
        lease = self.queue.first_for(worker)
        if lease is None:
            break
        if lease.deadline <= self._now:
            self.queue.discard(lease)
        else:
            self._grant(lease, worker)


def _forgets_what_was_lost(self: Session) -> None:
    self.worker_id = None


def _does_one_thing_a_tick(self: PoolCore, command: c.Tick) -> None:
    self._stale = True
    timer = self.timers.pop_due(self._now)
    if timer is not None:
        self._timer_due(*timer)


def _lends_what_is_held_too_long(self: Endings, lease_id: int) -> None:
    lease = self.leases[lease_id]
    worker = self.workers.get(lease.worker_id or 0)
    self._report("lease.expired", lease_id=lease_id, worker_id=lease.worker_id, hold_s=lease.hold_s)
    self._end(lease)
    self._give_back(worker, lease.slot)


def _settles_whatever_is_there(self: Endings, command: c.SlotSettled) -> None:
    worker = self.workers.get(command.worker_id)
    if worker is None or not 0 <= command.slot < len(worker.slots):
        return
    slot = worker.slots[command.slot]
    if slot.state in (SlotState.CANCELLING, SlotState.ABANDONED):
        self._slot_idle(worker, command.slot)


def _counts_an_exit_twice(self: Upkeep, worker: Worker) -> None:
    worker.counted = False
    worker.group.stopping -= 2
    self._stale = True


def _counts_it_as_gone(self: Fleet, worker: Worker) -> None:
    del self.workers[worker.worker_id]


def _lets_starts_go_on(self: Breaker, *_: Any, **__: Any) -> bool:
    return False


def _trusts_whoever_was_ready(self: Fleet, worker: Worker) -> bool:
    return worker.ready_at is not None


def _refuses_now_or_never_without_a_look(self: Dispatch, lease: Lease) -> bool:
    return lease.deadline <= self._now


def _forgets_a_timer(kind: str) -> Mutation:
    def arm(self: Timers, when: float, what: Any, key: int = 0, sub: int = 0) -> None:
        if what != kind:
            _arm(self, when, what, key, sub)

    return Timers, "arm", arm


TIMERS = "start stop ping age linger cancel abandon backoff breaker hint hold check session shed health close".split()
MUTANTS: dict[str, Mutation] = {
    "a cancelled slot leaks": (Endings, "_give_back", _nothing),
    "a grant wakes nobody": (Dispatch, "_take_slot", _grants_silently),
    "a refusal wakes nobody": (Dispatch, "_refuse", _refuses_silently),
    "a cancel is forgotten": (PoolCore, "_on_cancel", _nothing),
    "a checkin is forgotten": (PoolCore, "_on_checkin", _nothing),
    "too many are started": (Fleet, "_wants_more", _starts_too_many),
    "a due worker goes before its replacement came": (Upkeep, "_await_replacement", _retires_at_once),
    "a slot with an unanswered call is lent": (Endings, "_give_up", _trusts_everybody),
    "a slot whose hold is over is lent": (Endings, "_held_too_long", _lends_what_is_held_too_long),
    "a slot is counted twice": (IdleWorkers, "lend", _lends_a_slot_twice),
    "a draining worker is lent": (IdleWorkers, "leave", _nothing),
    "the last waiter is served first": (WaitQueue, "first_for", _serves_the_last),
    "a late waiter is lost as it is dequeued": (Dispatch, "_lend", _drops_late_waiters),
    "waiters of a pin that moved stay behind": (Dispatch, "_reroute", _nothing),
    "a session's loss is told to nobody": (Session, "unpin", _forgets_what_was_lost),
    "the breaker never half-opens": (Upkeep, "_half_open", _nothing),
    "a trial that says nothing is never withdrawn": (Quarantine, "withdrawn", _nothing),
    "starts that fail are not counted": (Breaker, "failed", _lets_starts_go_on),
    "whoever was ready once failed no start": (Fleet, "_stood_the_test", _trusts_whoever_was_ready),
    "now or never is refused without a look": (Dispatch, "_late", _refuses_now_or_never_without_a_look),
    "a Tick does one thing": (PoolCore, "_on_tick", _does_one_thing_a_tick),
    "any late answer settles a slot": (PoolCore, "_on_slot_settled", _settles_whatever_is_there),
    "a worker that won't end is counted twice": (Upkeep, "_wont_end", _counts_an_exit_twice),
    "an exit leaves timers and slots behind": (Fleet, "_forget_worker", _counts_it_as_gone),
    "a worker that doesn't answer is kept": (Upkeep, "_missed_ping", _nothing),
    "a recycle is forgotten": (PoolCore, "_on_recycle", _nothing),
    "a resize is forgotten": (Upkeep, "_trim", _nothing),
    "a pause is forgotten": (PoolCore, "_on_pause", _nothing),
    "a closed pool's clock runs on": (History, "end", _nothing),
    "a change of health is not counted": (History, "change", _nothing),
    "a closed pool spares the busy": (Upkeep, "_close_now", _nothing),
    **{f"the timer {kind!r} is never set": _forgets_a_timer(kind) for kind in TIMERS},
}


def mutate(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Break the core; handlers stand in a table beside it."""
    layer, name, mutant = mutation
    for command, handler in list(_HANDLERS.items()):
        if handler.__name__ == name:
            monkeypatch.setitem(_HANDLERS, command, mutant)
    monkeypatch.setattr(layer, name, mutant)


def caught_by(seeds: range) -> tuple[int, str]:
    """The first seed that fails, and how."""
    for seed in seeds:
        try:
            SimWorld(seed).run()
        except SimulationFailure as failure:
            return seed, str(failure)
    pytest.fail(f"{len(seeds)} seeds hold")


RARE = {
    "a trial that says nothing is never withdrawn": 100,
    "a recycle is forgotten": 50,
    "now or never is refused without a look": 100,
}
"""Where the search begins, for mutants that one seed in a hundred finds."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_core_is_caught_and_the_failure_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mutate(monkeypatch, MUTANTS[name])
    first = RARE.get(name, 0)
    seed, message = caught_by(range(first, first + MOST_SEEDS))
    print(f"{name}: seed {seed}: {message.splitlines()[0]}")
    assert f"replay: python -m dspool.testing.simulator --seed {seed} --steps 300 --verbose" in message
