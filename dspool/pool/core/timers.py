"""Timers: one per (what, whose), each with the time it is due. Arming one again moves it.

The heap is cleaned lazily: an entry that is no longer what was armed is dropped when it surfaces, and all of them when
they outnumber the live ones. So a lease that ends in time leaves nothing behind.

`earliest` is a bound: nothing is due before it. Most steps arm nothing, and find by it that nobody has to be told.
"""

from __future__ import annotations

import heapq
from typing import Literal

TimerKind = Literal[
    "start",
    "stop",
    "ping",
    "age",
    "linger",
    "cancel",
    "abandon",
    "backoff",
    "breaker",
    "hint",
    "hold",
    "check",
    "session",
    "shed",
    "health",
    "close",
]
Timer = tuple[TimerKind, int, int]
"""(what, whose, and of which lease): a worker_id, a lease_id, a group's or line's number, 0 where there is only one."""

_COMPACT_FROM = 64
_NEVER = float("inf")


class Timers:
    """A heap of timers."""

    def __init__(self) -> None:
        self._armed: dict[Timer, float] = {}
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self.earliest = _NEVER

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, when: float, kind: TimerKind, key: int = 0, sub: int = 0) -> None:
        """Call for (kind, key, sub) at `when`, absolute monotonic seconds, not when it was due. Infinity: never."""
        if when == _NEVER:
            self.disarm(kind, key, sub)
            return
        timer = (kind, key, sub)
        self._armed[timer] = when
        self.earliest = min(self.earliest, when)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))
        if len(self._heap) > _COMPACT_FROM and len(self._heap) > 2 * len(self._armed):
            self._compact()

    def disarm(self, kind: TimerKind, key: int = 0, sub: int = 0) -> None:
        """Don't call for it, if it was armed."""
        self._armed.pop((kind, key, sub), None)

    def armed(self, kind: TimerKind, key: int = 0, sub: int = 0) -> bool:
        """Whether it will be called for."""
        return (kind, key, sub) in self._armed

    def next(self) -> float | None:
        """When the earliest timer is due."""
        heap, armed = self._heap, self._armed
        while heap:
            when, _, timer = heap[0]
            if armed.get(timer) == when:
                self.earliest = when
                return when
            heapq.heappop(heap)
        self.earliest = _NEVER
        return None

    def pop_due(self, now: float) -> Timer | None:
        """The earliest timer that is due, disarmed."""
        when = self.next()
        if when is None or when > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        del self._armed[timer]
        return timer

    def _compact(self) -> None:
        armed = self._armed
        self._heap = [entry for entry in self._heap if armed.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)
