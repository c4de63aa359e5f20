"""The core against a small model that says exactly who is granted, which worker, and who is refused why.

The model knows one group of workers with one slot each, priorities, deadlines, verdicts and deaths. It has no sessions,
labels, timers or restart policy: a dead worker is replaced as soon as its exit is known.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspool.options import MAX_REMOVALS
from dspool.pool.core.commands import Checkin, Grant, Reject, Spawn
from dspool.types import KEEP, Remove
from tests.unit.core.world import STEADY, World

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NEVER = 10**9
MAX_WAITING = 4


class Call:
    """A call as the model sees it."""

    def __init__(self, lease_id: int, place: tuple[int, int], deadline: int) -> None:
        self.lease_id, self.place, self.deadline = lease_id, place, deadline
        self.skipped: set[int] = set()
        self.removals = 0


class Model:
    """Who waits, who has which worker, and what the last step must have said."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.starting: set[int] = set()
        self.stopping: set[int] = set()
        self.idle: list[int] = []
        """Most recently used last."""
        self.holders: dict[int, int | None] = {}
        """lease_id -> its worker, None once that is gone or going."""
        self.waiters: list[Call] = []
        self.calls: dict[int, Call] = {}
        self.now = 0
        self.grants: dict[int, int] = {}
        self.refusals: dict[int, str] = {}

    def step(self) -> None:
        self.grants, self.refusals = {}, {}

    def live(self) -> set[int]:
        return self.starting | set(self.idle) | {worker for worker in self.holders.values() if worker is not None}

    def refuse(self, call: Call, why: str) -> None:
        self.refusals[call.lease_id] = why

    def dispatch(self, call: Call, *, first: bool, bounded: bool = False) -> None:
        fitting = [worker for worker in self.idle if worker not in call.skipped]
        if call.deadline < self.now or (call.deadline == self.now and not (fitting and first)):
            self.refuse(call, "QueueTimeout")
        elif fitting:
            self.idle.remove(fitting[-1])
            self.grants[call.lease_id] = self.holders[call.lease_id] = fitting[-1]
        elif bounded and len(self.waiters) >= MAX_WAITING:
            self.refuse(call, "PoolSaturated")
        else:
            self.waiters.append(call)

    def free(self, worker: int) -> None:
        """An idle worker goes to the earliest waiter that it didn't skip and that isn't late."""
        for call in sorted(self.waiters, key=lambda call: call.place):
            if worker in call.skipped:
                continue
            self.waiters.remove(call)
            if call.deadline <= self.now:
                self.refuse(call, "QueueTimeout")
                continue
            self.grants[call.lease_id] = self.holders[call.lease_id] = worker
            return
        self.idle.append(worker)

    def kill(self, worker: int) -> None:
        self.leave(worker)
        self.stopping.add(worker)

    def leave(self, worker: int) -> None:
        self.starting.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        for lease_id, held in self.holders.items():
            if held == worker:
                self.holders[lease_id] = None

    def settle(self) -> None:
        """Who was skipped by all there is, with no start to hope for, is told so."""
        live = self.live()
        for call in list(self.waiters):
            if call.skipped and live <= call.skipped and len(live) >= self.size:
                self.waiters.remove(call)
                self.refuse(call, "CheckoutSkipped")


class CoreFollowsModel(RuleBasedStateMachine):
    """Each rule is one command; after each, core and model must agree."""

    @initialize(size=st.integers(1, 3))
    def open(self, size: int) -> None:
        self.model = Model(size)
        self.world = World(workers=size, grace_s=NEVER, quarantine_after=None, max_waiting=MAX_WAITING)
        self.world.tick(0)
        self.over: list[int] = []
        self.agree()

    def agree(self) -> None:
        """Compare the last step, and let the model know which workers the core started."""
        model, world = self.model, self.world
        for effect in world.said:
            if isinstance(effect, Spawn):
                model.starting.add(effect.worker_id)
        model.settle()
        grants = {lease_id: world.worker_of(lease_id) for lease_id in self.lease_ids(Grant)}
        assert grants == model.grants
        refusals = {lease_id: world.refused(lease_id) for lease_id in self.lease_ids(Reject)}
        assert refusals == model.refusals
        for lease_id in refusals:
            world.do(Checkin(lease_id, "none"))
            self.over.append(lease_id)

    def lease_ids(self, kind: type[Grant | Reject]) -> list[int]:
        """Whom the last step woke with this effect."""
        return [effect.lease_id for effect in self.world.said if isinstance(effect, kind)]

    def some(self, data: Any, choices: Any) -> int:
        return int(data.draw(st.sampled_from(sorted(choices))))

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.model.step()
        self.model.now += seconds
        self.world.tick(self.model.now)
        self.agree()

    @rule(priority=st.integers(-1, 1), timeout=st.sampled_from([0, 1, 3, NEVER, NEVER, NEVER]), retry=st.booleans())
    def checkout(self, priority: int, timeout: int, retry: bool) -> None:
        self.model.step()
        deadline = self.model.now + timeout
        extra = {"call_id": self.over[0]} if retry and self.over else {}
        lease_id = self.world.checkout(priority=priority, deadline=deadline, retry=bool(extra), **extra)
        if extra:
            self.over.pop(0)
        call = Call(lease_id, (priority, extra.get("call_id", lease_id)), deadline)
        self.model.calls[lease_id] = call
        self.model.dispatch(call, first=True, bounded=not extra)
        self.agree()

    @precondition(lambda self: self.model.starting)
    @rule(data=st.data())
    def a_worker_becomes_ready(self, data: Any) -> None:
        self.model.step()
        worker = self.some(data, self.model.starting)
        self.model.starting.remove(worker)
        self.model.free(worker)
        self.world.become_ready(worker)
        self.agree()

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data(), removed=st.booleans())
    def checkin(self, data: Any, removed: bool) -> None:
        self.model.step()
        lease_id = self.some(data, self.model.holders)
        self.end(lease_id, kill=removed)
        self.world.do(Checkin(lease_id, "ok", Remove("bad") if removed else KEEP))
        self.agree()

    def end(self, lease_id: int, *, kill: bool) -> None:
        worker = self.model.holders.pop(lease_id)
        self.over.append(self.model.calls[lease_id].place[1])
        if worker is not None and kill:
            self.model.kill(worker)
        elif worker is not None:
            self.model.free(worker)

    @precondition(lambda self: self.model.holders or self.model.waiters)
    @rule(data=st.data(), written=st.booleans())
    def cancel(self, data: Any, written: bool) -> None:
        self.model.step()
        waiting = {call.lease_id for call in self.model.waiters}
        lease_id = self.some(data, waiting | set(self.model.holders))
        if lease_id in waiting:
            self.model.waiters = [call for call in self.model.waiters if call.lease_id != lease_id]
        else:
            self.end(lease_id, kill=written)
        self.world.cancel(lease_id, written=written)
        self.agree()

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data())
    def skip(self, data: Any) -> None:
        self.model.step()
        lease_id = self.some(data, self.model.holders)
        call, worker = self.model.calls[lease_id], self.model.holders.pop(lease_id)
        if worker is None:
            self.go_on_after_a_removal(call)
        else:
            call.skipped.add(worker)
            self.model.free(worker)
            self.model.dispatch(call, first=False)
        self.world.skip(lease_id)
        self.agree()

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        self.model.step()
        lease_id = self.some(data, self.model.holders)
        call, worker = self.model.calls[lease_id], self.model.holders.pop(lease_id)
        if worker is not None:
            self.model.kill(worker)
        self.go_on_after_a_removal(call)
        self.world.remove(lease_id)
        self.agree()

    def go_on_after_a_removal(self, call: Call) -> None:
        call.removals += 1
        if call.removals >= MAX_REMOVALS:
            self.model.refuse(call, "CheckoutSkipped")
        else:
            self.model.dispatch(call, first=False)

    @precondition(lambda self: self.model.live() | self.model.stopping)
    @rule(data=st.data())
    def a_worker_is_gone(self, data: Any) -> None:
        self.model.step()
        worker = self.some(data, self.model.live() | self.model.stopping)
        self.model.leave(worker)
        self.model.stopping.discard(worker)
        self.world.exit(worker, "killed")
        self.agree()

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def they_agree_on_everybody(self) -> None:
        if not hasattr(self, "model"):
            return
        model, world = self.model, self.world
        assert {call.lease_id for call in model.waiters} == {
            lease_id for lease_id in world.core.leases if world.waiting(lease_id)
        }
        assert set(model.holders) == {lease_id for lease_id in world.core.leases if world.granted(lease_id)}
        assert len(model.live()) + len(model.stopping) == model.size == len(world.core.workers)


CoreFollowsModel.TestCase.settings = settings(STEADY, max_examples=100, stateful_step_count=30)
TestCoreFollowsModel = CoreFollowsModel.TestCase
