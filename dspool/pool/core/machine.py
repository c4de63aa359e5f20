"""PoolCore: the pool's decisions, as one function of (command, now).

    effects = core.handle(command, now)        deadline = core.next_deadline()

Rules:
    1. Total: nothing a user or a worker does makes it raise. A command about what is gone is a no-op.
    2. Callers read their lease from the table; Grant and Reject only wake them.
    3. Queue and call deadlines are the callers' own: they come as Cancel. The core refuses to spend a worker on a
       waiter whose deadline has passed, and keeps the deadlines that nobody waits for.
    4. It knows no clock, no chance, no thread, no process: `now` and the seed of its jitter are given to it.

It is written in layers, each a class on top of the one before; this one has the pool as a whole and the table of
handlers:

    fleet     starting, retiring, removing, exits
    upkeep    workers over time: ready, due, sizes, health
    overload  who waits in vain, in a pool that sheds
    dispatch  who gets which worker
    endings   how a grant ends

The laws (design: section "the core") are checked after every step in tests, by `invariants.check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspool.options import PoolOptions
from dspool.pool.core import commands as c, refusals
from dspool.pool.core.endings import Endings
from dspool.pool.core.fleet import READY, STARTING
from dspool.pool.core.records import Lease
from dspool.pool.core.states import PoolState
from dspool.pool.core.timers import TimerKind

_OVER = (PoolState.CLOSING, PoolState.CLOSED)


class PoolCore(Endings):
    """Decides; carries nothing out. One thread at a time.

    Args:
        options: the pool's options.
        seed: 0 to 1; where the jitter sequence begins, so that equal pools don't move in step.
    """

    def __init__(self, options: PoolOptions, seed: float = 0.0) -> None:
        super().__init__(options, seed)
        self._loose = []

    def handle(self, command: c.Command, now: float) -> list[c.Effect]:
        """Take one command at `now` (monotonic seconds) and say what is to be done, in order."""
        self._now = now
        effects: list[c.Effect] = []
        self._effects = effects
        _HANDLERS[type(command)](self, command)
        if self._stale:
            self._finish()
        return effects

    @property
    def now(self) -> float:
        """The time of the last step."""
        return self._now

    def next_deadline(self) -> float | None:
        """When Tick is wanted next, absolute monotonic seconds; None: not before something else happens."""
        return self.timers.next()

    # --- the pool as a whole --------------------------------------------------------------------------------------

    def _on_release(self, command: c.Release) -> None:
        if self.quarantine.release(command.program):
            self._report("program.released", program=command.program)

    def _on_pause(self, command: c.Pause) -> None:
        if self.state not in _OVER and not self.paused:
            self.paused = True
            self._report("pool.paused")

    def _on_resume(self, command: c.Resume) -> None:
        if self.state in _OVER or not (self.paused or self.state is PoolState.DRAINING):
            return
        self._lines_begin_anew()
        if self.state is PoolState.DRAINING:
            self._become(PoolState.OPEN)
        if self.paused:
            self.paused = False
            self._stale = True
            for worker in list(self.workers.values()):
                if worker.state is READY:
                    self._lend(worker)
            for lease in list(self.queue.everybody()):
                if self._overdue(lease):
                    self._spill(lease)
        self._report("pool.resumed")

    def _overdue(self, lease: Lease) -> bool:
        """Whether its wait for its session's worker was over while the pool was paused."""
        pinned = lease.wait_key is not None and lease.wait_key[0] is not None
        return pinned and lease.affinity == "hint" and not self.timers.armed("hint", lease.lease_id)

    def _on_drain(self, command: c.Drain) -> None:
        if self.state is PoolState.OPEN:
            self._become(PoolState.DRAINING)
            self._report("pool.draining", waiting=self.queue.count, leased=len(self.leases))

    def _on_close(self, command: c.Close) -> None:
        if self.state is PoolState.CLOSED:
            return
        if command.deadline < self.close_deadline:
            self.close_deadline = command.deadline
            self.timers.arm(command.deadline, "close")
        if self.state is PoolState.CLOSING:
            return
        self._become(PoolState.CLOSING)
        self.history.end(self._now)
        self.timers.disarm("health")
        self.paused = False
        self._report("pool.closing", waiting=self.queue.count, leased=len(self.leases))
        for lease in list(self.queue.everybody()):
            self._refuse(lease, refusals.closed_while_waiting())
        for worker in list(self.workers.values()):
            if worker.state in (STARTING, READY):
                self._retire(worker, "stopped")
        if not self.workers:
            self._closed()

    def _on_tick(self, command: c.Tick) -> None:
        self._stale = True
        while True:
            while (timer := self.timers.pop_due(self._now)) is not None:
                self._timer_due(*timer)
            self._finish()
            upcoming = self.timers.next()
            if upcoming is None or upcoming > self._now:
                break  # what was just done may have armed a timer that is due at once

    def _timer_due(self, kind: TimerKind, key: int, sub: int) -> None:
        if kind == "hint":
            self._spill(self.leases[key])
        elif kind == "hold":
            self._held_too_long(key)
        elif kind == "check":
            self._checked_too_long(key)
        elif kind == "session":
            self._forget_sessions()
        elif kind == "shed":
            self._look_at_line(key)
        elif kind == "breaker":
            self._half_open(key)
        elif kind == "close":
            self._close_now()
        elif kind == "cancel" or kind == "abandon":
            self._slot_timer(kind, self.workers[key])
        elif kind != "backoff" and kind != "health":  # the end of the step sees to these
            self._worker_timer(kind, self.workers[key])


_HANDLERS: dict[type, Callable[[PoolCore, Any], None]] = {
    c.Checkout: PoolCore._on_checkout,
    c.Checkin: PoolCore._on_checkin,
    c.CheckoutVerdict: PoolCore._on_verdict,
    c.RunStarted: PoolCore._on_run_started,
    c.RunEnded: PoolCore._on_run_ended,
    c.Cancel: PoolCore._on_cancel,
    c.SlotSettled: PoolCore._on_slot_settled,
    c.WorkerReady: PoolCore._on_worker_ready,
    c.WorkerExited: PoolCore._on_worker_exited,
    c.WorkerUnwell: PoolCore._on_worker_unwell,
    c.ProbeAnswered: PoolCore._on_probe_answered,
    c.RssSampled: PoolCore._on_rss_sampled,
    c.Tick: PoolCore._on_tick,
    c.Resize: PoolCore._on_resize,
    c.Reload: PoolCore._on_reload,
    c.Recycle: PoolCore._on_recycle,
    c.Release: PoolCore._on_release,
    c.Pause: PoolCore._on_pause,
    c.Resume: PoolCore._on_resume,
    c.Drain: PoolCore._on_drain,
    c.Close: PoolCore._on_close,
}
