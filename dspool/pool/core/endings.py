"""How a grant ends: verdicts, runs, checkin, cancel, and the slots that cancelled calls leave behind.

Rules:
    1. A verdict that isn't KEEP takes the grant back: nothing was sent, so nothing happened, and the lease keeps its
       place.
    2. A slot with an unanswered frame is never idle. Not written: idle at once. Written: the worker is removed, or the
       slot is *cancelling* or *abandoned* until the control plane has read the call's last frame.
    3. The answer that the pipe still held wins over the exit: a checkin may come after its worker is gone.
"""

from __future__ import annotations

from math import nextafter
from typing import Literal

from dspool.options import MAX_REMOVALS
from dspool.pool.core import commands as c, recycling, refusals, restarts
from dspool.pool.core.dispatch import ABANDONED, CANCELLING, CHECKING, CLOSED, GRANTED, QUEUED, SLOT_CLOSED, Dispatch
from dspool.pool.core.fleet import DRAINING, READY, STOPPING
from dspool.pool.core.records import Lease, Worker
from dspool.pool.core.states import SlotState
from dspool.types import KEEP, Keep, Skip


class Endings(Dispatch):
    """Leases from their grant on."""

    # --- verdicts -------------------------------------------------------------------------------------------------

    def _on_verdict(self, command: c.CheckoutVerdict) -> None:
        lease = self.leases.get(command.lease_id)
        if lease is None or lease.state not in (CHECKING, GRANTED):
            return
        assert lease.worker_id is not None
        worker, verdict = self.workers.get(lease.worker_id), command.verdict
        alive = worker is not None and worker.state is not STOPPING
        if alive and isinstance(verdict, Keep):
            if lease.state is CHECKING:
                lease.to(GRANTED)
                self.timers.disarm("check", lease.lease_id)
                self._watch_hold(lease)
            return
        index = lease.slot  # the lease may hold another slot before this one is given back
        self._ungrant(lease)
        if command.deadline is not None:
            lease.deadline = command.deadline
        if alive and isinstance(verdict, Skip):
            self.counters.skips += 1
            lease.skipped[lease.worker_id] = verdict.reason
            self._requeue(lease)
            self._place_loose()  # its session's next call must not take the slot, and with it the pin, before it
            self._give_back(worker, index)
            return
        reason = "it ended while it was looked at" if isinstance(verdict, Keep) else verdict.reason
        lease.removed[lease.worker_id] = reason
        lease.found_dead += command.died or not alive
        self.counters.removals += 1
        if worker is not None:
            self._remove(worker, None if command.died else "removed", reason)
            self._give_back(worker, index)
        if len(lease.removed) >= MAX_REMOVALS:
            self._refuse(lease, refusals.too_many_removed(lease))
        else:
            self._requeue(lease)

    def _ungrant(self, lease: Lease) -> None:
        """The grant is taken back: nothing was sent, so nothing happened; the lease keeps its place."""
        lease.to(QUEUED)
        lease.running = False
        self.timers.disarm("hold", lease.lease_id)
        self.timers.disarm("check", lease.lease_id)
        name = lease.session
        if name is not None:
            session = self.sessions.requeue(name, lease.lease_id)
            session.lost = session.lost or lease.session_restarted
            lease.session_restarted = False
            if session.worker_id == lease.worker_id:
                self._unpin_unused(name, session)

    def _give_back(self, worker: Worker | None, index: int) -> None:
        """A lease lets go of its slot; its worker may be anything."""
        if worker is None:
            return
        if worker.state is STOPPING:
            worker.slots[index].to(SLOT_CLOSED)
            worker.slots[index].lease_id = None
        else:
            self._slot_idle(worker, index)

    # --- runs -----------------------------------------------------------------------------------------------------

    def _on_run_started(self, command: c.RunStarted) -> None:
        lease = self.leases.get(command.lease_id)
        if lease is None or lease.state is not GRANTED:
            return
        lease.program, lease.refusal = command.program, None
        wait_s = self.quarantine.refused(command.program, self._now)
        if wait_s is not None:
            lease.refusal = self._held(command.program, wait_s)
            return
        lease.running, lease.run_since = True, self._now
        if command.cancellable is not None:
            lease.cancellable = command.cancellable
        lease.trial = self.quarantine.admit(command.program, lease.call_id)

    def _on_run_ended(self, command: c.RunEnded) -> None:
        lease = self.leases.get(command.lease_id)
        if lease is None or lease.state is not GRANTED:
            return
        assert lease.worker_id is not None
        self._run_ended(lease, self.workers.get(lease.worker_id), command.outcome, command.error)
        lease.running = False

    def _run_ended(self, lease: Lease, worker: Worker | None, outcome: c.Outcome, error: str) -> None:
        """A run is over, whatever becomes of the lease."""
        if outcome == "lost":
            self.counters.calls_lost += 1
            self._call_failed(lease, self._how_lost(lease))
            if worker is not None:
                self._remove(worker, None, "its pipe ended")
            judged_later = worker is not None and (lease.program, lease.call_id) in worker.in_flight
            if lease.trial and not judged_later:  # it was begun in a worker that was known to be dead
                self.quarantine.withdrawn(lease.program, lease.call_id)
        elif outcome != "none" and lease.running:
            self._served(lease, worker, outcome, error)
        elif lease.trial:
            self.quarantine.withdrawn(lease.program, lease.call_id)
        lease.trial = False

    def _how_lost(self, lease: Lease) -> str:
        last = self.counters.last_exit
        if last is not None and last.worker_id == lease.worker_id:
            return restarts.how_it_ended(last)
        return f"worker {lease.worker_id}: its pipe ended"

    def _call_failed(self, lease: Lease, error: str) -> None:
        self.outcomes.failed(error if lease.program is None else f"{lease.program}: {error}", self._now)

    def _served(self, lease: Lease, worker: Worker | None, outcome: Literal["ok", "failed"], error: str) -> None:
        """The call's answer came."""
        counters, took = self.counters, self._now - lease.run_since
        if outcome == "ok":
            counters.calls_ok += 1
            self.outcomes.calls.ok(took, self._now)
        else:
            counters.calls_failed += 1
            self._call_failed(lease, error or "it failed")
        counters.run_s_sum += took
        if took > counters.run_s_max:
            counters.run_s_max = took
        program, quarantine = lease.program, self.quarantine
        watched = quarantine.records or quarantine.suspects
        if watched and program is not None and quarantine.survived(program, lease.call_id):
            self._report("program.released", program=program)
        if worker is not None:
            if program is not None and worker.last_program != program and worker.state is READY:
                self._holds(worker, program)
            worker.calls += 1
            if not worker.good:
                self._proved_good(worker)
            if worker.calls >= worker.request_limit:
                self._mark_due(worker, "recycle_requests", recycling.by_requests(worker, self.options))
        if lease.session is not None:
            self.sessions.table[lease.session].answered(lease.worker_id)

    # --- the end of a lease ---------------------------------------------------------------------------------------

    def _on_checkin(self, command: c.Checkin) -> None:
        lease = self.leases.get(command.lease_id)
        if lease is None:
            return
        if lease.state is CLOSED or lease.state is QUEUED:
            self._forget(lease)
            return
        assert lease.worker_id is not None
        worker = self.workers.get(lease.worker_id)
        self._run_ended(lease, worker, command.outcome, command.error)
        lease.running = False
        if command.verdict is not KEEP and not isinstance(command.verdict, Keep) and worker is not None:
            self.counters.removals += 1
            self._remove(worker, command.exit_reason, command.verdict.reason)
        self._end(lease)
        self._give_back(worker, lease.slot)

    def _end(self, lease: Lease) -> None:
        """A lease that held a slot is over."""
        lease.state = CLOSED
        del self.leases[lease.lease_id]
        if lease.hold_s != c.INFINITY:
            self.timers.disarm("hold", lease.lease_id)
        if self.options.check is not None:
            self.timers.disarm("check", lease.lease_id)
        if lease.session is not None:
            self.sessions.end(lease.session, self._now)
            self._forget_sessions()

    def _forget(self, lease: Lease) -> None:
        """The caller is through with a lease that holds no slot."""
        if lease.state is not CLOSED:
            self._leave_queue(lease)
            lease.to(CLOSED)
        del self.leases[lease.lease_id]

    def _on_cancel(self, command: c.Cancel) -> None:
        lease = self.leases.get(command.lease_id)
        if lease is None:
            return
        if lease.state is CLOSED:
            self._forget(lease)
            return
        queued, timeout = lease.state is QUEUED, command.why == "timeout"
        counters = self.counters
        if not timeout:
            counters.calls_cancelled += 1
        elif queued or not command.written:
            counters.queue_timeouts += 1
        else:
            counters.calls_timeout += 1
            self._call_failed(lease, f"it was over its deadline in worker {lease.worker_id}")
        if queued:
            self._forget(lease)
            return
        assert lease.worker_id is not None
        worker = self.workers.get(lease.worker_id)
        if lease.trial:
            self.quarantine.withdrawn(lease.program, lease.call_id)
        if command.written and worker is not None and worker.state is not STOPPING:
            self._give_up(lease, worker, command.why)
            return
        looked = command.written or (lease.program is not None and not lease.running)  # it ran something before
        if lease.session is not None and lease.session_restarted and not looked:
            self.sessions.table[lease.session].lost = True
        self._end(lease)
        self._give_back(worker, lease.slot)

    def _give_up(self, lease: Lease, worker: Worker, why: Literal["cancelled", "timeout"]) -> None:
        """Law 2: the request was (perhaps) written, and nobody wants its answer any more."""
        index, options = lease.slot, self.options
        if lease.cancellable:
            self._leave_behind(lease, worker, CANCELLING)
            self._emit(c.CancelCall(worker.worker_id, index, lease.lease_id))
            self.timers.arm(self._now + options.cancel_grace_s, "cancel", worker.worker_id, lease.lease_id)
        elif len(worker.slots) > 1 and (worker.leased > 1 or worker.free):
            self._leave_behind(lease, worker, ABANDONED)
            self._emit(c.Abandon(worker.worker_id, index, lease.lease_id))
            deadline = self._now if lease.deadline == c.INFINITY else max(self._now, lease.deadline)
            self.timers.arm(deadline + options.grace_s, "abandon", worker.worker_id, lease.lease_id)
        else:
            detail = f"lease {lease.lease_id}, {self._now - lease.granted_at:.3f} s after it was granted"
            self._remove(worker, why, detail, dump=why == "timeout")
        self._end(lease)
        if worker.state is STOPPING:
            self._give_back(worker, index)
        elif worker.state is DRAINING:
            self._stop_if_drained(worker)

    def _checked_too_long(self, lease_id: int) -> None:
        """Its deadline came while the hook looked, and nothing can end a hook on its caller's thread: the slot goes on.

        It is what the caller itself does when it looks in time.
        """
        lease = self.leases[lease_id]
        lease.refusal = refusals.hook_late(lease.worker_id, self._now - lease.created_at)
        self._report("hook.late", hook="check", worker_id=lease.worker_id, lease_id=lease_id)
        self._on_cancel(c.Cancel(lease_id, written=False, why="timeout"))

    def _held_too_long(self, lease_id: int) -> None:
        """Its holder may be reading or writing at this moment, so nobody else can read the slot: the worker goes."""
        lease = self.leases[lease_id]
        assert lease.worker_id is not None
        if c.Grant(lease_id) in self._effects:  # not in the step of its grant: its caller finds it in the table
            self.timers.arm(nextafter(self._now, c.INFINITY), "hold", lease_id)
            return
        self._report("lease.expired", lease_id=lease_id, worker_id=lease.worker_id, hold_s=lease.hold_s)
        self.counters.calls_timeout += 1
        if lease.running:
            self._call_failed(lease, f"its lease was held longer than hold_s={lease.hold_s:g}")
        if lease.trial:
            self.quarantine.withdrawn(lease.program, lease.call_id)
        worker = self.workers.get(lease.worker_id)
        if worker is None or worker.state is STOPPING:
            self._end(lease)
            self._give_back(worker, lease.slot)
            return
        self._leave_behind(lease, worker, ABANDONED)
        self._end(lease)
        if not worker.leased:
            self._remove(worker, "timeout", f"lease {lease_id} was held longer than hold_s={lease.hold_s:g}", dump=True)
        elif worker.state is READY:
            self._retire(worker, "timeout")

    def _leave_behind(self, lease: Lease, worker: Worker, state: SlotState) -> None:
        """The lease ends and its call may still run in the slot."""
        slot = worker.slots[lease.slot]
        slot.to(state)
        if lease.running:
            slot.left_behind = lease.program, lease.call_id
            if lease.session is not None:
                self.sessions.table[lease.session].answered(worker.worker_id)

    # --- slots left behind ----------------------------------------------------------------------------------------

    def _on_slot_settled(self, command: c.SlotSettled) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None or worker.state is STOPPING or not 0 <= command.slot < len(worker.slots):
            return
        slot = worker.slots[command.slot]
        if slot.lease_id == command.lease_id and slot.state in (CANCELLING, ABANDONED):
            self.timers.disarm("cancel", worker.worker_id, command.lease_id)
            self.timers.disarm("abandon", worker.worker_id, command.lease_id)
            self._slot_idle(worker, command.slot)

    def _slot_timer(self, kind: str, worker: Worker) -> None:
        """A cancelled or abandoned call has had its time: its neighbours finish, then the worker is killed."""
        if worker.state is READY:
            self._retire(worker, "cancelled" if kind == "cancel" else "timeout")
