"""The fleet over time: workers becoming ready, sizes, recycling, health, and the timers about workers.

A worker that should go is *due* at first and lent on; the one that replaces it lets it go. Overflow workers have no
replacement to wait for.
"""

from __future__ import annotations

from dspool.pool.core import commands as c, recycling
from dspool.pool.core.fleet import OVER, READY, STARTING, STOPPING, Fleet
from dspool.pool.core.records import Group, Worker
from dspool.pool.core.restarts import FIRST_PING_S
from dspool.pool.core.states import PoolState
from dspool.pool.core.timers import TimerKind
from dspool.types import ExitReason

_SLACK = 0.999
"""A timer that fires this early, relative to its period, counts as on time: floats don't add up exactly."""


class Upkeep(Fleet):
    """What happens to workers while they live."""

    def _on_worker_ready(self, command: c.WorkerReady) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            self._emit(c.Kill(command.worker_id, "removed", "it became ready after the pool had given it up"))
            return
        if worker.state is not STARTING:
            return
        number, group = worker.worker_id, worker.group
        worker.to(READY)
        for program in command.programs:
            self._holds(worker, program)
        worker.ready_at = worker.idle_since = self._now
        worker.free = list(range(len(worker.slots) - 1, -1, -1))
        self._stale = True
        self.timers.disarm("start", number)
        if self.options.max_requests is not None:
            worker.request_limit = max(1, round(self._shortened(self.options.max_requests, number)))
        if self.options.max_lifetime_s is not None:
            self.timers.arm(self._now + self._shortened(self.options.max_lifetime_s, number), "age", number)
        if self.options.ping_interval_s is not None:
            self.timers.arm(self._now + self._ping_pause_s(worker), "ping", number)
        if group.ready == 1:
            self._lines_begin_anew()
        group.breaker.became_ready()
        self._report("worker.ready", worker_id=number, group=group.name, took_s=self._now - worker.started_at)
        if self.heir is worker:
            self._take_over(worker)
        if worker.due is not None:
            self._await_replacement(worker)
        self._trim(group)
        if worker.state is READY:
            self._offer(worker)
            if group.breaker.trial == number:
                self._probe(worker)

    def _holds(self, worker: Worker, program: str) -> None:
        """The worker holds another program warm than the one it ran last, and may have put its oldest one out."""
        worker.last_program = program
        programs = worker.programs
        if program in programs:
            programs[program] = programs.pop(program)
            return
        programs[program] = None
        worker.group.idle.holds(worker, program)
        if len(programs) > self.options.max_programs:
            oldest = next(iter(programs))
            del programs[oldest]
            worker.group.idle.forget(worker, oldest)

    def _take_over(self, worker: Worker) -> None:
        """The replacement is ready: the due worker goes."""
        assert worker.replaces is not None
        old = self.workers[worker.replaces]
        assert old.due is not None
        worker.replaces = self.heir = None
        self.counters.replaced += 1
        self._retire(old, old.due)

    # --- due ------------------------------------------------------------------------------------------------------

    def _mark_due(self, worker: Worker, reason: ExitReason, detail: str) -> None:
        """Retire it once its replacement is ready; where there is no replacement to wait for, now."""
        if worker.due is not None or worker.state not in (STARTING, READY):
            return
        worker.due = reason
        self._report("worker.due", worker_id=worker.worker_id, reason=reason, detail=detail)
        if worker.state is READY:
            self._await_replacement(worker)

    def _await_replacement(self, worker: Worker) -> None:
        assert worker.due is not None
        self._stale = True
        if worker.overflow and not self._made_ordinary(worker):
            self._retire(worker, worker.due)
        else:
            worker.group.due[worker.worker_id] = worker

    def _on_reload(self, command: c.Reload) -> None:
        if self.state in OVER:
            return
        self._emit(c.Renew())
        for group in self.groups.values():
            if group.breaker.close():
                self.timers.disarm("breaker", group.number)
                self._report("pool.breaker_closed", group=group.name)
        for worker in list(self.workers.values()):
            self._mark_due(worker, "reloaded", recycling.BY_RELOAD)
            if worker.due is not None:  # for something else before
                worker.due = "reloaded"
        self._stale = True

    def _on_recycle(self, command: c.Recycle) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is not None:
            self._mark_due(worker, "reloaded", command.detail or recycling.BY_HAND)

    def _on_rss_sampled(self, command: c.RssSampled) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            return
        worker.rss_bytes = command.rss_bytes
        if worker.warm_rss_bytes is None and worker.calls:
            worker.warm_rss_bytes = command.rss_bytes
        detail = recycling.by_memory(worker, self._shortened(1.0, worker.worker_id), self.options)
        worker.rss_over = 0 if detail is None else worker.rss_over + 1
        if detail is None or worker.rss_over < recycling.SAMPLES_OVER:
            return
        if worker.calls or worker.leased:
            self._mark_due(worker, "recycle_memory", detail)
        elif worker.rss_over == recycling.SAMPLES_OVER:
            said = f"it ran no call yet, and {detail}: that is less than a worker needs; raise it"
            sizes = {"rss_bytes": command.rss_bytes, "max_rss_bytes": self.options.max_rss_bytes}
            self._report("worker.too_large", worker_id=worker.worker_id, detail=said, **sizes)

    # --- size -----------------------------------------------------------------------------------------------------

    def _on_resize(self, command: c.Resize) -> None:
        group = self.groups.get(command.group)
        if group is None:
            return
        self._report("pool.resized", group=group.name, workers=command.workers, before=group.size)
        group.size = max(0, command.workers)
        self._stale = True
        self._trim(group)

    def _trim(self, group: Group) -> None:
        """Retire what is over the size, the least costly first: due, then starting, then idle, then busy ones."""
        mine = [worker for worker in self.workers.values() if worker.group is group and not worker.overflow]
        mine = [worker for worker in mine if worker.state in (STARTING, READY)]
        surplus = len(mine) - group.size
        if surplus <= self._pending(group):
            return
        mine.sort(key=_cost)
        for worker in mine:
            if surplus <= self._pending(group):
                break
            self._retire(worker, "resized")
            surplus -= 1

    def _made_ordinary(self, worker: Worker) -> bool:
        """Whether an overflow worker takes the place of one that is gone."""
        group = worker.group
        if group.lendable - self._pending(group) > group.size:
            return False
        group.idle.leave(worker)
        worker.overflow = False
        if worker.free:
            group.idle.enter(worker)
        return True

    def _lingered(self, worker: Worker) -> None:
        """An overflow worker may have been idle long enough."""
        if not worker.overflow or self._made_ordinary(worker) or worker.busy:
            return  # a busy one is looked at again when it is idle
        if self._now - worker.idle_since >= self.options.overflow_linger_s * _SLACK:
            self._retire(worker, "resized")
        else:
            self._arm_linger(worker)

    def _arm_linger(self, worker: Worker) -> None:
        """An overflow worker is idle. One timer is enough: when it fires, it looks how long that has lasted."""
        if not self.timers.armed("linger", worker.worker_id):
            self.timers.arm(worker.idle_since + self.options.overflow_linger_s, "linger", worker.worker_id)

    # --- health ---------------------------------------------------------------------------------------------------

    def _on_worker_unwell(self, command: c.WorkerUnwell) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is not None:
            self._remove(worker, command.reason, command.detail)

    def _probe(self, worker: Worker) -> None:
        if not worker.probing:
            worker.probing = True
            worker.probed_at = self._now
            self._emit(c.Probe(worker.worker_id))

    def _on_probe_answered(self, command: c.ProbeAnswered) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None or not worker.probing:
            return
        worker.probing = False
        if worker.state is not READY:
            return
        if command.ok:
            worker.missed_pings = 0
            worker.pinged_at, worker.ping_s = self._now, self._now - worker.probed_at
            self.pings.ok(worker.ping_s, self._now)
            self._proved_good(worker)
        elif worker.leased:
            worker.missed_pings = 0  # a busy worker is judged by its calls' deadlines
            if worker.group.breaker.trial == worker.worker_id:
                self._probe(worker)
        else:
            self._missed_ping(worker)

    def _missed_ping(self, worker: Worker) -> None:
        worker.missed_pings += 1
        self.pings.failed(self._now)
        if worker.missed_pings >= self.options.ping_failures:
            detail = f"{worker.missed_pings} pings in a row unanswered, {self.options.ping_timeout_s:g} s each"
            self._remove(worker, "hung", detail, dump=True)
        else:
            self._probe(worker)

    def _proved_good(self, worker: Worker) -> None:
        """An answer or a pong: if it was the half-open breaker's trial, starts are allowed again."""
        worker.good = True
        breaker = worker.group.breaker
        if breaker.trial == worker.worker_id and breaker.close():
            self._report("pool.breaker_closed", group=worker.group.name)
            self._stale = True

    # --- timers ---------------------------------------------------------------------------------------------------

    def _worker_timer(self, kind: TimerKind, worker: Worker) -> None:
        """A timer about a worker came due; all but "stop" are disarmed when it leaves."""
        if kind == "start":
            detail = f"not ready within start_timeout_s={self.options.start_timeout_s:g}"
            self._remove(worker, "start_timeout", detail, dump=True)
        elif kind == "age":
            self._mark_due(worker, "recycle_age", recycling.by_age(worker, self._now, self.options))
        elif kind == "linger":
            self._lingered(worker)
        elif kind == "ping":
            self._ping_timer(worker)
        else:
            self._wont_end(worker)

    def _ping_timer(self, worker: Worker) -> None:
        pause_s = self._ping_pause_s(worker)
        idle_since = self._now if worker.leased else worker.idle_since
        if self._now - idle_since >= pause_s * _SLACK:
            self._probe(worker)
            idle_since = self._now
        self.timers.arm(idle_since + pause_s, "ping", worker.worker_id)

    def _ping_pause_s(self, worker: Worker) -> float:
        """How long it is idle before a ping: not long where that is to prove it good."""
        interval_s = self.options.ping_interval_s
        assert interval_s is not None
        return interval_s if worker.good else min(interval_s, FIRST_PING_S)

    def _wont_end(self, worker: Worker) -> None:
        """A worker that was to stop is still there: it counts no more, and may be replaced."""
        worker.counted = False
        worker.group.stopping -= 1
        self._stale = True
        if worker.group.breaker.trial == worker.worker_id:
            worker.group.breaker.trial = None
        self._report("worker.wont_end", worker_id=worker.worker_id, group=worker.group.name)

    def _half_open(self, number: int) -> None:
        """A breaker has been open long enough. Whatever else closes it disarms the timer."""
        group = list(self.groups.values())[number]
        group.breaker.half_open()
        self._report("pool.breaker_half_open", group=group.name)

    def _close_now(self) -> None:
        """grace_s is over: whoever still runs a call is killed; its caller finds the pipe ended and the pool closed."""
        assert self.state is PoolState.CLOSING
        detail = "the pool was closed and its grace was over"
        for worker in list(self.workers.values()):
            if worker.state is not STOPPING:
                self._remove(worker, "stopped", detail)
            elif not worker.killed:
                worker.killed = True
                self._emit(c.Kill(worker.worker_id, worker.reason, detail))


def _cost(worker: Worker) -> tuple[bool, bool, int, float]:
    ready = worker.state is READY
    return not (ready and worker.due is not None), ready, worker.leased, worker.idle_since
