"""Events: each thing that happens to a worker or to the pool, as a log line and as a call of the user's on_event hook.

The hook runs on a thread of its own behind a bounded queue, so that a slow one delays nobody: what doesn't fit is
dropped, counted, and told of once. Whatever it raises is logged and nothing more; SystemExit too, which would end the
thread. It may use the pool; close() called there returns at once, as the pool's end waits for the hook.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any

from dspool.logs import get_logger
from dspool.options import EventHook
from dspool.types import ExitReport

QUEUE_LENGTH = 1000
_WARNINGS = frozenset(
    {
        "worker.lost",
        "worker.wont_end",
        "worker.too_large",
        "pool.breaker_opened",
        "pool.start_method",
        "pool.template_kept",
        "program.quarantined",
        "hook.failed",
    }
)


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
        level = "error" if event == "pool.broken" else "warning" if event in _WARNINGS else "debug"
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
