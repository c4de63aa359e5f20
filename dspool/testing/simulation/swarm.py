"""What a seed draws first: which faults are switched on, at which rates, and the pool's options.

Rules:
    1. Everything comes from the generator given, and in a fixed order: a draw more, or one elsewhere, is another world
       for every seed.
    2. It knows neither the core nor what a fault does: only its name and its highest rate.
    3. A swarm: each world leaves out what it can, faults and kinds of calls alike. A world that has everything at once
       hides what only a few things together can do.

Source: Groce et al., Swarm Testing (ISSTA 2012); TigerBeetle's VOPR and FoundationDB's simulator draw each run's
options in the same way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from dspool.options import PoolOptions, WorkerGroup
from dspool.pool.core.commands import INFINITY
from dspool.types import Verdict

FAULTS: dict[str, float] = {
    # what can go wrong or come at a bad moment, and the highest rate it is switched on with
    "slow_start": 0.5,
    "failed_boot": 0.6,
    "fork_refused": 0.3,
    "stuck_start": 0.3,
    "late_ready": 0.5,
    "template_death": 0.3,
    "template_fails": 0.5,
    "slow_template": 0.5,
    "crash": 0.5,
    "crash_at_order": 0.05,
    "crash_in_call": 0.3,
    "hang": 0.2,
    "lie": 0.1,
    "pipe_glitch": 0.1,
    "unread": 0.2,
    "slow_exit": 0.3,
    "lost_pong": 0.4,
    "late_pong": 0.4,
    "doubled_pong": 0.4,
    "skip": 0.5,
    "remove": 0.3,
    "remove_at_checkin": 0.2,
    "slow_hook": 0.3,
    "cancel": 0.4,
    "cancel_at_order": 0.1,
    "cancel_at_turn": 0.1,
    "late_settle": 0.5,
    "no_settle": 0.4,
    "fat": 0.5,
    "unwell": 0.3,
    "ghost": 0.5,
    "late_tick": 0.5,
    "late_caller": 0.3,
    "clock_jump": 0.1,
    "suspend": 0.1,
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


@dataclass(frozen=True)
class Load:
    """What callers do in this world; see `draw_load`.

    Attributes:
        arrivals: bursts per second.
        burst: how many may come at once.
        sessions: share of calls with one.
        leases: share of callers that take a lease and run several programs in it.
        patience_s: what their deadlines are drawn from.
        quiet: share of arrivals that are followed by a pause, in which a pool may shrink and sessions be forgotten.
    """

    arrivals: float
    burst: int
    sessions: float
    leases: float
    patience_s: tuple[float, ...]
    quiet: float


def draw_load(rng: random.Random) -> Load:
    """A world without sessions, or without patience, finds what the average of all of them never does."""
    return Load(
        arrivals=rng.choice((2.0, 8.0, 8.0, 30.0)),
        burst=rng.choice((1, 6, 6, 20)),
        sessions=rng.choice((0.0, 0.4, 0.4, 0.9)),
        leases=rng.choice((0.0, 0.3, 0.3, 0.8)),
        patience_s=rng.choice(((0.0, 0.1, 0.5, 2.0, 2.0, 20.0, INFINITY), (0.1, 0.5, 2.0), (20.0, INFINITY))),
        quiet=rng.choice((0.0, 0.0, 0.1)),
    )


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
        shed_target_s=rng.choice((None, None, 0.1, 0.5)),
        shed_interval_s=rng.choice((0.2, 1.0)),
        max_rss_growth_bytes=rng.choice((None, None, 200)),
    )


def _never_called(*_: object) -> Verdict:
    raise AssertionError("the simulator's callers give their verdicts themselves")
