"""What a caller is told of a call that gave no answer: where it was, how its worker ended, and what to do about it.

Where that is to be said with an exit report, the report is waited for, but not for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dspool.errors import CallTimeout, PoolClosed, PoolError, QueueTimeout, WorkerLost
from dspool.pool.core import commands as c
from dspool.pool.core.records import Lease as LeaseRecord
from dspool.pool.core.states import PoolState
from dspool.pool.driver import Driver
from dspool.pool.programs import Program
from dspool.pool.steps import REPORT, Steps
from dspool.protocol.messages import Response
from dspool.types import ExitReport

REPORT_WAIT_S = 0.5
"""How long a caller whose worker was lost waits to be told why."""
NOT_SENT_AGAIN = "The call may have run and was not sent again; pass idempotent=True where sending it again is safe"
IN_A_LEASE = "The call may have run, and the lease is over with its worker; check out again"
_OVER = (PoolState.CLOSING, PoolState.CLOSED)


def gist(response: Response) -> str:
    """A failed call's error in a line."""
    info = response.error_info
    text = response.error or "" if info is None else f"{info.type}: {info.message}" if info.type else info.message
    return " ".join(text[:500].split())


def queue_timeout(driver: Driver, lease: LeaseRecord, why: Callable[[float], c.Refusal] | None = None) -> QueueTimeout:
    """Give the place in the queue up, or the worker that came too late, and say so. `why`: of a worker that came."""
    now = time.monotonic()
    refusal = driver.core.why_late(lease, now) if why is None else why(now - lease.created_at)
    driver.step(c.Cancel(lease.lease_id, written=False, why="timeout"))
    return QueueTimeout(f"pool {driver.name!r} {refusal.message}")


def tried(max_retries: int, tries_left: int) -> str:
    """What became of an idempotent call, for lost(): how often it was sent."""
    return (
        f"The call was tried {max_retries - tries_left + 1} times and may have run each time; "
        f"max_retries={max_retries} and its deadline allow no more"
    )


def pieces_given(count: int) -> str:
    """Why a stream is not begun again, for lost()."""
    return f"{count} pieces of its stream had come, so it was not sent again; begin it anew where that is safe"


def lost(driver: Driver, worker_id: int, program: Program, fate: str) -> Steps[PoolError | WorkerLost]:
    """The error of a call whose worker died in it. `fate`: what becomes of the call, in a sentence without its stop."""
    report = yield from _report(driver, worker_id)
    if driver.core.state in _OVER:
        return PoolClosed(
            f"pool {driver.name!r} was closed while {program.label} ran in worker {worker_id}; it may have run"
        )
    dump = "\n" + report.stack_dump if report is not None and report.stack_dump else ""
    return WorkerLost(
        f"pool {driver.name!r} lost worker {worker_id} while it ran {program.label}: {describe(report)}. {fate}{dump}",
        report,
    )


def timed_out(driver: Driver, worker_id: int, program: Program, lease: LeaseRecord) -> Steps[PoolError | CallTimeout]:
    """The error of a call whose deadline came while it ran."""
    killed = driver.options.slots == 1 and not lease.cancellable
    report = (yield from _report(driver, worker_id)) if killed else None
    began = lease.created_at if lease.run_since == lease.granted_at else lease.run_since  # a kept lease's later run
    waited_s, ran_s = lease.run_since - began, time.monotonic() - lease.run_since
    advice = "give it more time with timeout_s"
    if waited_s > ran_s:
        advice = "most of that was the wait for a worker: add workers, or bound it with max_waiting or shed_target_s"
    fate = "was killed and is replaced" if killed else "keeps its other calls; this one's slot was given up"
    if lease.cancellable:
        grace_s = driver.options.cancel_grace_s
        fate = f"was told to cancel it, and is replaced where that takes more than cancel_grace_s={grace_s:g}"
    dump = ""
    if killed:
        dump = "\n" + report.stack_dump if report is not None and report.stack_dump else "; there is no stack dump"
    return CallTimeout(
        f"pool {driver.name!r}: {program.label} did not end by its deadline: {waited_s + ran_s:.3f} s after the call, "
        f"{ran_s:.3f} s of them in worker {worker_id}, which {fate}; {advice}{dump}",
        report,
    )


def not_begun(driver: Driver, record: LeaseRecord, program: Program) -> QueueTimeout:
    """The error of a kept lease's run whose deadline came before it was sent."""
    return QueueTimeout(
        f"pool {driver.name!r}: {program.label} was not sent, since its deadline was over before it could be; worker "
        f"{record.worker_id} is untouched, and lease {record.lease_id} goes on; give the run more time with timeout_s"
    )


def lease_over(driver: Driver, record: LeaseRecord) -> PoolError:
    """The error of using a lease that has ended."""
    return PoolError(
        f"pool {driver.name!r}: lease {record.lease_id} of worker {record.worker_id} is over "
        "(closed, past hold_s, or its worker is gone); check out again"
    )


def _report(driver: Driver, worker_id: int) -> Steps[ExitReport | None]:
    if worker_id not in driver.reports:
        yield (REPORT, worker_id, time.monotonic() + REPORT_WAIT_S)
    return driver.reports.get(worker_id)


def describe(report: ExitReport | None) -> str:
    """An exit report in a sentence."""
    if report is None:
        return "how it ended is not known yet"
    how = report.signal or (f"exit code {report.exit_code}" if report.exit_code is not None else "status unknown")
    text = f"{report.reason} ({how}), pid {report.pid}, {report.age_s:.1f} s old, in its call number {report.calls}"
    if report.detail and report.detail not in (how, f"killed by {how}"):
        text += f"; {report.detail}"
    if report.output_tail:
        text += f"; its last output: {report.output_tail[-500:]!r}"
    return text
