"""Counters. Only the machine changes them; users see them in PoolStats."""

from __future__ import annotations

import msgspec

from dspool.types import ExitReport


class Counters(msgspec.Struct):
    """Counters since open(); they never go down. Their meaning stands in `dspool.types.PoolStats`."""

    checkouts: int = 0
    granted: int = 0
    calls_ok: int = 0
    calls_failed: int = 0
    calls_lost: int = 0
    calls_timeout: int = 0
    calls_cancelled: int = 0
    retries: int = 0
    queue_timeouts: int = 0
    rejected: dict[str, int] = {}
    skips: int = 0
    shed: int = 0
    removals: int = 0
    started: int = 0
    replaced: int = 0
    start_failures: int = 0
    exits: dict[str, int] = {}
    spills: int = 0
    repins: int = 0
    queue_wait_s_sum: float = 0.0
    queue_wait_s_max: float = 0.0
    run_s_sum: float = 0.0
    run_s_max: float = 0.0
    last_exit: ExitReport | None = None
