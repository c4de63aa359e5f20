"""What a seed draws first: which faults are switched on, at which rates, and the pool's options.

Rules:
    1. Everything comes from the generator given, and in a fixed order: a draw more, or one elsewhere, is another world
       for every seed.
    2. It knows neither the core nor what a fault does: only its name and its highest rate.
"""

from __future__ import annotations

import random
from typing import Any

from dspool.options import PoolOptions, WorkerGroup
from dspool.types import Verdict

FAULTS: dict[str, float] = {
    # what can go wrong or come at a bad moment, and the highest rate it is switched on with
    "slow_start": 0.5,
    "failed_boot": 0.6,
    "stuck_start": 0.3,
    "late_ready": 0.5,
    "crash": 0.3,
    "crash_in_call": 0.3,
    "hang": 0.2,
    "pipe_glitch": 0.1,
    "unread": 0.2,
    "slow_exit": 0.3,
    "lost_pong": 0.4,
    "late_pong": 0.4,
    "skip": 0.5,
    "remove": 0.3,
    "remove_at_checkin": 0.2,
    "cancel": 0.4,
    "late_settle": 0.5,
    "no_settle": 0.4,
    "fat": 0.5,
    "unwell": 0.3,
    "ghost": 0.5,
    "late_tick": 0.5,
    "late_caller": 0.3,
    "clock_jump": 0.1,
    "resize": 0.3,
    "reload": 0.2,
    "recycle": 0.4,
    "pause": 0.2,
    "drain": 0.1,
    "release": 0.2,
    "early_close": 0.3,
}


def draw_rates(rng: random.Random) -> dict[str, float]:
    """Each fault's rate: 0 where it is switched off."""
    share = rng.choice((0.0, 0.2, 0.5, 0.8))
    return {fault: rng.uniform(0.02, highest) if rng.random() < share else 0.0 for fault, highest in FAULTS.items()}


def draw_options(rng: random.Random) -> PoolOptions:
    """Small numbers and short times, so that every limit is met."""
    workers: Any = rng.randint(1, 5)
    overflow = rng.choice((0, 0, 1, 2))
    if rng.random() < 0.3:
        cpu = WorkerGroup(name="cpu", workers=rng.randint(0, 3), labels=frozenset({"cpu"}), overflow=overflow)
        workers = [cpu, WorkerGroup(name="gpu", workers=rng.randint(1, 2), labels=frozenset({"gpu"}))]
        overflow = 0
    hooked = rng.random() < 0.5
    return PoolOptions(
        name="sim",
        workers=workers,
        overflow=overflow,
        overflow_linger_s=rng.choice((0.0, 1.0, 5.0)),
        lazy=rng.random() < 0.3,
        slots=rng.choice((1, 1, 1, 2, 3)),
        start_concurrency=rng.choice((1, 2, 8)),
        start_timeout_s=5.0,
        max_waiting=rng.choice((0, 3, 20, 1000)),
        max_waiting_bytes=rng.choice((500, 10_000)),
        max_restarts=rng.choice((0, 1, 3, 10)),
        restart_window_s=rng.choice((5.0, 30.0)),
        quarantine_after=rng.choice((1, 2, 3, None)),
        quarantine_s=rng.choice((0.0, 2.0, 10.0)),
        max_requests=rng.choice((None, None, 3, 20)),
        max_lifetime_s=rng.choice((None, None, 10.0)),
        max_rss_bytes=rng.choice((None, 1000)),
        ping_interval_s=rng.choice((None, 1.0, 5.0)),
        ping_timeout_s=0.5,
        ping_failures=rng.choice((1, 3)),
        grace_s=rng.choice((0.0, 0.5, 2.0)),
        cancel_grace_s=0.3,
        affinity_wait_s=rng.choice((0.0, 0.1, 0.5)),
        session_ttl_s=rng.choice((1.0, 60.0)),
        max_sessions=rng.choice((1, 3, 100)),
        max_programs=rng.choice((1, 2, 64)),
        check=_never_called if hooked else None,
    )


def _never_called(*_: object) -> Verdict:
    raise AssertionError("the simulator's callers give their verdicts themselves")
