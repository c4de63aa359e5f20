"""The referee: what a step may do, judged from the commands and the orders alone, and from what stood in the queue.

    referee.step(command, effects)     after each step: raises where a rule of the pool's was broken
    referee.waits_for_ever()           in a calm world: a worker that was to be replaced and still is there

Rules judged here, beside the core's own invariants, which see one moment and not what came before it:
    1. Who was told to end, or ended, is never lent, asked or told to end in another way than by a kill.
    2. A paused pool grants nothing.
    3. A worker never goes to a waiter while an earlier one stood there that could have used it (law 3).
    4. Each refusal has its reason in the facts: a deadline that has passed, a full queue, an open breaker.
    5. What time alone brings is done by the Tick after it: old workers are due, unused ones and sessions are gone.

It changes nothing, and draws no chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease, WaitKey, Worker
from dspool.pool.core.states import LeaseState, PoolState, WorkerState

_OVER = (PoolState.CLOSING, PoolState.CLOSED)
_LENDABLE = (WorkerState.STARTING, WorkerState.READY)
_SLACK_S = 0.01


class Referee:
    """Judges one core.

    Args:
        core: whose leases, workers and sessions are read.
        judges: False: it only keeps in mind what waits_for_ever() needs.
    """

    def __init__(self, core: PoolCore, *, judges: bool) -> None:
        self._core = core
        self._judges = judges
        self._paused = False
        self._ending: set[int] = set()
        self._exited: set[int] = set()
        self._to_go: set[int] = set()
        """Workers that somebody asked to have replaced."""
        self._known: set[int] = set()
        self._waited: dict[int, WaitKey] = {}
        """Who stood in the queue after the last step, and where."""
        self._waiting_bytes = 0
        self._places: set[tuple[str | None, int | None]] = set()
        """Sessions and workers of the last step's grants."""

    def step(self, command: c.Command, effects: list[c.Effect]) -> None:
        """Raise AssertionError, saying which rule is broken, by whom."""
        self._hear(command)
        core, known, self._known = self._core, self._known, set(self._core.workers)
        if not self._judges:
            return
        granted = [core.leases[effect.lease_id] for effect in effects if isinstance(effect, c.Grant)]
        self._places = {(lease.session, lease.worker_id) for lease in granted}
        for effect in effects:
            self._judge(effect, known)
        if isinstance(command, c.Tick):
            self._judge_time()
        waiters = {
            lease_id: lease.wait_key for lease_id, lease in core.leases.items() if lease.state is LeaseState.QUEUED
        }
        self._waited = {lease_id: key for lease_id, key in waiters.items() if key is not None}
        self._waiting_bytes = core.queue.size_bytes

    def waits_for_ever(self) -> str | None:
        """A ready worker that Reload or Recycle was meant for."""
        for worker in self._core.workers.values():
            if worker.state is WorkerState.READY and worker.worker_id in self._to_go:
                return f"worker {worker.worker_id} was to be replaced and is still lent"
        return None

    def _hear(self, command: c.Command) -> None:
        over = self._core.state in _OVER
        if isinstance(command, c.Pause):
            self._paused = not over
        elif isinstance(command, (c.Resume, c.Close)):
            self._paused = False
        elif isinstance(command, c.WorkerExited):
            self._ending.add(command.worker_id)
            self._exited.add(command.worker_id)
        elif isinstance(command, c.Reload) and not over:
            self._to_go |= self._known
        elif isinstance(command, c.Recycle):
            self._to_go |= self._known & {command.worker_id}

    # --- orders ---------------------------------------------------------------------------------------------------

    def _judge(self, effect: c.Effect, known: set[int]) -> None:
        if isinstance(effect, c.Grant):
            self._judge_grant(self._core.leases[effect.lease_id])
        elif isinstance(effect, c.Reject):
            self._judge_refusal(self._core.leases[effect.lease_id])
        elif isinstance(effect, c.Spawn):
            assert effect.worker_id not in known | self._exited, f"{effect}: its number was used before"
        elif isinstance(effect, (c.Probe, c.CancelCall, c.Abandon, c.Stop)):
            assert effect.worker_id not in self._exited, f"{effect}: that worker has exited"
            if isinstance(effect, c.Stop):
                self._ending.add(effect.worker_id)
        elif isinstance(effect, c.Kill):
            self._ending.add(effect.worker_id)
        elif isinstance(effect, c.Report) and effect.event == "worker.draining":
            self._ending.add(effect.fields["worker_id"])

    def _judge_grant(self, lease: Lease) -> None:
        assert lease.worker_id is not None
        assert lease.worker_id not in self._ending, (
            f"lease {lease.lease_id} is granted worker {lease.worker_id}, which was told to end, or ended (law 6)"
        )
        assert not self._paused, f"lease {lease.lease_id} is granted by a paused pool"
        core, place = self._core, (lease.priority, lease.call_id)
        worker = core.workers[lease.worker_id]
        for lease_id, before in self._waited.items():
            other = core.leases.get(lease_id)
            if other is None or other.wait_key is None or (other.priority, other.call_id) >= place:
                continue
            if other.wait_key != before or (other.session is not None and self._may_have_moved(other.session, before)):
                continue
            assert not _fits(before, worker) or other.deadline <= core.now, (
                f"worker {worker.worker_id} goes to lease {lease.lease_id} before lease {lease_id} (law 3)"
            )

    def _may_have_moved(self, session: str, before: WaitKey) -> bool:
        """Whether the session may have left the place where its calls wait, and come back, within this step."""
        elsewhere = any(name == session and worker_id != before[0] for name, worker_id in self._places)
        return before[0] is None or elsewhere

    # --- refusals -------------------------------------------------------------------------------------------------

    def _judge_refusal(self, lease: Lease) -> None:
        refusal = lease.refusal
        assert refusal is not None
        assert _EXCUSES[refusal.code](self, lease), (
            f"lease {lease.lease_id} is refused without a reason: {refusal.code}: {refusal.message}"
        )

    def _is_full(self, lease: Lease) -> bool:
        options = self._core.options
        if options.shed_target_s is not None and self._core.now - lease.created_at > 2 * options.shed_target_s:
            return True  # whether it was the pool's turn to shed is the core's own invariant
        too_many = len(self._waited) >= options.max_waiting
        return too_many or self._waiting_bytes + lease.size_bytes > options.max_waiting_bytes

    def _is_broken(self, lease: Lease) -> bool:
        fitting = [each for each in self._core.groups.values() if lease.require <= each.options.labels]
        left = [
            worker
            for worker in self._core.workers.values()
            if worker.state in _LENDABLE and worker.group in fitting and worker.worker_id not in lease.skipped
        ]
        return not left and any(each.breaker.state != "closed" for each in fitting)

    def _is_late(self, lease: Lease) -> bool:
        if lease.deadline != c.AT_ONCE or lease.session is not None or self._core.paused:
            return lease.deadline <= self._core.now
        idle = [worker for worker in self._core.workers.values() if worker.state is WorkerState.READY and worker.free]
        return not any(_fits((None, lease.require, frozenset(lease.skipped)), worker) for worker in idle)

    def _takes_nothing(self, lease: Lease) -> bool:
        return self._core.state is not PoolState.OPEN

    def _is_unsuited(self, lease: Lease) -> bool:
        fits = any(lease.require <= each.options.labels for each in self._core.groups.values())
        return bool(lease.skipped or lease.removed or (lease.refusal and lease.refusal.reasons)) or not fits

    # --- time -----------------------------------------------------------------------------------------------------

    def _judge_time(self) -> None:
        core, options = self._core, self._core.options
        for worker in core.workers.values():
            if worker.state is not WorkerState.READY:
                continue
            assert worker.ready_at is not None
            age_s, who = core.now - worker.ready_at, f"worker {worker.worker_id}"
            old = options.max_lifetime_s is not None and age_s > options.max_lifetime_s
            used_up = options.max_requests is not None and worker.calls >= options.max_requests
            assert worker.due or not old, f"{who} is {age_s:g} s old and not due"
            assert worker.due or not used_up, f"{who} has run {worker.calls} calls and is not due"
            unused_s = 0.0 if worker.busy or not worker.overflow else core.now - worker.idle_since
            assert unused_s <= options.overflow_linger_s + _SLACK_S, f"{who} lingers for {unused_s:g} s"
        for name, session in core.sessions.table.items():
            unused_s = 0.0 if session.in_use else core.now - session.last_used
            assert unused_s < options.session_ttl_s, f"session {name} is remembered after {unused_s:g} s"


def _fits(key: WaitKey, worker: Worker) -> bool:
    """Whether a waiter that stands there may have a slot of this worker."""
    pinned_to, require, skipped = key
    if pinned_to is not None and pinned_to != worker.worker_id:
        return False
    return require <= worker.group.options.labels and worker.worker_id not in skipped


_EXCUSES: dict[str, Callable[[Referee, Lease], Any]] = {
    "QueueTimeout": Referee._is_late,
    "PoolClosed": Referee._takes_nothing,
    "PoolSaturated": Referee._is_full,
    "PoolBroken": Referee._is_broken,
    "CheckoutSkipped": Referee._is_unsuited,
    "SessionBusy": lambda _, lease: lease.session is not None and lease.affinity == "strict_fail_fast",
    "SessionLost": lambda _, lease: lease.session is not None and lease.session_lost_is_error,
    "ProgramQuarantined": lambda referee, lease: lease.program in referee._core.quarantine.held(),
}
"""What must be so for a refusal of this name."""
