"""The callers: when they come, what they want, when they wake, and that each ends exactly once.

Rules:
    1. A caller is resumed by its own wait alone: its token goes up with each resumption, and an older one is void.
    2. Whatever wakes it comes a moment later, and anything may happen in between.
    3. An ended caller leaves nothing in the core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspool.pool.core import commands as c
from dspool.pool.core.commands import INFINITY
from dspool.testing.simulation import moments
from dspool.testing.simulation.calls import Calls
from dspool.testing.simulation.parts import Caller, GaveUp, Wait


class Callers(Calls):
    """The world with its callers."""

    # --- who comes ----------------------------------------------------------------------------------------------------

    def _arrival(self) -> None:
        if self.calm:
            return
        rng, load = self.rng, self.load
        burst = rng.choice((1, 1, 1, min(2, load.burst), load.burst))
        for _ in range(burst):
            self._arrival_of_one()
        pause_s = 30.0 if rng.random() < load.quiet else 0.0
        self.at(self.now + pause_s + rng.expovariate(load.arrivals) * burst, self._arrival)

    def _arrival_of_one(self) -> None:
        rng, load = self.rng, self.load
        runs = rng.choice((1, 3)) if rng.random() < load.leases else 0
        wants: dict[str, Any] = {"program": None if runs else rng.choice(("a", "b", "evil"))}
        if rng.random() < load.sessions:
            wants["session"] = rng.choice(("s", "t", "u", "v"))
            wants["affinity"] = rng.choice(("hint", "hint", "strict", "strict_fail_fast"))
            wants["session_lost_is_error"] = rng.random() < 0.3
        if rng.random() < 0.2:
            wants["require"] = frozenset({rng.choice(("cpu", "gpu"))})
        if rng.random() < 0.2:
            wants["priority"] = rng.randint(-1, 1)
        if rng.random() < 0.2:
            wants["hold_s"] = rng.choice((0.05, 0.5, 3.0))
        wants["size_bytes"] = rng.choice((0, 10, 300))
        wants["cancellable"] = rng.random() < 0.3
        self._start(wants, self.now + rng.choice(load.patience_s), runs=runs, idempotent=rng.random() < 0.3)

    def _final_call(self, labels: frozenset[str], program: str) -> None:
        """Once the pool is whole again it serves every program in every group."""
        self._start({"program": program, "require": labels}, self.now + 60.0, runs=0, idempotent=False, must="ok")

    def _start(
        self, wants: dict[str, Any], deadline: float, *, runs: int, idempotent: bool, must: str | None = None
    ) -> None:
        caller = Caller(next(self._names), wants, deadline, idempotent=idempotent, runs=runs)
        self.callers[caller.name] = caller
        caller.steps = self._tries(caller, must)
        self._resume(caller, 0)
        if self._chance("cancel"):
            self.at(self._soon(self.rng.choice((0.001, 0.05, 1.0))), lambda: self._cancel(caller))

    # --- its turns ----------------------------------------------------------------------------------------------------

    def _resume(self, caller: Caller, token: int) -> None:
        if caller.ended is not None or caller.token != token:
            return
        if token and self._chance("cancel_at_turn"):
            self._cancel(caller)
        else:
            caller.token += 1
            self._continue(caller, lambda: next(caller.steps))

    def _cancel(self, caller: Caller) -> None:
        if caller.ended is None:
            self._note("cancel", moments.of_caller(self.core, self.processes, caller))
            caller.token += 1
            self._continue(caller, lambda: caller.steps.throw(GaveUp()))

    def _continue(self, caller: Caller, go: Callable[[], Wait]) -> None:
        try:
            caller.waiting = go()
        except GaveUp:
            self._ended(caller, "cancelled")
        except StopIteration as stop:
            self._ended(caller, stop.value)
        else:
            token, until = caller.token, caller.waiting.until
            if until != INFINITY and self._chance("late_caller"):
                until += self.rng.random()
            self.at(until, lambda: self._resume(caller, token))

    def _ended(self, caller: Caller, outcome: str) -> None:
        assert caller.ended is None, f"{caller} ended twice: {caller.ended}, {outcome}"
        assert caller.lease_id not in self.core.leases, f"{caller} ended and its lease is still there"
        caller.ended = outcome
        self.outcomes[outcome] += 1
        del self.callers[caller.name]

    def _wake(self, caller: Caller, kind: str) -> None:
        """Wake a caller that waits for this, after a moment in which anything may happen."""
        if caller.waiting is not None and caller.waiting.kind == kind:
            token = caller.token
            self.at(self._soon(self.rng.choice((0.0, 0.0, 0.02))), lambda: self._resume(caller, token))

    def _woken(self, effect: c.Grant | c.Reject) -> None:
        caller = self.by_lease.get(effect.lease_id)
        if caller is None:
            return
        if self._chance("cancel_at_order"):  # it was handed a worker, and never wakes to see it
            self.at(self.now, lambda: self._cancel(caller))
        lease = self.core.leases.get(effect.lease_id)
        process = self.processes.get(lease.worker_id or 0) if lease is not None else None
        if isinstance(effect, c.Grant) and process is not None and self._chance("crash_at_order"):
            self._dies_by_itself(process)
        self._wake(caller, "grant")

    def _unhang(self, caller: Caller) -> None:
        """A call that hangs and has no deadline would hang for ever: that is its caller's choice, not a bug."""
        lease = self.core.leases.get(caller.lease_id)
        if lease is None or lease.worker_id is None or caller.deadline != INFINITY:
            return
        process = self.processes[lease.worker_id]
        pipe = process.pipes[lease.slot]
        if pipe.frame == lease.lease_id:
            self.at(self._soon(), lambda: self._answered(process, pipe, lease.lease_id))
