"""Events: each thing that happens to a worker or to the pool, as a log line and as a call of the user's on_event hook.

The hook runs on a thread of its own behind a bounded queue, so that a slow one delays nobody: what doesn't fit is
dropped, counted, and told of once. Whatever it raises is logged and nothing more; SystemExit too, which would end the
thread. It may use the pool; close() called there returns at once, as the pool's end waits for the hook.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dspool.logs import get_logger
from dspool.options import EventHook
from dspool.types import ExitReport

QUEUE_LENGTH = 1000
Level = Literal["debug", "info", "warning", "error"]


class EventKind(NamedTuple):
    """One kind of event: its log level, the names of its fields, and what it says."""

    level: Level
    fields: tuple[str, ...]
    text: str


def _kind(level: Level, fields: str, text: str) -> EventKind:
    return EventKind(level, tuple(fields.split()), text)


EVENTS: dict[str, EventKind] = {
    # workers
    "worker.ready": _kind("debug", "worker_id group took_s", "A worker is ready, so long after its start was ordered."),
    "worker.due": _kind(
        "debug",
        "worker_id reason detail",
        "A worker is to be replaced, and is lent until its replacement is ready. `reason` is the exit reason it will "
        "have; `detail` says precisely why: which limit it met with which figure, or who asked.",
    ),
    "worker.draining": _kind(
        "debug", "worker_id reason", "A worker gets no more calls, and is stopped when its last one is over."
    ),
    "worker.ended": _kind("debug", "worker_id group report", "A worker that was asked to end is gone."),
    "worker.lost": _kind("warning", "worker_id group report", "A worker is gone that nobody asked to end."),
    "worker.wont_end": _kind(
        "warning", "worker_id group", "A worker should be gone and is still there. It is replaced all the same."
    ),
    "worker.too_large": _kind(
        "warning",
        "worker_id detail rss_bytes max_rss_bytes",
        "A worker is over `max_rss_bytes` before its first call. It is kept: the next one would be as large.",
    ),
    # the pool
    "pool.health": _kind(
        "info",
        "status before ready target reason unsaid",
        "The pool is healthy, degraded or unhealthy, and was not before. It begins unhealthy, or healthy where lazy. "
        "Of changes that follow one another closely five are told at once, then one a second, of what has come of them "
        "by then; `unsaid` is how many in between were not told.",
    ),
    "pool.breaker_opened": _kind(
        "warning",
        "group failures last for_s",
        "Too many starts failed: there are no more for so long. `last` is how the last one ended.",
    ),
    "pool.breaker_half_open": _kind("info", "group", "That time is over: one worker is tried."),
    "pool.breaker_closed": _kind(
        "info", "group", "It did its first work, or reload() was called: workers are started."
    ),
    "pool.shedding_began": _kind(
        "warning",
        "groups priority target_s waiting",
        "Calls of this priority that these groups may serve only stand in the queue: the oldest are refused.",
    ),
    "pool.shedding_ended": _kind(
        "info", "groups priority target_s shed", "One was served in time again, or none waits; so many were refused."
    ),
    "pool.resized": _kind("debug", "group workers before", "A group has another size."),
    "pool.paused": _kind("debug", "", "Nothing is granted until resume()."),
    "pool.resumed": _kind("debug", "", "The pool grants and takes calls again."),
    "pool.draining": _kind("debug", "waiting leased", "The pool finishes what it has and takes nothing new."),
    "pool.closing": _kind("debug", "waiting leased", "The pool is being closed; who waits is refused."),
    "pool.closed": _kind("debug", "", "The last worker is gone."),
    "pool.broken": _kind("error", "error", "A fault in dspool itself, or of its event loop: nothing works any more."),
    "pool.start_method": _kind(
        "warning", "start_method reason", "Workers are started in another way than the one that was asked for."
    ),
    "pool.environment": _kind(
        "warning",
        "check status detail advice",
        "Something around the pool may hurt it: a quick look at open() found it, once. `dspool doctor` looks closer.",
    ),
    "template.lost": _kind(
        "warning",
        "pid how workers",
        "A process that workers are forked from died. It harms no worker that was forked, but the exit status of those "
        "will be unknown, so that they are replaced one by one; the next start makes a new one.",
    ),
    "pool.template_kept": _kind(
        "warning",
        "detail traceback",
        "A new template could not be made for reload(): the old one is kept. `traceback` says where it failed or hung.",
    ),
    # programs and calls
    "program.quarantined": _kind(
        "warning",
        "program for_s ends",
        "Its calls kept ending workers: it is refused for so long. `ends` says how they did.",
    ),
    "program.released": _kind("info", "program", "It may run again: its trial ended well, or release() was called."),
    "lm.key_missing": _kind(
        "warning",
        "model detail",
        "A pool's, a program's or a call's LM has no key in the workers, as far as can be known. `detail` says which "
        "variable is not set and where to set it. Said once for each LM, when the pool is opened or the LM first used.",
    ),
    "lease.expired": _kind("debug", "lease_id worker_id hold_s", "A lease was held for longer than it may be."),
    "hook.late": _kind(
        "warning",
        "hook worker_id lease_id",
        "The `check` hook still looked at a worker when the call's deadline came: the slot is lent to others. The "
        "caller gets QueueTimeout, once the hook returns where it runs on the caller's own thread.",
    ),
    "hook.failed": _kind(
        "warning",
        "hook worker_id error traceback",
        "The `check` hook raised: the worker is removed. What `on_event` raises is logged under the same name.",
    ),
}
"""Every event. `pool.broken` has a `traceback` beside its `error` where the control plane failed."""


class Events:
    """Where a pool's events go.

    Args:
        pool: the pool's name.
        hook: the user's on_event, or None.
    """

    def __init__(self, pool: str, hook: EventHook | None) -> None:
        self.dropped = 0
        """Events that the hook was not told of."""
        self._log = get_logger("dspool.pool", pool=pool)
        self._hook = hook
        # A simple one: put() may come from a finaliser, on top of a get().
        self._queue: queue.SimpleQueue[tuple[str, Mapping[str, Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def publish(self, event: str, fields: Mapping[str, Any]) -> None:
        """Log the event and queue it for the hook. Never blocks, never raises."""
        kind = EVENTS.get(event)
        level: Level = "warning" if kind is None or fields.get("status") == "unhealthy" else kind.level
        getattr(self._log, level)(event, **log_fields(fields))
        if self._hook is None:
            return
        if self._queue.qsize() < QUEUE_LENGTH:
            self._queue.put((event, fields))
        else:
            if not self.dropped:
                self._log.warning("hook.overrun", hook="on_event", event_name=event, waiting=QUEUE_LENGTH)
            self.dropped += 1
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="dspool-events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system refuses another thread; perhaps it won't at the next event
            self._thread = None
            self._log.warning("hook.waits", hook="on_event", error=str(error))

    @property
    def here(self) -> bool:
        """Whether this is the hook's own thread."""
        return threading.current_thread() is self._thread

    @property
    def pending(self) -> bool:
        """Whether close() has to wait for the hook."""
        return self._thread is not None

    def close(self, timeout_s: float) -> None:
        """Let the hook finish what is queued, for so long; a hook that blocks is left behind on its thread."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        assert self._hook is not None
        while (item := self._queue.get()) is not None:
            try:
                self._hook(*item)
            except BaseException:
                self._log.warning("hook.failed", hook="on_event", event_name=item[0], exc_info=True)


def log_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """An event's fields for a log line: a report as its gist."""
    plain = dict(fields)
    report = plain.pop("report", None)
    if isinstance(report, ExitReport):
        plain.update(pid=report.pid, reason=report.reason, signal=report.signal, exit_code=report.exit_code)
        plain.update(age_s=round(report.age_s, 3), calls=report.calls)
        if report.detail:
            plain["detail"] = report.detail
    return plain
