"""When a worker has had its time: what its limits are, and the words for the one it met. Pure.

Rules:
    1. Each limit is up to 10 % lower, differently for each worker, so that workers that began together are not due
       together. `Fleet._shortened` says how much.
    2. Growth is counted from the first sample after the worker's first answered call. What a worker needs to work at
       all (the imports, caches and programs that a first call brings in, an LM's client with its hundred megabytes) is
       in that sample, and what later calls leave behind is not. Sooner, every worker would seem to grow by what it is
       meant to hold; later, a part of the leak would pass for it.
    3. A size counts when two samples in a row are over: one may have met a large call at its height. Busy workers are
       sampled too, since one that is never idle would else never be seen.
    4. A worker that answered nothing yet is not replaced for its size, nor is its successor, which would be as large.
"""

from __future__ import annotations

from dspool.options import PoolOptions
from dspool.pool.core.records import Worker

SAMPLES_OVER = 2
"""Samples in a row over a limit that make a worker due."""
BY_HAND = "recycle() was called"
BY_RELOAD = "reload() was called"


def by_requests(worker: Worker, options: PoolOptions) -> str:
    """It answered as many calls as it may."""
    return f"it answered {worker.calls} calls; its limit is {worker.request_limit:g} ({_of('max_requests', options)})"


def by_age(worker: Worker, now: float, options: PoolOptions) -> str:
    """It was ready for as long as it may be."""
    assert worker.ready_at is not None
    return f"it was ready for {now - worker.ready_at:g} s ({_of('max_lifetime_s', options)})"


def by_memory(worker: Worker, share: float, options: PoolOptions) -> str | None:
    """What is too large about its last sample, if anything.

    Args:
        worker: with `rss_bytes`, and `warm_rss_bytes` if that is known.
        share: 0.9 to 1, what its jitter leaves of a limit.
        options: the pool's.
    """
    size, warm = worker.rss_bytes, worker.warm_rss_bytes
    assert size is not None
    if options.max_rss_bytes is not None and size > (limit := options.max_rss_bytes * share):
        return f"it has {size:,} bytes resident; its limit is {limit:,.0f} ({_of('max_rss_bytes', options)})"
    if options.max_rss_growth_bytes is None or warm is None:
        return None
    if size - warm <= (limit := options.max_rss_growth_bytes * share):
        return None
    return (
        f"it has {size:,} bytes resident, {size - warm:,} more than after its first call; "
        f"its limit is {limit:,.0f} more ({_of('max_rss_growth_bytes', options)})"
    )


def _of(option: str, options: PoolOptions) -> str:
    return f"{option}={getattr(options, option):,}, less up to 10 % of jitter"
