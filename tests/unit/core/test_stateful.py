"""The core against the reference model, over many commands in any order. Hypothesis looks for a run in which they
differ, and shrinks it.

    pytest tests/unit/core/test_stateful.py                          a few seconds, the same examples each time
    STATEFUL_EXAMPLES=20000 pytest --timeout=0 tests/unit/core/test_stateful.py   other examples each time, for long
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspool.pool.core import commands as c
from dspool.types import KEEP, Remove, Skip
from tests.unit.core.reference import NEVER, Call, Reference, Session, Worker
from tests.unit.core.world import STEADY, World, exit_report

pytestmark = [pytest.mark.unit, pytest.mark.slow]

GRACE_S = 2
MAX_WAITING = 4
DEADLINES = st.sampled_from([0, 1, 3, NEVER, NEVER, NEVER])


class CoreObeysReference(RuleBasedStateMachine):
    """Each rule is one command. The model is told what was done, then what the core ordered."""

    @initialize(size=st.integers(1, 3), slots=st.sampled_from([1, 1, 2, 3]))
    def open(self, size: int, slots: int) -> None:
        self.model = Reference(size, slots, max_waiting=MAX_WAITING, grace_s=GRACE_S)
        self.world = World(
            workers=size, slots=slots, grace_s=GRACE_S, cancel_grace_s=GRACE_S, max_waiting=MAX_WAITING,
            quarantine_after=None, session_ttl_s=NEVER, affinity_wait_s=NEVER,
        )  # fmt: skip
        self.over: list[int] = []
        """call_ids of calls that are over, and may come back as retries."""
        self.step(c.Tick())

    def step(self, command: c.Command) -> None:
        """One step of the core, followed effect by effect."""
        model, world = self.model, self.world
        effects = world.core.handle(command, model.now)
        world.now = model.now
        for effect in effects:
            self.follow(effect)
        model.settled()
        for lease_id, lease in list(world.core.leases.items()):
            if lease.refusal is not None:
                world.core.handle(c.Checkin(lease_id, "none"), model.now)

    def follow(self, effect: c.Effect) -> None:
        model, world = self.model, self.world
        if isinstance(effect, c.Grant):
            lease = world.lease(effect.lease_id)
            assert lease.worker_id is not None
            model.grant(effect.lease_id, lease.worker_id, lease.slot)
        elif isinstance(effect, c.Reject):
            model.refuse(effect.lease_id, world.refusal(effect.lease_id).code)
            self.forget(model.calls[effect.lease_id])
        elif isinstance(effect, c.Spawn):
            model.spawn(effect.worker_id)
        elif isinstance(effect, c.Stop):
            model.stop(effect.worker_id)
        elif isinstance(effect, c.Kill):
            model.kill(effect.worker_id)
        elif isinstance(effect, (c.CancelCall, c.Abandon)):
            assert model.workers[effect.worker_id].slots[effect.slot] == -effect.lease_id
        elif isinstance(effect, c.Report) and effect.event == "worker.draining":
            model.drain(effect.fields["worker_id"], effect.fields["reason"])

    def forget(self, call: Call) -> None:
        del self.model.calls[call.lease_id]
        self.over.append(call.place[1])

    def pick(self, data: Any, choices: Any) -> Any:
        return data.draw(st.sampled_from(sorted(choices)))

    def held(self) -> list[int]:
        return [call.lease_id for call in self.model.calls.values() if call.held is not None]

    def pick_held(self, data: Any) -> tuple[Call, Worker | None]:
        """A granted call, and its worker if that still lives."""
        call = self.model.calls[self.pick(data, self.held())]
        assert call.held is not None
        worker = self.model.workers.get(call.held[0])
        return call, worker if worker is not None and worker.state != "stopping" else None

    # --- calls ----------------------------------------------------------------------------------------------------

    @rule(
        priority=st.integers(-1, 1), timeout=DEADLINES, session=st.sampled_from([None, None, "s", "t"]),
        fail_fast=st.booleans(), cancellable=st.booleans(), retry=st.booleans(),
    )  # fmt: skip
    def checkout(
        self, priority: int, timeout: int, session: str | None, fail_fast: bool, cancellable: bool, retry: bool
    ) -> None:
        model, lease_id = self.model, self.world._last_lease + 1
        self.world._last_lease = lease_id
        retry = retry and bool(self.over)
        call_id = self.over.pop(0) if retry else lease_id
        call = Call(lease_id, (priority, call_id), model.now + timeout, session, fail_fast, cancellable)
        model.calls[lease_id] = model.waiting[lease_id] = call
        if session is not None:
            model.sessions.setdefault(session, Session())
        affinity: Any = "strict_fail_fast" if fail_fast else "strict"
        self.step(
            c.Checkout(
                lease_id, call_id, program="p", session=session, affinity=affinity, priority=priority,
                deadline=call.deadline, cancellable=cancellable, retry=retry,
            )
        )  # fmt: skip

    @precondition(lambda self: self.held())
    @rule(data=st.data(), removed=st.booleans(), outcome=st.sampled_from(["ok", "failed", "none", "lost"]))
    def checkin(self, data: Any, removed: bool, outcome: Any) -> None:
        call, worker = self.pick_held(data)
        self.model.stop_running(call, ran=outcome in ("ok", "failed"))
        if worker is not None and (removed or outcome == "lost"):
            self.model.doom(worker)
        self.model.release(call)
        self.forget(call)
        self.step(c.Checkin(call.lease_id, outcome, Remove("bad") if removed else KEEP))

    @precondition(lambda self: self.held() or self.model.waiting)
    @rule(data=st.data(), written=st.booleans(), times=st.integers(1, 2))
    def cancel(self, data: Any, written: bool, times: int) -> None:
        model = self.model
        lease_id = self.pick(data, {*self.held(), *model.waiting})
        call = model.calls[lease_id]
        if model.waiting.pop(lease_id, None) is None:
            assert call.held is not None
            worker = model.workers.get(call.held[0])
            live = worker is not None and worker.state != "stopping"
            left = False
            if written and live and worker is not None:
                shared = sum(each > 0 for each in worker.slots) > 1 or (worker.state == "ready" and 0 in worker.slots)
                left = call.cancellable or (len(worker.slots) > 1 and shared)
                if not left:
                    model.doom(worker)
            model.stop_running(call, ran=left)
            model.release(call, left=left)
        self.forget(call)
        for _ in range(times):
            self.step(c.Cancel(lease_id, written))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def skip(self, data: Any) -> None:
        call, worker = self.pick_held(data)
        self.model.wait_again(call)
        if worker is None:
            call.removals += 1
        else:
            call.skipped.add(worker.worker_id)
        self.model.release(call)
        self.step(c.CheckoutVerdict(call.lease_id, Skip("no")))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), died=st.booleans())
    def remove(self, data: Any, died: bool) -> None:
        call, worker = self.pick_held(data)
        self.model.wait_again(call)
        call.removals += 1
        if worker is not None:
            self.model.doom(worker)
        self.model.release(call)
        self.step(c.CheckoutVerdict(call.lease_id, Remove("bad"), died))

    @precondition(lambda self: any(worker.left_until for worker in self.model.workers.values()))
    @rule(data=st.data())
    def a_late_answer_is_read(self, data: Any) -> None:
        worker = self.model.workers[self.pick(data, [w.worker_id for w in self.model.workers.values() if w.left_until])]
        slot = self.pick(data, worker.left_until)
        lease_id = -worker.slots[slot]
        del worker.left_until[slot]
        worker.slots[slot] = 0
        self.step(c.SlotSettled(worker.worker_id, slot, lease_id))

    # --- workers --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.of("starting"))
    @rule(data=st.data())
    def a_worker_becomes_ready(self, data: Any) -> None:
        worker = self.model.workers[self.pick(data, [each.worker_id for each in self.model.of("starting")])]
        worker.state = "ready"
        self.step(c.WorkerReady(worker.worker_id))

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data())
    def a_worker_is_gone(self, data: Any) -> None:
        worker = self.model.workers[self.pick(data, self.model.workers)]
        self.model.exited(worker)
        self.step(c.WorkerExited(worker.worker_id, exit_report(worker.worker_id, "killed")))

    @precondition(lambda self: self.model.of("ready"))
    @rule(data=st.data())
    def recycle(self, data: Any) -> None:
        worker = self.model.workers[self.pick(data, [each.worker_id for each in self.model.of("ready")])]
        worker.due = True
        self.step(c.Recycle(worker.worker_id))

    @rule(size=st.integers(0, 4))
    def resize(self, size: int) -> None:
        self.model.size = size
        self.step(c.Resize("default", size))

    # --- the pool -------------------------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.model.now += seconds
        self.step(c.Tick())
        self.model.ticked()

    @rule()
    def pause(self) -> None:
        self.model.paused = self.model.state in ("open", "draining")
        self.step(c.Pause())

    @rule()
    def resume(self) -> None:
        if self.model.state == "draining":
            self.model.state = "open"
        self.model.paused = False
        self.step(c.Resume())

    @precondition(lambda self: self.model.state == "open")
    @rule()
    def drain(self) -> None:
        self.model.state = "draining"
        self.step(c.Drain())

    @precondition(lambda self: self.world._last_lease > 12)
    @rule()
    def close(self) -> None:
        self.model.state, self.model.paused = "closing", False
        self.step(c.Close(NEVER))

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def they_agree_on_everybody(self) -> None:
        if not hasattr(self, "model"):
            return
        model, core = self.model, self.world.core
        assert {each.worker_id: each.state for each in model.workers.values()} == self.world.states()
        assert set(model.waiting) == {lease.lease_id for lease in core.queue.everybody()}
        assert {key: call.held for key, call in model.calls.items() if call.held is not None} == {
            key: (lease.worker_id, lease.slot) for key, lease in core.leases.items() if self.world.granted(key)
        }
        homes = {name: session.home for name, session in model.sessions.items() if session.home is not None}
        pins = {name: session.worker_id for name, session in core.sessions.table.items()}
        assert homes == {name: worker_id for name, worker_id in pins.items() if worker_id is not None}


_examples = os.environ.get("STATEFUL_EXAMPLES")
CoreObeysReference.TestCase.settings = (
    settings(STEADY, derandomize=False, max_examples=int(_examples), stateful_step_count=60)
    if _examples
    else settings(STEADY, max_examples=80, stateful_step_count=30)
)
TestCoreObeysReference = CoreObeysReference.TestCase
