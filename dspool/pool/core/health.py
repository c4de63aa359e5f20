"""How a pool is and was: whether it can do its work, since when, and how what its workers were asked was answered.

Rules:
    1. healthy: as many workers are ready as there should be, and more could be started. unhealthy: none is ready though
       some should be. degraded: anything between.
    2. A lazy pool should have as many as it has, until its starts are stopped.
    3. A half-open breaker counts while a worker is on trial. With nobody to start it may stay half-open for long, and
       nothing is wrong with a pool at full strength.
    4. What a caller chose (a cancelled call) and what never ran (a refused one) is neither a success nor a failure.
    5. Every change counts towards the time that was spent well or ill; not every one is told. BURST that follow one
       another are told at once; beyond that one a second is, of whatever has come of them by then.
    6. A pool that closes is neither well nor ill: its clock stops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import get_args

import msgspec

from dspool.pool.core.records import Group
from dspool.types import HealthStatus

ANSWERS_REMEMBERED = 100
CHANGES_REMEMBERED = 64
BURST = 5
"""Changes that are told at once when they follow one another closely."""
TELL_EVERY_S = 1.0
"""One more is told after each such time."""
MINUTE_S = 60.0
MINUTES_REMEMBERED = 60
STATUSES: tuple[HealthStatus, ...] = get_args(HealthStatus)
_ERROR_CHARS = 500


class Judgement(msgspec.Struct, frozen=True):
    """What the workers make of a pool."""

    status: HealthStatus
    ready: int
    target: int
    stopped: bool
    """Whether starts are stopped, by an open breaker or one whose trial isn't over."""


def judge(groups: Collection[Group], *, lazy: bool) -> Judgement:
    """The status, how many workers are ready, and how many should be."""
    ready = sum(group.ready for group in groups)
    target = sum(group.size for group in groups)
    stopped = any(group.breaker.state == "open" or group.breaker.trial is not None for group in groups)
    if lazy and not stopped:
        target = ready
    if ready >= target and not stopped:
        return Judgement("healthy", ready, target, stopped)
    return Judgement("degraded" if ready else "unhealthy", ready, target, stopped)


class Change(msgspec.Struct, frozen=True):
    """The pool was something else before."""

    at: float
    status: HealthStatus
    before: HealthStatus
    ready: int
    target: int
    reason: str


class History:
    """Since when the pool is what it is, what it was before, and what was told of that.

    Args:
        status: what it is before its first step.
    """

    def __init__(self, status: HealthStatus) -> None:
        self.status = status
        self.changes: deque[Change] = deque(maxlen=CHANGES_REMEMBERED)
        """The last of them, the newest last."""
        self.told = status
        """The status that was told last."""
        self.began_at: float | None = None
        self.since = 0.0
        self.ended_at: float | None = None
        self._spent = dict.fromkeys(STATUSES, 0.0)
        self._minutes: deque[tuple[int, dict[HealthStatus, float]]] = deque(maxlen=MINUTES_REMEMBERED)
        """(which minute, the seconds of it in each status), without the time since the last change."""
        self._tat = float("-inf")
        """When the burst is over for good: each change that is told moves it by TELL_EVERY_S."""
        self._unsaid = 0
        self._pending = 0
        """Changes since the one that was told last."""

    def begin(self, now: float) -> None:
        """The clock runs from the first step on."""
        if self.began_at is None:
            self.began_at = self.since = now

    def end(self, now: float) -> None:
        """The pool closes: the clock stops."""
        self.begin(now)
        self.ended_at = now

    def change(self, judgement: Judgement, reason: str, now: float) -> Change:
        """The status is another one from now on."""
        for minute, spent_s in _minutes(self.since, now):
            if not self._minutes or self._minutes[-1][0] < minute:
                self._minutes.append((minute, dict.fromkeys(STATUSES, 0.0)))
            self._minutes[-1][1][self.status] += spent_s
        self._spent[self.status] += now - self.since
        change = Change(now, judgement.status, self.status, judgement.ready, judgement.target, reason)
        self.changes.append(change)
        self.status, self.since = judgement.status, now
        self._pending += 1
        return change

    def may_tell_at(self) -> float | None:
        """From when on the last change may be told; None where there is nothing to tell."""
        return None if self.status == self.told else self._tat - (BURST - 1) * TELL_EVERY_S

    def tell(self, now: float) -> tuple[HealthStatus, int]:
        """The last change is told now. Gives the status told before, and how many changes in between were not told."""
        before, unsaid = self.told, self._pending - 1
        self.told, self._pending = self.status, 0
        self._unsaid += unsaid
        self._tat = max(self._tat, now) + TELL_EVERY_S
        return before, unsaid

    @property
    def unsaid(self) -> int:
        """Changes that were not told, or not yet."""
        return self._unsaid + self._pending

    def spent(self, now: float) -> dict[HealthStatus, float]:
        """The seconds in each status since the first step."""
        spent = dict(self._spent)
        if self.began_at is not None:
            spent[self.status] += self._until(now) - self.since
        return spent

    def spent_lately(self, now: float) -> dict[HealthStatus, float]:
        """The same for this minute and the 59 before it."""
        spent = dict.fromkeys(STATUSES, 0.0)
        if self.began_at is None:
            return spent
        until = self._until(now)
        first = int(until // MINUTE_S) - MINUTES_REMEMBERED + 1
        for minute, seconds in self._minutes:
            if minute >= first:
                for status, spent_s in seconds.items():
                    spent[status] += spent_s
        spent[self.status] += until - max(self.since, first * MINUTE_S)
        return spent

    def _until(self, now: float) -> float:
        return max(self.since, now if self.ended_at is None else self.ended_at)


def _minutes(since: float, until: float) -> list[tuple[int, float]]:
    """A time as minutes and the seconds in each; of a long one, the last that are remembered."""
    last = int(until // MINUTE_S)
    first = max(int(since // MINUTE_S), last - MINUTES_REMEMBERED + 1)
    return [
        (minute, min(until, (minute + 1) * MINUTE_S) - max(since, minute * MINUTE_S))
        for minute in range(first, last + 1)
    ]


class Answers(msgspec.Struct):
    """How something that workers are asked was answered: calls, or pings."""

    recent: deque[float | None] = msgspec.field(default_factory=lambda: deque(maxlen=ANSWERS_REMEMBERED))
    """How long each took, in seconds, the last one last; None: it failed."""
    done: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    last_at: float | None = None

    def ok(self, took_s: float, now: float) -> None:
        """It was answered well."""
        self.recent.append(took_s)
        self.done += 1
        self.consecutive_failures = 0
        self.last_at = now

    def failed(self, now: float) -> None:
        """It was not."""
        self.recent.append(None)
        self.done += 1
        self.failures += 1
        self.consecutive_failures += 1
        self.last_at = now

    @property
    def success_rate(self) -> float | None:
        """Of those remembered, the share that was answered well, 0 to 1; None before the first."""
        remembered = len(self.recent)
        return (remembered - self.recent.count(None)) / remembered if remembered else None

    @property
    def mean_s(self) -> float | None:
        """Of those remembered that were answered well, the mean time; None where there is none."""
        took = [took_s for took_s in self.recent if took_s is not None]
        return sum(took) / len(took) if took else None


class Outcomes(msgspec.Struct):
    """How the last calls ended, and what went wrong last."""

    calls: Answers = msgspec.field(default_factory=Answers)
    last_error: str = ""
    last_error_at: float | None = None

    def failed(self, error: str, now: float) -> None:
        """A call ended without its result."""
        self.calls.failed(now)
        self.note(error, now)

    def note(self, error: str, now: float) -> None:
        """Something went wrong, in a call or in no call."""
        self.last_error = error if len(error) <= _ERROR_CHARS else error[: _ERROR_CHARS - 3] + "..."
        self.last_error_at = now
