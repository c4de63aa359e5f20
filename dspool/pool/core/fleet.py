"""The workers' half of the core: starting, retiring, removing, and what an exit means.

Rules:
    1. `_fill` is the only place that starts workers. No start while as many are present as the limit allows (law 4),
       while too many are starting, while the back-off lasts or the breaker is open.
    2. A *due* worker is lent until its replacement is ready, and kept if that can't start. One replacement at a time.
    3. Whoever leaves is unpinned, taken out of every index, and forgotten when its exit is known.
    4. What changes which starts are wanted or which waiters can be served sets `_stale`; it is acted on once, at the
       end of the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from dspool.options import PoolOptions
from dspool.pool.core import commands as c, health
from dspool.pool.core.affinity import Session, Sessions
from dspool.pool.core.health import Answers, History, Outcomes
from dspool.pool.core.idle import IdleWorkers
from dspool.pool.core.queue import WaitQueue
from dspool.pool.core.records import Group, Lease, Slot, Worker
from dspool.pool.core.restarts import Breaker, Quarantine, how_it_ended
from dspool.pool.core.states import POOL_MOVES, PoolState, SlotState, WorkerState, moved
from dspool.pool.core.stats import Counters
from dspool.pool.core.timers import Timers
from dspool.types import ExitReason, ExitReport

STARTING, READY, DRAINING, STOPPING, GONE = WorkerState
OVER = (PoolState.CLOSING, PoolState.CLOSED)
_GOLDEN = 0.6180339887498949
_JITTER = 0.1
_LABEL_SETS_KEPT = 1000
OWN_EXITS = frozenset({"crash", "exited", "oom_suspect"})
"""Exit reasons of a worker that ended by itself."""
UNASKED = OWN_EXITS | {"boot_error", "start_timeout", "protocol_error", "hung"}


class Fleet(ABC):
    """Groups and workers. `PoolCore` adds the leases.

    Args:
        options: the pool's options.
        seed: 0 to 1; where the jitter sequence begins, so that equal pools don't move in step.
    """

    def __init__(self, options: PoolOptions, seed: float = 0.0) -> None:
        self.options = options
        self.state = PoolState.OPEN
        self.paused = False
        self.workers: dict[int, Worker] = {}
        self.leases: dict[int, Lease] = {}
        self.groups = {
            group.name: Group(
                options=group,
                size=group.workers,
                overflow=group.overflow,
                breaker=Breaker(max_restarts=options.max_restarts, window_s=options.restart_window_s),
                idle=IdleWorkers(options.slots),
                number=number,
            )
            for number, group in enumerate(options.groups)
        }
        self._only_group = next(iter(self.groups.values())) if len(self.groups) == 1 else None
        self.sessions = Sessions(options.session_ttl_s, options.max_sessions)
        self.quarantine = Quarantine(after=options.quarantine_after, time_s=options.quarantine_s)
        self.timers = Timers()
        self.queue = WaitQueue(self.leases, self._fitting)
        self.counters = Counters()
        self.outcomes = Outcomes()
        self.pings = Answers()
        self.history = History(health.judge(self.groups.values(), lazy=options.lazy).status)
        self._blamed = ""
        """The last worker that was taken from the ready ones in this step, and why."""
        self.heir: Worker | None = None
        """The replacement that is starting for a due worker."""
        self.close_deadline = c.INFINITY
        self._seed = seed
        self._last_worker_id = 0
        self._now = 0.0
        self._effects: list[c.Effect] = []
        self._fits: dict[frozenset[str], tuple[str, ...]] = {}
        self._stale = False

    # --- what the leases' half does -------------------------------------------------------------------------------

    @abstractmethod
    def _offer(self, worker: Worker) -> None:
        """Lend the worker's idle slots to waiters; index it if any is left."""

    @abstractmethod
    def _reroute(self, sessions: Iterable[Session]) -> None:
        """These sessions' pins changed: their waiters stand elsewhere now."""

    @abstractmethod
    def _lines_begin_anew(self) -> None:
        """Waits until now say nothing about how busy the workers are."""

    @abstractmethod
    def _quarantined(self, program: str) -> None:
        """Refuse the waiters of a program that is quarantined from now on."""

    # --- small things ---------------------------------------------------------------------------------------------

    def _emit(self, effect: c.Effect) -> None:
        self._effects.append(effect)

    def _report(self, event: str, **fields: Any) -> None:
        self._effects.append(c.Report(event, fields))

    def _tell_health(self) -> None:
        """The fleet may have changed. A pool that closes is neither well nor ill."""
        if self.state in OVER:
            return
        history, blamed = self.history, self._blamed
        self._blamed = ""
        history.begin(self._now)
        judgement = health.judge(self.groups.values(), lazy=self.options.lazy)
        if judgement.status != history.status:
            history.change(judgement, self._why(judgement, blamed), self._now)
        tell_at = history.may_tell_at()
        if tell_at is None:
            self.timers.disarm("health")
        elif tell_at > self._now:
            self.timers.arm(tell_at, "health")
        else:
            self.timers.disarm("health")
            change = history.changes[-1]
            before, unsaid = history.tell(self._now)
            self._report(
                "pool.health",
                status=change.status,
                before=before,
                ready=change.ready,
                target=change.target,
                reason=change.reason,
                unsaid=unsaid,
            )

    def _why(self, judgement: health.Judgement, blamed: str) -> str:
        """Why the pool is another than it was, in a few words."""
        last = self.counters.last_exit
        if judgement.status == "healthy":
            return f"{judgement.ready} of {judgement.target} workers are ready"
        if judgement.stopped:
            return "starts are stopped" if last is None else f"starts are stopped; {how_it_ended(last)}"
        return blamed or f"{judgement.ready} of {judgement.target} workers are ready"

    def _blame(self, worker: Worker, why: str) -> None:
        """A worker leaves; was it ready, it may be why the pool is worse for it."""
        if worker.state is READY:
            self._blamed = f"worker {worker.worker_id}: {why}"

    def _become(self, state: PoolState) -> None:
        self.state = moved(POOL_MOVES, self.state, state)

    def _jitter(self, number: int) -> float:
        """0 to 1, spread evenly over consecutive numbers: the golden-ratio sequence."""
        return (self._seed + number * _GOLDEN) % 1.0

    def _shortened(self, limit: float, number: int) -> float:
        """A limit, up to 10 % shorter, differently for each number."""
        return limit * (1.0 - _JITTER * self._jitter(number))

    def _fitting(self, require: frozenset[str]) -> tuple[str, ...]:
        """Names of the groups that have these labels."""
        names = self._fits.get(require)
        if names is None:
            names = tuple(name for name, group in self.groups.items() if require <= group.options.labels)
            if len(self._fits) < _LABEL_SETS_KEPT:
                self._fits[require] = names
        return names

    def _pending(self, group: Group) -> int:
        """1 while a replacement is starting in this group: it stands for the due worker that is still lent."""
        return int(self.heir is not None and self.heir.group is group)

    # --- starting -------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start what is wanted and allowed."""
        if self.state in OVER:
            return
        for group in self.groups.values():
            while self._may_start(group):
                if self._wants_more(group):
                    self._spawn(group)
                elif (due := self._next_due(group)) is not None:
                    self._spawn(group, due)
                else:
                    break

    def _may_start(self, group: Group) -> bool:
        breaker = group.breaker
        if breaker.state == "open" or (breaker.state == "half_open" and breaker.trial is not None):
            return False
        if self._now < breaker.not_before:
            return False
        assert self.options.start_concurrency is not None
        return sum(each.starting for each in self.groups.values()) < self.options.start_concurrency

    def _start_possible(self, group: Group) -> bool:
        """Whether another worker of this group is on its way or will be: now, after a back-off, or after an exit."""
        return group.breaker.state != "open" and group.lendable < group.size + group.overflow

    def _wants_more(self, group: Group) -> bool:
        """Whether another worker is needed and the limit of law 4 leaves room for it."""
        pending = self._pending(group)
        if group.present >= group.size + group.overflow + pending:
            return False
        eager = not self.options.lazy or group.breaker.state == "half_open"
        if eager and group.lendable - pending < group.size:
            return True
        if self.paused:
            return False  # nobody waits for a worker, but for the pool to be resumed
        starting = {name: each.starting * self.options.slots for name, each in self.groups.items()}
        return self.queue.demand(group.name, starting) > 0

    def _next_due(self, group: Group) -> Worker | None:
        """The due worker to be replaced now: one at a time, and none while others of its group are leaving."""
        if self.heir is not None or group.present > group.lendable or group.present > group.size + group.overflow:
            return None
        return next(iter(group.due.values()), None)

    def _spawn(self, group: Group, due: Worker | None = None) -> None:
        self._last_worker_id += 1
        worker = Worker(
            worker_id=self._last_worker_id,
            group=group,
            slots=[Slot() for _ in range(self.options.slots)],
            started_at=self._now,
            overflow=due is None and group.lendable - self._pending(group) >= group.size,
        )
        if due is not None:
            worker.replaces = due.worker_id
            self.heir = worker
        self.workers[worker.worker_id] = worker
        group.starting += 1
        if group.breaker.state == "half_open":
            group.breaker.trial = worker.worker_id
            self._stale = True  # the pool's health depends on it
        self.counters.started += 1
        self.timers.arm(self._now + self.options.start_timeout_s, "start", worker.worker_id)
        self._emit(c.Spawn(worker.worker_id, group.name))

    # --- retiring and removing ------------------------------------------------------------------------------------

    def _retire(self, worker: Worker, reason: ExitReason) -> None:
        """Planned end: drained first. A worker that is still starting has nothing to drain."""
        if worker.state is STARTING:
            self._remove(worker, reason)
            return
        worker.to(DRAINING)
        worker.reason = reason
        self._report("worker.draining", worker_id=worker.worker_id, reason=reason)
        self._withdraw(worker)
        self._stop_if_drained(worker)

    def _stop_if_drained(self, worker: Worker) -> None:
        """A draining worker without calls is stopped, or killed where an abandoned call may still run in it."""
        if worker.leased:
            return
        assert worker.reason is not None
        if worker.in_trouble:
            self._remove(worker, worker.reason)
            return
        worker.to(STOPPING)
        deadline = min(self._now + self.options.grace_s, self.close_deadline)
        self.timers.arm(max(self._now, deadline) + self.options.grace_s, "stop", worker.worker_id)
        self._emit(c.Stop(worker.worker_id, worker.reason, deadline))

    def _remove(self, worker: Worker, reason: ExitReason | None, detail: str = "", *, dump: bool = False) -> None:
        """Kill it, and replace it when its exit is known. `reason` None: it died by itself."""
        if worker.state is STOPPING:
            return
        self._note_in_flight(worker)
        self._blame(worker, f"{reason or 'it seems to be dead'}{detail and f', {detail}'}")
        worker.to(STOPPING)
        worker.reason, worker.killed = reason, True
        self._withdraw(worker)
        self.timers.arm(self._now + self.options.grace_s, "stop", worker.worker_id)
        self._emit(c.Kill(worker.worker_id, reason, detail, dump))

    def _withdraw(self, worker: Worker) -> None:
        """The worker is not lent any more: out of the indexes, its sessions unpinned. Its state says so already."""
        group, worker_id = worker.group, worker.worker_id
        group.idle.leave(worker)
        for program in worker.programs:
            group.idle.forget(worker, program)
        worker.programs.clear()
        worker.last_program = None
        group.due.pop(worker_id, None)
        heir = self.heir
        if heir is not None and worker_id in (heir.worker_id, heir.replaces):
            heir.replaces = None
            self.heir = None
        for kind in ("start", "ping", "age", "linger"):
            self.timers.disarm(kind, worker_id)
        self._stale = True
        sessions = [self.sessions.table[name] for name in worker.sessions]
        worker.sessions.clear()
        for session in sessions:
            session.unpin()
        self.counters.repins += len(sessions)
        self._reroute(sessions)

    def _note_in_flight(self, worker: Worker) -> None:
        """Remember which programs were in the worker when it was first known to be dead or doomed."""
        if worker.dead:
            return
        worker.dead = True
        for slot in worker.slots:
            lease = self.leases.get(slot.lease_id) if slot.lease_id is not None else None
            if slot.left_behind is not None:
                worker.in_flight.append(slot.left_behind)
            elif lease is not None and lease.running:
                worker.in_flight.append((lease.program, lease.call_id))

    # --- exits ----------------------------------------------------------------------------------------------------

    def _on_worker_exited(self, command: c.WorkerExited) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            return
        report, group = command.report, worker.group
        self._note_in_flight(worker)
        self._blame(worker, f"{report.reason}{report.detail and f', {report.detail}'}")
        worker.to(GONE)
        self._withdraw(worker)
        self._forget_worker(worker)
        exits = self.counters.exits
        exits[report.reason] = exits.get(report.reason, 0) + 1
        self.counters.last_exit = report
        event = "worker.ended"
        if report.reason in UNASKED:
            event = "worker.lost"
            self.outcomes.note(how_it_ended(report), self._now)
        self._report(event, worker_id=worker.worker_id, group=group.name, report=report)
        self._judge_exit(worker, report)
        if self.state is PoolState.CLOSING:
            if not self.workers:
                self._closed()
        elif worker.ready_at is not None and group.lendable - self._pending(group) < group.size:
            self.counters.replaced += 1

    def _forget_worker(self, worker: Worker) -> None:
        del self.workers[worker.worker_id]
        self.timers.disarm("stop", worker.worker_id)
        for slot in worker.slots:
            if slot.lease_id is not None:
                self.timers.disarm("cancel", worker.worker_id, slot.lease_id)
                self.timers.disarm("abandon", worker.worker_id, slot.lease_id)
            if slot.state is not SlotState.CLOSED:
                slot.to(SlotState.CLOSED)

    def _judge_exit(self, worker: Worker, report: ExitReport) -> None:
        """Whose fault it was: the start's, a program's, or nobody's."""
        breaker = worker.group.breaker
        if worker.in_flight:
            if report.reason in OWN_EXITS:
                program = self.quarantine.died(worker.in_flight, report, self._now)
                if program is not None:
                    ends = self.quarantine.ends(program)
                    self._report("program.quarantined", program=program, for_s=self.options.quarantine_s, ends=ends)
                    self._quarantined(program)
            # A trial that ended without a verdict leaves the program as it was.
            for name, call_id in worker.in_flight:
                self.quarantine.withdrawn(name, call_id)
        elif report.reason in UNASKED and not self._stood_the_test(worker):
            self._start_failed(worker, report)
        if breaker.trial == worker.worker_id:
            breaker.trial = None  # it ended, but not by a boot failure: another one is tried

    def _stood_the_test(self, worker: Worker) -> bool:
        """Whether its end, whatever it was, is no boot failure: it gave an answer or a pong, or lived long enough.

        A loop of starts that each last as long as the window never fills it, so one that lived so long is in none. Only
        a half-open breaker's trial is judged by its word alone.
        """
        if worker.good:
            return True
        if worker.ready_at is None or worker.group.breaker.trial == worker.worker_id:
            return False
        return self._now - worker.ready_at >= self.options.restart_window_s

    def _start_failed(self, worker: Worker, report: ExitReport) -> None:
        group = worker.group
        breaker, jitter = group.breaker, self._jitter(worker.worker_id)
        self.counters.start_failures += 1
        if breaker.failed(worker.worker_id, report, self._now, jitter, was_ready=worker.ready_at is not None):
            self._report(
                "pool.breaker_opened",
                group=group.name,
                failures=len(breaker.failures),
                last=how_it_ended(report),
                for_s=breaker.cooldown_s,
            )
            self.timers.arm(self._now + breaker.cooldown_s, "breaker", group.number)
        elif breaker.not_before > self._now:
            self.timers.arm(breaker.not_before, "backoff", group.number)

    def _closed(self) -> None:
        self._become(PoolState.CLOSED)
        self.timers.disarm("close")
        self._report("pool.closed")
