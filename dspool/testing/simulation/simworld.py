"""SimWorld: a pool's core in a world of simulated processes, callers and accidents, on a virtual clock.

Everything follows from the seed. A *swarm*: each seed switches a random subset of the faults on, at random rates, over
random options. First a *safety phase* with faults; then a *liveness phase*, in which faults stop: every call must end,
and the pool must be whole again, within bounded virtual time; then the pool is closed and must be empty.

After each step `invariants` are checked, the `referee` judges the orders, and the world's own books are compared, which
are kept apart from the core's tables:
    * each call ends exactly once, and nothing of it is left in the core;
    * a slot never has two callers, and one with an unanswered frame is never written to;
    * an answer reaches only the lease that asked;
    * a call that isn't idempotent runs at most once.

It is written in layers, each a class on top of the one before; this one has the phases and the table of effects:

    world      the seed, the clock, one step of the core
    templates  what workers are forked from
    processes  worker processes and their pipes
    calls      the way of a call
    callers    who calls, and when it wakes
    accidents  what befalls the pool from outside

Beside them stand `swarm` (what a seed draws first), `parts` (records), `moments` (in which state a fault struck),
`books`, `referee`, `starts` and `trace`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from dspool.pool.core import commands as c
from dspool.pool.core.states import PoolState, WorkerState
from dspool.testing.simulation.accidents import Accidents
from dspool.testing.simulation.parts import SimulationFailure

LIVENESS_S = 900.0
"""Virtual seconds in which everything must have ended once faults stop."""


class SimWorld(Accidents):
    """One seed's world.

    Args:
        seed: everything follows from it.
        steps: how many steps of the core the safety phase takes.
        checked: False leaves the invariants out, for the second run of a seed that only compares traces.
        tell: called with each line of the trace, as it happens.
    """

    def run(self) -> str:
        """The three phases. Returns the trace's hash.

        Raises:
            SimulationFailure: a law was broken, or something never ended; the message says how to see it again.
        """
        try:
            self._safety_phase()
            self._liveness_phase()
            self._closing_phase()
        except Exception as error:
            self.stopped = True
            raise SimulationFailure(self._failure(error)) from error
        return self.trace.digest()

    def _perform(self, effect: c.Effect) -> None:
        perform = _PERFORMERS.get(type(effect))
        if perform is not None:
            perform(self, effect)
        if isinstance(effect, (c.Spawn, c.Stop, c.Probe, c.CancelCall, c.Abandon)):
            self._struck_at(effect)

    # --- the phases ---------------------------------------------------------------------------------------------------

    def _safety_phase(self) -> None:
        self.step(c.Tick())
        self.at(self._soon(1.0), self._arrival)
        for fault, happens in self._accidents().items():
            if self.rates[fault]:
                self._repeat(fault, happens)
        while self.steps < self.safety_steps and self.core.state is not PoolState.CLOSED:
            self._advance()

    def _liveness_phase(self) -> None:
        """No new faults. What hangs is cut short only where nobody watches its time."""
        self.calm = True
        self.step(c.Resume())
        for group in self.core.groups.values():
            if group.size + group.overflow < 1:
                self.step(c.Resize(group.name, 1))
        if self.options.ping_interval_s is None:  # nobody would ever find out
            for process in self.processes.values():
                process.hung = False
        for caller in self.callers.values():
            self._unhang(caller)
        until = self.now + LIVENESS_S
        while self.callers:
            self._require_before(until)
            self._advance()
        if self.core.state is not PoolState.OPEN:
            return
        self._leave_one_hanging()
        while (missing := self._not_whole()) is not None:
            self._require_before(until, missing)
            self._advance()
        self.now += self.options.quarantine_s  # whatever is in quarantine gets its trial now
        for group, program in product(self.core.groups.values(), ("a", "b", "evil")):
            self._final_call(group.options.labels, program)
            while self.callers:
                self._require_before(until + LIVENESS_S)
                self._advance()

    def _leave_one_hanging(self) -> None:
        """Nobody calls any more: a worker that stands still now is found out by its pings, or by nobody."""
        alive = [process for process in self.processes.values() if process.ready and not process.dead]
        if self.rates["hang"] and alive and self.options.ping_interval_s is not None:
            alive[0].hung = True

    def _closing_phase(self) -> None:
        if self.core.state is PoolState.OPEN and self.rng.random() < 0.5:
            for _ in range(3):
                self._arrival_of_one()
        if self.core.state is not PoolState.CLOSED:
            self.step(c.Close(self.now + self.rng.choice((0.0, 0.5, 3.0))))
        until = self.now + LIVENESS_S
        while self.core.state is not PoolState.CLOSED or self.callers:
            self._require_before(until)
            self._advance()
        assert all(process.reported for process in self.processes.values()), "a process outlives its pool"
        assert not self.core.leases, f"leases {sorted(self.core.leases)} outlive their callers"
        left = [session for session in self.core.sessions.table.values() if session.in_use]
        assert not left, "a session is in use though every call has ended"

    # --- what must be so ----------------------------------------------------------------------------------------------

    def _require_before(self, until: float, what: str | None = None) -> None:
        if self.now > until:
            pending = what or "; ".join(str(caller) for caller in self.callers.values()) or self.core.state.value
            raise AssertionError(f"still pending {LIVENESS_S:g} virtual seconds after the last fault: {pending}")

    def _not_whole(self) -> str | None:
        """What keeps the pool from being as it was meant to be; None where it is."""
        for group in self.core.groups.values():
            wanted = 0 if self.options.lazy else group.size
            if group.ready < wanted or group.starting or group.draining or group.stopping:
                counts = f"{group.starting} starting, {group.ready} ready, {group.draining} draining"
                return f"group {group.name}: {wanted} wanted, {counts}, {group.stopping} stopping"
            if group.ready > group.size:
                return f"group {group.name}: {group.ready} ready, {group.size} wanted"
            if group.breaker.state == "open":
                return f"group {group.name}: its breaker is open"
            if group.due and self.options.max_lifetime_s is None:
                return f"group {group.name}: workers {list(group.due)} are due for ever"
        for worker in self.core.workers.values():
            if worker.state is WorkerState.STOPPING:  # its exit may yet open a breaker, counted or not
                return f"worker {worker.worker_id} has not ended"
        alive = [process for process in self.processes.values() if not process.reported]
        if len(alive) != len(self.core.workers):
            return f"{len(alive)} processes live, {len(self.core.workers)} workers are known"
        for process in alive:
            if process.dead:
                return f"worker {process.worker_id} is dead, and nobody was told"
            if process.hung:
                return f"worker {process.worker_id} hangs"
            if process.template is not None and not process.template.alive:
                return f"worker {process.worker_id} is of a template that died"
        return self.referee.waits_for_ever()

    def _failure(self, error: BaseException) -> str:
        lines = self.trace.last_lines()
        replay = f"python -m dspool.testing.simulator --seed {self.seed} --steps {self.safety_steps} --verbose"
        phase = "liveness" if self.calm else "safety"
        name = type(error).__name__
        said = f"seed {self.seed}, step {self.steps}, {phase} phase, at {self.now:.6f}: {name}: {error}"
        return "\n".join([said, *lines, f"replay: {replay}"])


_PERFORMERS: dict[type, Callable[[SimWorld, Any], None]] = {
    c.Spawn: SimWorld._spawned,
    c.Stop: SimWorld._stopped,
    c.Kill: SimWorld._killed,
    c.Probe: SimWorld._probed,
    c.Renew: SimWorld._renewed,
    c.CancelCall: SimWorld._left_behind,
    c.Abandon: SimWorld._left_behind,
    c.Grant: SimWorld._woken,
    c.Reject: SimWorld._woken,
}
"""Reports are for people: nobody in the world acts on them."""
