"""What calls used of LMs, summed for the pool, and by model, program and session.

A worker says with each response what its call used; whoever reads the response adds it here, before the caller gets
the result. Calls that used nothing and waited for nothing don't come here at all.

Rules:
    1. Sums never go down and nothing resets them. A row that is forgotten for a newer one goes into the table's others,
       so that every table adds up to the total.
    2. Bounded: rows by least recent use. Rows are frozen and are replaced, so that a look copies tables, not rows.
    3. Any thread may add. A signal handler that looks meanwhile may see a call in one table and not yet in the next.

Knows no workers and no clock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from dspool.protocol.messages import ModelUse
from dspool.types import LMUsage, UsageStats

MAX_MODELS = 256
MAX_PROGRAMS = 1024
_NONE = LMUsage()


class UsageBook:
    """The sums of one pool.

    Args:
        max_sessions: sessions that have a row of their own.
    """

    def __init__(self, max_sessions: int) -> None:
        self._lock = threading.RLock()
        self._total = _NONE
        self._models = _Table(MAX_MODELS)
        self._programs = _Table(MAX_PROGRAMS)
        self._sessions = _Table(max_sessions)

    def add(self, program: str, session: str | None, uses: Iterable[ModelUse]) -> None:
        """Count one call, by what its response says.

        Args:
            program: the registered name, or the label.
            session: the call's, or None.
            uses: by model.
        """
        rows = [(use.model, _row(use)) for use in uses]
        call = _NONE
        for _, row in rows:
            call = _sum(call, row, calls=1)
        with self._lock:
            self._total = _sum(self._total, call)
            for model, row in rows:
                self._models.add(model, row)
            self._programs.add(program, call)
            if session is not None:
                self._sessions.add(session, call)

    def stats(self) -> UsageStats:
        """The sums as they are now."""
        with self._lock:
            return UsageStats(
                total=self._total,
                by_model=dict(self._models.rows),
                by_program=dict(self._programs.rows),
                by_session=dict(self._sessions.rows),
                other_models=self._models.others,
                other_programs=self._programs.others,
                other_sessions=self._sessions.others,
            )


class _Table:
    """Rows by name, the least recently used of which make room."""

    def __init__(self, most: int) -> None:
        self.rows: OrderedDict[str, LMUsage] = OrderedDict()
        self.others = _NONE
        self._most = most

    def add(self, name: str, row: LMUsage) -> None:
        """Add to a row, which may be a new one."""
        known = self.rows.get(name)
        self.rows[name] = row if known is None else _sum(known, row)
        self.rows.move_to_end(name)
        if len(self.rows) > self._most:
            _, oldest = self.rows.popitem(last=False)
            self.others = _sum(self.others, oldest)


def _row(use: ModelUse) -> LMUsage:
    priced = min(use.priced, use.requests)
    return LMUsage(
        calls=1,
        requests=use.requests,
        prompt_tokens=use.prompt_tokens,
        completion_tokens=use.completion_tokens,
        total_tokens=use.total_tokens,
        cached_tokens=use.cached_tokens,
        cost_usd=use.cost_usd if priced else None,
        unpriced=use.requests - priced,
        throttled=use.throttled,
        throttled_s=use.throttled_s,
    )


def _sum(one: LMUsage, other: LMUsage, calls: int | None = None) -> LMUsage:
    """Both together; `calls` where they are parts of the same one."""
    costs = [row.cost_usd for row in (one, other) if row.cost_usd is not None]
    return LMUsage(
        calls=one.calls + other.calls if calls is None else calls,
        requests=one.requests + other.requests,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        total_tokens=one.total_tokens + other.total_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        cost_usd=sum(costs) if costs else None,
        unpriced=one.unpriced + other.unpriced,
        throttled=one.throttled + other.throttled,
        throttled_s=one.throttled_s + other.throttled_s,
    )
