"""Driver: the one door to the core, and the control plane behind it. Shared by Pool and AsyncPool.

    caller's thread or task  --step(command)-->  core  -->  wake-ups, drained by whoever leaves the step
                                                       -->  orders, carried out by the control plane alone, in order
    supervisor (control loop)  --Listener-->  step(WorkerReady | WorkerExited | ...)

Rules:
    1. `step` is the only caller of `core.handle`. One lock, never held across I/O, user code or an await. It is
       re-entrant so that rule 2 can be kept.
    2. Re-entry on the same thread (a signal handler's close(), a garbage-collected lease) goes to an inbox that the
       outer frame empties before it unlocks.
    3. Grant and Reject only wake: a caller reads its lease from the table. Who doesn't sleep is not woken.
    4. Any exception out of the core breaks the pool: never go on with half a step.

It must not know how its callers wait: they leave a function that wakes them.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, TypeVar

import msgspec

from dspool import errors
from dspool.errors import PoolBroken, PoolClosed, PoolError, QueueTimeout, WorkerStartError
from dspool.options import PoolOptions
from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease
from dspool.pool.core.snapshot import pool_health, pool_stats, worker_info
from dspool.pool.core.states import LeaseState, PoolState
from dspool.pool.logged_pipe import slot_pipes
from dspool.pool.slot_pipe import SlotPipe
from dspool.pool.usage import UsageBook
from dspool.supervisor.exits import TEMPLATE_DIED
from dspool.supervisor.frame_log import FrameLog
from dspool.types import ExitReason, ExitReport, PoolHealth, PoolStats, WorkerInfo

REPORTS_KEPT = 1000
Waker = Callable[[], None]
_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
T = TypeVar("T")
_WAKES = (c.Grant, c.Reject)


class Driver:
    """Holds the core and its lock, the pipes, and the orders that wait for the control plane.

    Args:
        options: the pool's options.
        wake_control: wakes the control plane; callable from any thread and from a signal handler, never blocks.
    """

    def __init__(self, options: PoolOptions, wake_control: Callable[[], None]) -> None:
        self.options = options
        self.name = options.name
        self.core = PoolCore(options, seed=int.from_bytes(os.urandom(4), "big") / 2**32)
        self.pipes: dict[int, list[SlotPipe]] = {}
        self.processes: dict[int, tuple[int | None, str]] = {}
        """worker_id -> pid and start method."""
        self.reports: dict[int, ExitReport] = {}
        self.orders: deque[c.Effect] = deque()
        self.ids = count(1)
        self.broken: BaseException | None = None
        self.over = threading.Event()
        """Set when the control plane has ended: the pool is closed and nothing of it is left."""
        self.failed_starts: list[ExitReport] = []
        """The first workers that could not start, at most ten."""
        self.start_method = str(options.start_method)
        """How workers are really started: the launcher's word for it."""
        self.start_method_reason = ""
        self.warm: tuple[str, ...] = ()
        """What every worker holds warm once it is ready: the ids of the programs of `warm=`."""
        self.pid = os.getpid()
        self.usable = True
        """check_usable() raises nothing. One look for a call, where the reasons would be four."""
        self.sleeps_until = float("inf")
        """When the control plane will wake by itself."""
        self.changed: deque[Waker] = deque()
        """Called once after each change of the fleet: a worker became ready or ended, the pool closed."""
        self.frame_log: FrameLog | None = None
        self.usage = UsageBook(options.max_sessions)
        """What calls used of LMs; whoever reads a response adds to it."""
        self._wake_control = wake_control
        self._lock = threading.RLock()
        self._stepping = False
        self._inbox: deque[c.Command] = deque()
        self._when_idle: deque[Waker] = deque()
        self._wakers: dict[int, Waker] = {}
        self._woken: deque[int] = deque()
        _drivers.add(self)

    # --- the door -------------------------------------------------------------------------------------------------

    def step(self, command: c.Command) -> None:
        """Put one command to the core and hand its effects on."""
        try:
            with self._lock:
                if self._stepping:
                    self._inbox.append(command)
                    return
                self._stepping = True
                try:
                    wanted = self._step(command)
                finally:
                    self._stepping = False
            if self._inbox:  # a signal handler came between emptying the inbox and leaving
                self.step(c.Tick())
            if wanted:
                self._wake_control()
            if self._woken:
                self._drain_wakeups()
            if self._when_idle and not self.core.leases:
                _call_all(self._when_idle)
        except BaseException:  # of the core, or of a signal handler after it: others wait for what this step decided
            self._wake_control()
            self._drain_wakeups()
            raise

    def order(self, command: c.Command) -> None:
        """A step that is no part of a call: what a user or the control plane wants of the pool."""
        self.step(command)

    def _step(self, command: c.Command) -> bool:
        """The step itself, and those that came to the inbox meanwhile. Returns whether the control plane is wanted."""
        core, wanted = self.core, False
        while self.broken is None:
            try:
                effects = core.handle(command, time.monotonic())
            except BaseException as error:
                self._break(error)
                raise
            for effect in effects:
                if type(effect) in _WAKES:
                    lease_id = effect.lease_id  # type: ignore[union-attr]
                    if lease_id in self._wakers:
                        self._woken.append(lease_id)
                else:
                    self.orders.append(effect)
                    wanted = True
            if not self._inbox:
                break
            command = self._inbox.popleft()
        if not wanted and core.timers.earliest < self.sleeps_until:
            deadline = core.next_deadline()
            wanted = deadline is not None and deadline < self.sleeps_until
        return wanted

    def _break(self, error: BaseException) -> None:
        """The core was left in the middle of a step, it can't be trusted: kill everything, wake everybody."""
        self.broken = error
        self.usable = False
        self.orders.append(c.Report("pool.broken", {"error": repr(error)}))
        self.orders.extend(c.Kill(worker_id, "stopped", "the pool is broken") for worker_id in list(self.core.workers))
        self._woken.extend(self._wakers)
        self._wake_control()

    def _drain_wakeups(self) -> None:
        while self._woken:
            try:
                lease_id = self._woken.popleft()
            except IndexError:
                return  # another thread was quicker
            waker = self._wakers.pop(lease_id, None)
            if waker is not None:
                waker()

    def tick(self) -> None:
        """Time has passed. Wake-ups that a killed thread left are drained too."""
        self.order(c.Tick())
        self._drain_wakeups()

    # --- callers --------------------------------------------------------------------------------------------------

    def wake_with(self, lease_id: int, waker: Waker) -> None:
        """Call `waker` when the lease is granted or refused. The caller looks at its lease once more after this."""
        self._wakers[lease_id] = waker

    def sleep_no_more(self, lease_id: int) -> None:
        """The caller of this lease doesn't sleep any more."""
        self._wakers.pop(lease_id, None)

    def decided(self, lease_id: int) -> bool:
        """Whether there is nothing to sleep for: the lease is granted or refused, or nobody will ever do either."""
        lease = self.core.leases.get(lease_id)
        return lease is None or lease.state is not LeaseState.QUEUED or self.broken is not None or self.over.is_set()

    @property
    def busy(self) -> bool:
        """Whether any call waits or runs."""
        return bool(self.core.leases)

    def check_out(self, checkout: c.Checkout) -> Lease:
        """Step a checkout; its lease as it stands in the table after it.

        Raises:
            PoolBroken: the table can't be trusted any more.
            QueueTimeout: its deadline came in between.
            PoolError: there is no lease: it is called on top of a step.
        """
        self.step(checkout)
        lease = self.core.leases.get(checkout.lease_id)
        if lease is None or self.broken is not None:
            self.check_sound()
            if self.options.check is not None and c.AT_ONCE < checkout.deadline <= time.monotonic():
                raise QueueTimeout(
                    f"pool {self.name!r}: the call's deadline came as it was granted a worker, before its check hook "
                    "was asked; nothing was run"
                )
            raise PoolError(
                f"pool {self.name!r} was called by a signal handler or a finaliser in the middle of one of its own "
                "steps, where no call can be made; or the lease ended (hold_s) before its caller looked"
            )
        return lease

    def check_sound(self) -> None:
        """Raise where the core can't be trusted any more.

        Raises:
            PoolBroken: see `broken`.
        """
        if self.broken is not None:
            raise self._broken_error()

    def when_idle(self, waker: Waker) -> None:
        """Call `waker` once, when no call waits or runs any more."""
        self._when_idle.append(waker)

    def pipe(self, lease: Lease) -> SlotPipe | None:
        """The pipe of a granted lease; None when its worker is gone."""
        pipes = self.pipes.get(lease.worker_id) if lease.worker_id is not None else None
        return pipes[lease.slot] if pipes is not None else None

    def worker_info(self, worker_id: int) -> WorkerInfo | None:
        """A worker as users see it; None when it is gone."""
        worker = self.core.workers.get(worker_id)
        if worker is None:
            return None
        pid, start_method = self.processes.get(worker_id, (None, self.start_method))
        return worker_info(worker, time.monotonic(), pid=pid, start_method=start_method)

    def workers(self) -> list[WorkerInfo]:
        """Every worker, oldest first."""
        infos = self._look(lambda: [self.worker_info(worker_id) for worker_id in self.core.workers])
        return [info for info in infos if info is not None]

    def stats(self) -> PoolStats:
        """Counters and gauges, all of one instant."""
        return self._look(self._stats)

    def _stats(self) -> PoolStats:
        more = {"start_method": self.start_method, "start_method_reason": self.start_method_reason}
        return pool_stats(self.core, self.name, time.monotonic(), **more)

    def health(self) -> PoolHealth:
        """Ready workers against the target, now and since the pool was opened."""
        health = self._look(lambda: pool_health(self.core, time.monotonic()))
        return health if self.broken is None else msgspec.structs.replace(health, status="unhealthy", ready=0)

    def program_state(self, program_id: str) -> tuple[bool, list[int]]:
        """Whether a program is in quarantine, and the workers that hold it warm."""
        core = self.core
        return self._look(
            lambda: (
                program_id in core.quarantine.held(),
                [worker.worker_id for worker in core.workers.values() if program_id in worker.programs],
            )
        )

    def next_deadline(self) -> float:
        """When the core wants a Tick; infinity: not before something else happens."""
        deadline = self._look(self.core.next_deadline)
        return c.INFINITY if deadline is None else deadline

    def _look(self, look: Callable[[], T]) -> T:
        """Read the core's tables while no step changes them; a signal handler's close() meanwhile goes to the inbox."""
        with self._lock:
            if self._stepping:
                return look()
            self._stepping = True
            try:
                seen = look()
            finally:
                self._stepping = False
        if self._inbox:
            self.step(c.Tick())
        return seen

    def report(self, event: str, **fields: Any) -> None:
        """An event that the core doesn't know of, for the log and for on_event."""
        self.orders.append(c.Report(event, fields))
        self._wake_control()

    def refused(self, lease: Lease) -> PoolError:
        """A fresh exception for a refused lease."""
        refusal = lease.refusal
        assert refusal is not None
        text = f"pool {self.name!r} {refusal.message}"
        if refusal.code == "PoolBroken":
            return PoolBroken(text, refusal.reports)
        if refusal.code == "CheckoutSkipped":
            return errors.CheckoutSkipped(text, refusal.reasons, retryable=refusal.retryable)
        if refusal.code == "ProgramQuarantined":
            return errors.ProgramQuarantined(text, refusal.retry_after_s)
        error: PoolError = getattr(errors, refusal.code)(text)
        return error

    def check_usable(self) -> None:
        """Raise where the pool can't be used at all.

        Raises:
            PoolClosed: the pool is closed, or this process was forked from the one that opened it.
            PoolBroken: a bug or an exception out of nowhere left the core in the middle of a step.
        """
        self.check_process()
        if self.broken is not None:
            raise self._broken_error()
        if self.core.state is PoolState.CLOSED or self.over.is_set():
            raise PoolClosed(f"pool {self.name!r} is closed; open a new one")

    def check_process(self) -> None:
        """Raise in a process that the application forked: its copies of our pipes are closed.

        Raises:
            PoolClosed: this is not the process that opened the pool.
        """
        if self.pid != os.getpid():
            raise PoolClosed(
                f"pool {self.name!r} belongs to process {self.pid}; this is {os.getpid()}, forked from it. "
                "Open a pool of its own in each process"
            )

    def _broken_error(self) -> PoolBroken:
        return PoolBroken(f"pool {self.name!r} was broken in the middle of a step by {self.broken!r}; open a new one")

    # --- Listener: what the supervisor tells ------------------------------------------------------------------------

    def worker_ready(self, worker_id: int, worker: Any) -> None:
        """A worker is ready: its slots' pipes are ours from now on."""
        self.processes[worker_id] = (worker.pid, worker.start_method)
        self.pipes[worker_id] = slot_pipes(worker.slots, self.options.max_frame_bytes, self.frame_log, worker_id)
        self.order(c.WorkerReady(worker_id, self.warm))
        self._tell_changed()

    def worker_exited(self, worker_id: int, report: ExitReport) -> None:
        """A worker is dead. Callers read what its pipes still hold, then find out here why it ended."""
        known = self.core.workers.get(worker_id)
        calls = report.calls
        if known is not None:  # a caller that was quicker than this has checked its lost call in already
            calls = known.calls + (len(known.in_flight) if known.dead else known.leased)
        report = _with_calls(report, calls)
        self.reports[worker_id] = report
        while len(self.reports) > REPORTS_KEPT:
            del self.reports[next(iter(self.reports))]
        failures = self.core.counters.start_failures
        self.order(c.WorkerExited(worker_id, report))
        failed = self.core.counters.start_failures > failures and report.detail != TEMPLATE_DIED
        if failed and len(self.failed_starts) < 10:
            self.failed_starts.append(report)
        self._let_go(worker_id)
        self._tell_changed()

    def _let_go(self, worker_id: int) -> None:
        """Close the pipes nobody holds; end the others, for their holders to close."""
        self.processes.pop(worker_id, None)
        for pipe in self.pipes.pop(worker_id, []):
            pipe.orphan()

    def worker_unwell(self, worker_id: int, reason: ExitReason, detail: str) -> None:
        """Something is wrong with a worker that lives."""
        self.order(c.WorkerUnwell(worker_id, reason, detail))

    def probe_answered(self, worker_id: int, ok: bool) -> None:
        """A ping came back, or didn't."""
        self.order(c.ProbeAnswered(worker_id, ok))

    def rss_sampled(self, worker_id: int, rss_bytes: int) -> None:
        """A worker's resident memory."""
        self.order(c.RssSampled(worker_id, rss_bytes))

    def worker_due(self, worker_id: int) -> None:
        """A worker should be replaced when there is time."""
        self.order(c.Recycle(worker_id, "its template died"))

    def start_method_changed(self, start_method: str, reason: str) -> None:
        """Workers are started in another way than before."""
        self.start_method, self.start_method_reason = start_method, reason
        self.report("pool.start_method", start_method=start_method, reason=reason)

    def start_method_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Something else happened to the start method."""
        self.report(event, **fields)

    def ended(self) -> None:
        """The control plane has ended: nobody will be granted anything any more. Wake whoever still sleeps."""
        self.usable = False
        self.over.set()
        for worker_id in list(self.pipes):
            self._let_go(worker_id)
        self._woken.extend(list(self._wakers))
        self._drain_wakeups()
        self._tell_changed()
        _call_all(self._when_idle)

    def ready(self, wanted: int, *, opening: bool = False) -> bool:
        """Whether so many workers are ready, those not counted that reload() or recycle() has replaced.

        Raises:
            WorkerStartError: they never will be: a start failed while the pool is being opened, or too many did since.
            PoolError: the pool is closed or broken.
        """
        self.check_usable()
        if self.over.is_set():
            raise PoolClosed(f"pool {self.name!r} has ended; see the log for why, and open a new one")
        if opening and self.failed_starts:
            raise self._start_error(self.failed_starts[0])
        groups = self.core.groups.values()
        ready, old = self.ready_and_old()
        if ready >= wanted and not (old and wanted == sum(group.size for group in groups)):
            return True  # all: then calls find no old one either, whatever overflow there is
        broken = [group for group in groups if group.breaker.state == "open"]
        if broken and sum(group.lendable for group in groups) - old < wanted:
            raise self._start_error(broken[0].breaker.reports[-1])
        return False

    def ready_and_old(self) -> tuple[int, int]:
        """How many workers are ready, and how many are besides that reload() or recycle() has replaced."""
        groups = self.core.groups.values()
        old = sum(worker.due == "reloaded" for group in groups for worker in list(group.due.values()))
        return sum(group.ready for group in groups) - old, old

    def _start_error(self, report: ExitReport) -> WorkerStartError:
        text = (
            f"pool {self.name!r} could not start worker {report.worker_id}: {report.reason}"
            f"{': ' + report.detail if report.detail else ''}"
        )
        if report.pid is not None:
            text += f" (pid {report.pid}, {report.age_s:.1f} s old)"
        if report.output_tail and not report.remote_traceback:
            text += f"; its last output: {report.output_tail[-1000:]!r}"
        if report.remote_traceback:
            text += f"\n\nIn the worker:\n{report.remote_traceback}"
        elif report.stack_dump:
            text += f"\n\nWhere it was:\n{report.stack_dump}"
        return WorkerStartError(text, report, report.remote_traceback or None)

    def protect_from_interrupts(self, protect: Callable[[Any], Any], *, calls: bool) -> None:
        """Carry out orders, and looks at the tables, under a protection against KeyboardInterrupt.

        Args:
            protect: a decorator.
            calls: the data path's steps too: whoever drives it has no protection of his own.
        """
        self.order = protect(self.step)  # type: ignore[method-assign]
        if calls:
            self.step = self.order  # type: ignore[method-assign]
        self._look = protect(self._look)  # type: ignore[method-assign]

    def _tell_changed(self) -> None:
        _call_all(self.changed)

    @property
    def in_step(self) -> bool:
        """Whether this thread is inside a step: a signal handler or a finaliser runs on top of one."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._stepping
        finally:
            self._lock.release()


def _call_all(wakers: deque[Waker]) -> None:
    for _ in range(len(wakers)):
        try:
            waker = wakers.popleft()
        except IndexError:
            return  # another thread was quicker
        waker()


def _in_forked_child() -> None:
    for driver in _drivers:
        driver.usable = False


os.register_at_fork(after_in_child=_in_forked_child)


def _with_calls(report: ExitReport, calls: int) -> ExitReport:
    return msgspec.structs.replace(report, calls=calls)
