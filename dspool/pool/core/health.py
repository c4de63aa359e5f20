"""How a pool is: whether it can do its work, and how its last calls ended.

Rules:
    1. healthy: as many workers are ready as there should be, and more could be started. unhealthy: none is ready though
       some should be. degraded: anything between.
    2. A lazy pool should have as many as it has, until its starts are stopped.
    3. A half-open breaker counts while a worker is on trial. With nobody to start it may stay half-open for long, and
       nothing is wrong with a pool at full strength.
    4. What a caller chose (a cancelled call) and what never ran (a refused one) is neither a success nor a failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import msgspec

from dspool.pool.core.records import Group
from dspool.types import HealthStatus

CALLS_REMEMBERED = 100
_ERROR_CHARS = 500


def judge(groups: Collection[Group], *, lazy: bool) -> tuple[HealthStatus, int, int]:
    """The status, how many workers are ready, and how many should be."""
    ready = sum(group.ready for group in groups)
    target = sum(group.size for group in groups)
    stopped = any(group.breaker.state == "open" or group.breaker.trial is not None for group in groups)
    if lazy and not stopped:
        target = ready
    if ready >= target and not stopped:
        return "healthy", ready, target
    return ("degraded" if ready else "unhealthy"), ready, target


class Outcomes(msgspec.Struct):
    """How the last calls ended, and what went wrong last."""

    recent: deque[bool] = msgspec.field(default_factory=lambda: deque(maxlen=CALLS_REMEMBERED))
    """Whether each gave its result, the last one last."""
    consecutive_failures: int = 0
    last_error: str = ""
    last_error_at: float | None = None

    @property
    def success_rate(self) -> float | None:
        """The share of the remembered calls that gave their results, 0 to 1; None before the first."""
        return sum(self.recent) / len(self.recent) if self.recent else None

    def failed(self, error: str, now: float) -> None:
        """A call ended without its result."""
        self.recent.append(False)
        self.consecutive_failures += 1
        self.note(error, now)

    def note(self, error: str, now: float) -> None:
        """Something went wrong, in a call or in no call."""
        self.last_error = error if len(error) <= _ERROR_CHARS else error[: _ERROR_CHARS - 3] + "..."
        self.last_error_at = now
