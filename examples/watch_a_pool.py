"""Watching a pool: what happens, as it happens; how it is and was; what was used; and workers that are refused."""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import dspool
from dspool.testing.offline_lm import offline_lm

log = logging.getLogger("my_app.pool")
PAGE_FOR = {"pool.breaker_opened", "pool.broken", "program.quarantined"}


def on_event(name: str, fields: Mapping[str, Any]) -> None:
    report = fields.get("report")  # of worker.lost and worker.ended: how the worker ended
    if name in PAGE_FOR:
        log.error("%s: %s", name, dict(fields))
    elif report is not None:
        log.info("worker %s: %s, %s", report.worker_id, report.reason, report.detail)


def bill(pool: dspool.Pool) -> dict[str, str]:
    usage = pool.stats().usage
    lines = {}
    for session, row in usage.by_session.items():
        price = "no known price" if row.cost_usd is None else f"${row.cost_usd:.4f}"
        missing = f", {row.unpriced} of {row.requests} requests not priced" if row.unpriced else ""
        lines[session] = f"{row.calls} calls, {row.total_tokens} tokens ({row.cached_tokens} cached), {price}{missing}"
    return lines


def report(pool: dspool.Pool) -> str:
    health = pool.health()
    lines = [f"{health.status} for {health.since_s:.0f} s: {health.reason or 'as it was opened'}"]
    lines += [f"{health.ready} of {health.target} workers are ready"]
    if health.availability is not None and health.availability_1h is not None:
        lines += [f"available {health.availability:.2%}, {health.availability_1h:.2%} in the last hour"]
    for name, answers in (("pings", health.pings), ("calls", health.calls)):
        if answers.done:
            mean = "none answered" if answers.mean_s is None else f"{answers.mean_s * 1000:.1f} ms"
            told = f"{answers.done}, {answers.failed} failed, mean {mean}, last {answers.last_age_s:.0f} s ago"
            lines += [f"{name}: {told}"]
    for change in health.changes[-5:]:
        lines += [f"{change.age_s:.0f} s ago {change.before} -> {change.status}: {change.reason}"]
    return "\n".join(lines)


def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
    if worker.rss_bytes and worker.rss_bytes > 2_000_000_000:
        return dspool.Remove("over 2 GB")  # it is killed and replaced; the call goes on to another
    if request.session is None and worker.sessions > 10:
        return dspool.Skip("kept for its sessions")  # it stays; the next one is asked
    return dspool.KEEP


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
logging.getLogger("dspool").propagate = False  # the pool's own lines, so that the hook's can be seen

pool = dspool.Pool(workers=2, lm=offline_lm(), name="billing", on_event=on_event, check=check)
with pool:
    pool.run("text -> title", {"text": "# Slots\n\nA slot runs one call."}, session="ada")
    try:
        pool.run(crash, {})
    except dspool.WorkerLost:
        pool.wait_ready()
    print(report(pool))
    print(bill(pool))
