"""Who gets which worker: checkout, queueing, offers, sessions' pins, refusals.

Rules:
    1. A lease keeps its call_id for life; a free slot goes to the earliest waiter that may use it; a newcomer takes one
       only if no earlier waiter may. At the end of a step no slot is idle while a waiter could use it.
    2. A call that waits again, or whose session's pin moved, is queued where it belongs now, at once, so that every
       offer sees it; at the end of the step those calls are given the workers that are idle already, earliest first.
    3. All waiters of one class can be served by the same workers, so they are hopeless together.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import islice

from dspool.pool.core import commands as c, refusals
from dspool.pool.core.affinity import Session
from dspool.pool.core.fleet import READY, STARTING
from dspool.pool.core.idle import Rank
from dspool.pool.core.overload import Overload
from dspool.pool.core.records import Lease, Worker
from dspool.pool.core.states import LeaseState, PoolState, SlotState

QUEUED, CHECKING, GRANTED, CLOSED = LeaseState
IDLE, LEASED, CANCELLING, ABANDONED, SLOT_CLOSED = SlotState
_LOOKED_AT = 64
"""Leases among which the longest held is looked for when a call has waited in vain: thousands may, at once."""


class Dispatch(Overload):
    """Leases until they are granted, or refused."""

    _loose: list[tuple[int, int, int]]
    """Waiters that may fit an idle worker, as (priority, call_id, lease_id): a heap, emptied at the end of a step."""

    # --- checkout -------------------------------------------------------------------------------------------------

    def _on_checkout(self, command: c.Checkout) -> None:
        if command.lease_id in self.leases:
            return
        counters = self.counters
        counters.checkouts += 1
        if command.retry:
            counters.retries += 1
        lease = Lease(
            command.lease_id,
            command.call_id,
            self._now,
            command.program,
            command.session,
            command.affinity,
            command.session_lost_is_error,
            command.require,
            command.priority,
            command.deadline,
            command.hold_s,
            command.size_bytes,
            command.cancellable,
        )
        self.leases[lease.lease_id] = lease
        late = c.AT_ONCE < lease.deadline < self._now
        plain = self.state is PoolState.OPEN and not lease.require and not self.quarantine.records
        if plain and lease.session is None and self._only_group is not None and not self.paused:
            worker = self._only_group.idle.last_used(lease.program)
            if worker is not None and not late:
                self._take_slot(lease, worker)
                return
        if (not plain or late) and self._refused_at_once(lease, late, command.retry):
            return
        if self.quarantine.records:
            lease.trial = self.quarantine.admit(lease.program, lease.call_id)
        if lease.session is not None:
            self.sessions.queue(lease.session, lease.lease_id)
            self._forget_sessions()
        worker = self._find(lease)
        if worker is not None:
            self._grant(lease, worker)
        elif lease.state is QUEUED:
            self._wait(lease, newcomer=not command.retry)

    def _refused_at_once(self, lease: Lease, late: bool, retry: bool) -> bool:
        """Whether it is refused whatever the workers do. A retry was accepted before: a draining pool finishes it."""
        if self.state is not PoolState.OPEN and not (retry and self.state is PoolState.DRAINING):
            self._refuse(lease, refusals.closed(self.state.value))
        elif lease.require and not self._fitting(lease.require):
            self._refuse(lease, refusals.no_such_labels(lease.require, self.groups))
        elif late:
            self._refuse_late(lease)
        elif (wait_s := self.quarantine.refused(lease.program, self._now)) is not None:
            self._refuse(lease, self._held(lease.program, wait_s))
        return lease.state is CLOSED

    def _find(self, lease: Lease) -> Worker | None:
        """An idle worker for `lease`. It may be refused instead."""
        name = lease.session
        if name is not None and lease.session_lost_is_error and self.sessions.table[name].lost:
            self._tell_loss(lease, name)
            return None
        pinned = self._pinned_worker(lease)
        if pinned is None:
            return None if self.paused else self._idle_worker(lease)
        if not self._suits(lease, pinned):
            self._refuse(lease, refusals.pin_unfit(lease, pinned.worker_id))
        elif pinned.free and not self.paused:
            return pinned
        elif lease.affinity == "strict_fail_fast":
            self._refuse(lease, refusals.session_busy(name, pinned.worker_id))
        return None

    def _pinned_worker(self, lease: Lease) -> Worker | None:
        """The one worker that `lease` may have, if there is one. A hint to one that doesn't suit is none."""
        if lease.session is None or lease.spilled:
            return None
        session = self.sessions.table[lease.session]
        if session.worker_id is None:
            return None
        worker = self.workers[session.worker_id]
        if lease.affinity == "hint" and not self._suits(lease, worker):
            lease.spilled = True
            return None
        return worker

    def _suits(self, lease: Lease, worker: Worker) -> bool:
        return worker.worker_id not in lease.skipped and worker.group.name in self._fitting(lease.require)

    def _idle_worker(self, lease: Lease) -> Worker | None:
        """The least busy worker with an idle slot; of equals, one that holds the program, then the last one used."""
        best: tuple[Rank, Worker] | None = None
        for name in self._fitting(lease.require):
            found = self.groups[name].idle.pick(lease.program, lease.skipped, lease.session is not None)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return None if best is None else best[1]

    # --- granting -------------------------------------------------------------------------------------------------

    def _grant(self, lease: Lease, worker: Worker) -> None:
        """Law 1: from here on the slot is leased, whenever its caller wakes. Or its caller is told of a loss."""
        moved = False
        if lease.session is not None:
            if lease.session_lost_is_error and self._loses(lease.session, worker):
                self._tell_loss(lease, lease.session)
                return
            self.timers.disarm("hint", lease.lease_id)
            moved = self._pin(lease, lease.session, worker)
        if lease.wait_key is not None:
            self.queue.discard(lease)
        self._take_slot(lease, worker)
        if moved:
            assert lease.session is not None
            self._reroute((self.sessions.table[lease.session],))

    def _take_slot(self, lease: Lease, worker: Worker) -> None:
        """The lease, which is queued, has a slot of this worker, which has an idle one."""
        now = self._now
        index = lease.slot = worker.group.idle.lend(worker)
        slot = worker.slots[index]
        slot.state = LEASED
        slot.lease_id = lease.lease_id
        if self.options.check is None:
            lease.state = GRANTED
            self._watch_hold(lease)
        else:
            lease.state = CHECKING
            if lease.deadline > now:  # else it was now or never, and it was now
                self.timers.arm(lease.deadline, "check", lease.lease_id)
        lease.worker_id = worker.worker_id
        lease.granted_at = lease.run_since = now
        lease.running = lease.program is not None
        if not lease.skipped and not lease.removed:
            counters, waited = self.counters, now - lease.created_at
            counters.granted += 1
            if waited:
                counters.queue_wait_s_sum += waited
                if waited > counters.queue_wait_s_max:
                    counters.queue_wait_s_max = waited
            if self.lines is not None and self.lines.table:
                self._saw_wait(lease, waited)
        self._effects.append(c.Grant(lease.lease_id))

    def _watch_hold(self, lease: Lease) -> None:
        """It is its holder's from now on: what a hook took to look at the worker is not the holder's time."""
        if lease.hold_s != c.INFINITY:
            self.timers.arm(self._now + lease.hold_s, "hold", lease.lease_id)

    def _offer(self, worker: Worker) -> None:
        if self.queue.count:
            self._lend(worker)
        if worker.free:
            worker.group.idle.enter(worker)
            if worker.overflow and not worker.busy:
                self._arm_linger(worker)

    def _lend(self, worker: Worker) -> None:
        """Its idle slots to the earliest waiters that may use them."""
        while worker.free and self.queue.count and not self.paused:
            lease = self.queue.first_for(worker)
            if lease is None:
                break
            if self._late(lease):
                self._refuse_late(lease)
            elif not self._shed_if_too_old(lease):
                self._grant(lease, worker)

    def _slot_idle(self, worker: Worker, index: int) -> None:
        """A slot is idle again; its worker may be anything but dead."""
        slot = worker.slots[index]
        slot.to(IDLE)
        slot.lease_id = slot.left_behind = None
        worker.idle_since = self._now
        if worker.state is READY:
            if worker.free:
                worker.group.idle.leave(worker)
            worker.free.append(index)
            self._offer(worker)
        else:
            worker.free.append(index)
            self._stop_if_drained(worker)

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait(self, lease: Lease, *, newcomer: bool) -> None:
        """Queue a checkout, unless the queue is full or no worker will ever come."""
        queue, options = self.queue, self.options
        if lease.deadline <= self._now:
            self._refuse_late(lease)
            return
        too_big = queue.size_bytes + lease.size_bytes > options.max_waiting_bytes
        full = queue.count >= options.max_waiting
        group = self._only_group  # at full strength: nobody is started for it, and somebody will come free
        grows = group is None or lease.skipped or not group.ready or group.ready < group.size + group.overflow
        if full and grows:
            self._fill()  # a start that those who wait already are owed, after a back-off, is not for the newcomer
        self._stand(lease)
        started, refusal = False, None
        if grows:
            before = self.counters.started
            self._fill()
            started = self.counters.started > before
            unpinned = lease.wait_key is not None and lease.wait_key[0] is None
            refusal = self._hopeless(self._fitting(lease.require), lease) if unpinned else None
        if refusal is not None:
            self._refuse(lease, refusal)
        elif newcomer and (too_big or (full and not started)):  # who is started for doesn't wait for somebody else's
            queue.discard(lease)
            groups = [self.groups[name] for name in self._fitting(lease.require)]
            self._refuse(lease, refusals.saturated(queue.count, queue.size_bytes, groups, options))
        elif newcomer:
            self._line_up(lease)

    def _stand(self, lease: Lease) -> None:
        """Stand in the queue where it belongs now."""
        pinned = self._pinned_worker(lease)
        self.queue.put(lease, None if pinned is None else pinned.worker_id)
        if lease.session is not None and lease.affinity == "hint":
            when = c.INFINITY if pinned is None else self._now + self.options.affinity_wait_s
            self.timers.arm(when, "hint", lease.lease_id)

    def _requeue(self, lease: Lease) -> None:
        """It stands elsewhere from now on, and may take an idle worker at the end of the step."""
        self.queue.discard(lease)
        if self.state in (PoolState.CLOSING, PoolState.CLOSED):
            self._refuse(lease, refusals.closed_while_waiting())
            return
        self._stand(lease)
        self._stale = True
        heappush(self._loose, (lease.priority, lease.call_id, lease.lease_id))

    def _reroute(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            for lease_id in list(session.queued):
                lease = self.leases[lease_id]
                if lease.wait_key is not None:
                    lease.spilled = False
                    self._requeue(lease)

    def _spill(self, lease: Lease) -> None:
        """A hint call has waited long enough for its session's worker: any worker will do now."""
        if not self.paused:
            lease.spilled = True
            self._requeue(lease)

    def _finish(self) -> None:
        """The end of a step: idle workers for those who stand elsewhere now, starts, and refusals of the hopeless."""
        while self._stale:
            self._stale = False
            self._place_loose()
            self._fill()
            self._reject_hopeless()
        self._tell_health()

    def _place_loose(self) -> None:
        while self._loose:
            lease = self.leases.get(heappop(self._loose)[2])
            if lease is not None and lease.wait_key is not None:
                self._place(lease)

    def _late(self, lease: Lease) -> bool:
        """Whether its wait is over. Now or never is no wait: that one may have any worker that is idle in this step."""
        return c.AT_ONCE < lease.deadline <= self._now

    def _place(self, lease: Lease) -> None:
        if self._late(lease):
            self._refuse_late(lease)
        elif not lease.trial and (wait_s := self.quarantine.refused(lease.program, self._now)) is not None:
            self._refuse(lease, self._held(lease.program, wait_s))
        elif (worker := self._find(lease)) is not None:
            self._grant(lease, worker)
        elif lease.deadline == c.AT_ONCE and lease.wait_key is not None:
            unpinned = lease.wait_key[0] is None
            refusal = self._hopeless(self._fitting(lease.require), lease) if unpinned else None
            self._refuse(lease, refusal or self.why_late(lease, self._now))

    # --- sessions -------------------------------------------------------------------------------------------------

    def _pin(self, lease: Lease, name: str, worker: Worker) -> bool:
        """The session runs here now. Returns whether its pin moved."""
        session = self.sessions.run(name, lease.lease_id)
        moved = session.worker_id != worker.worker_id
        if moved:
            if session.worker_id is not None:
                self.counters.spills += 1
                self._unpin(name, session)
            session.worker_id = worker.worker_id
            worker.sessions[name] = None
        # Also where it stays: the call that moved it may have been cancelled before it looked at what it was told.
        lease.session_restarted, session.lost = session.lost, False
        return moved

    def _unpin(self, name: str, session: Session) -> None:
        """The session leaves a worker that lives."""
        assert session.worker_id is not None
        del self.workers[session.worker_id].sessions[name]
        session.unpin()

    def _loses(self, name: str, worker: Worker) -> bool:
        """Whether the session leaves something behind when it runs here. It is unpinned then."""
        session = self.sessions.table[name]
        if session.used and session.worker_id not in (None, worker.worker_id):
            self._unpin(name, session)
            self._reroute((session,))
        return session.lost

    def _tell_loss(self, lease: Lease, name: str) -> None:
        """SessionLost, once: the session's next call starts afresh."""
        self.sessions.table[name].lost = False
        self._refuse(lease, refusals.session_lost(name))

    def _unpin_unused(self, name: str, session: Session) -> None:
        """The call that pinned it never ran there: it is as if it had never been granted."""
        if session.worker_id is not None and not session.used and not session.running:
            self._unpin(name, session)
            self._reroute((session,))

    def _forget_sessions(self) -> None:
        sessions = self.sessions
        while (name := sessions.expired(self._now)) is not None:
            session = sessions.forget(name)
            if session.worker_id is not None:
                del self.workers[session.worker_id].sessions[name]
        if not self.timers.armed("session") and (expiry := sessions.next_expiry()) is not None:
            self.timers.arm(expiry, "session")

    # --- refusals -------------------------------------------------------------------------------------------------

    def _refuse(self, lease: Lease, refusal: c.Refusal) -> None:
        """End a lease that holds no slot. It stays in the table until its caller has read why."""
        self._leave_queue(lease)
        lease.to(CLOSED)
        lease.refusal = refusal
        if refusal.code == "QueueTimeout":
            self.counters.queue_timeouts += 1
        else:
            self.counters.rejected[refusal.code] = self.counters.rejected.get(refusal.code, 0) + 1
        self._emit(c.Reject(lease.lease_id))

    def _refuse_late(self, lease: Lease) -> None:
        self._refuse(lease, self.why_late(lease, self._now))

    def why_late(self, lease: Lease, now: float) -> c.Refusal:
        """What its wait was for, as the workers that may serve it are now."""
        groups = [self.groups[name] for name in self._fitting(lease.require)]
        # Leases stand in the order of their checkout, so that those that hold a slot come before those that wait.
        held = [each for each in islice(self.leases.values(), _LOOKED_AT) if each.is_granted]
        oldest = min(held, key=lambda each: each.granted_at, default=None)
        return refusals.late(now - lease.created_at, self.queue.count, groups, oldest, now, paused=self.paused)

    def _leave_queue(self, lease: Lease) -> None:
        self.queue.discard(lease)
        self._leave_line(lease)
        if lease.trial:
            self.quarantine.withdrawn(lease.program, lease.call_id)
        if lease.session is not None:
            self.timers.disarm("hint", lease.lease_id)
            self.sessions.unqueue(lease.session, lease.lease_id, self._now)
            self._forget_sessions()

    def _held(self, program: str | None, wait_s: float) -> c.Refusal:
        return refusals.quarantined(program, wait_s, self.quarantine.ends(program), self.options)

    def _quarantined(self, program: str) -> None:
        for lease in list(self.queue.everybody()):
            if lease.program == program:
                self._refuse(lease, self._held(program, self.options.quarantine_s))

    def _reject_hopeless(self) -> None:
        for waiters, leases in list(self.queue.unpinned()):
            refusal: c.Refusal | None = None
            for lease in leases:
                refusal = self._hopeless(waiters.groups, lease)
                if refusal is None:
                    break
                self._refuse(lease, refusal)

    def _hopeless(self, fitting: tuple[str, ...], lease: Lease) -> c.Refusal | None:
        """Why no worker will ever come for it; None where one may.

        It is refused in the step in which no worker outside its skip set is left and none may be started.
        """
        groups = [self.groups[name] for name in fitting]
        left = sum(group.lendable for group in groups)
        for worker_id in lease.skipped:
            worker = self.workers.get(worker_id)
            left -= worker is not None and worker.state in (STARTING, READY)
        if left > 0 or any(self._start_possible(group) for group in groups):
            return None
        if lease.skipped:
            return refusals.skipped_by_all(lease.skipped)
        if any(group.breaker.state != "closed" for group in groups):
            return refusals.broken(groups, self.options)
        return None
