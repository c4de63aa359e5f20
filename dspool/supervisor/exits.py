"""Why a worker ended: what was ordered and how it ended -> its exit report. Pure.

Rules:
    1. An order is believed only if the end fits it: a worker that was ordered to stop and crashed has crashed.
    2. An order that came when the process was dead already explains nothing, unless it ended as the order wanted.
    3. A status nobody knows fits any order that came in time.
    4. A boot failure that is known explains everything that came after it.
    5. A worker that falls over the dump of its stacks, which comes before a kill, was killed: faulthandler reads frames
       of threads that begin and end meanwhile (https://github.com/python/cpython/issues/116008).
"""

from __future__ import annotations

import signal
from typing import Literal

import msgspec

from dspool.protocol.limits import DUMP_SIGNAL, EXIT_BROKEN_FRAME
from dspool.supervisor.boot import BootFailure
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus
from dspool.supervisor.stacks import current_first
from dspool.types import ExitReason, ExitReport

PLANNED: frozenset[ExitReason] = frozenset(
    {"stopped", "resized", "reloaded", "recycle_requests", "recycle_age", "recycle_memory"}
)
"""Orders that want exit code 0, also from a worker that was faster than the order."""

FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""What a process dies of by its own doing."""

TEMPLATE_DIED = "its template died just after it had forked it"
"""Of a worker that was still in its template's process group, which is killed with it: no fault of the start's."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A stop or kill that was asked for. `in_time`: the process was alive then."""

    kind: Literal["stop", "kill"]
    reason: ExitReason
    detail: str
    in_time: bool


class Ending(msgspec.Struct, kw_only=True):
    """What is known of a worker that is gone.

    Attributes:
        was_ready: whether its handshake was answered.
        orders: oldest first.
        signals: what was sent to it.
        failure: why it could not boot.
        out_of_memory: whether the OOM killer may have struck it.
        oom_kills: how often it struck anyone while the worker lived; None where nobody knows.
        missing: what was tried in vain, for the report's detail.
    """

    worker_id: int
    pid: int | None
    start_method: str
    was_ready: bool
    age_s: float
    orders: list[Order] = []
    signals: set[int] = set()
    status: ExitStatus = UNKNOWN_STATUS
    failure: BootFailure | None = None
    out_of_memory: bool = False
    oom_kills: int | None = None
    peak_rss_bytes: int | None = None
    output_tail: str = ""
    stack_dump: str = ""
    missing: str = ""


def signal_name(signum: int) -> str:
    """SIGSEGV, SIGRTMIN+7, or the bare number where it has no name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", None)
        return f"SIGRTMIN+{signum - first}" if first is not None and signum > first else f"signal {signum}"


def describe(status: ExitStatus) -> str:
    """How it ended, in words: "killed by SIGSEGV", "exit code 3"."""
    if not status.known:
        return "its exit status is unknown"
    return f"killed by {signal_name(status.signal)}" if status.signal is not None else f"exit code {status.code}"


def fitting_order(ending: Ending) -> Order | None:
    """The newest order that explains the end, or None."""
    status = ending.status
    for order in reversed(ending.orders):
        if status.code == 0 and (order.kind == "stop" or order.reason in PLANNED):
            return order
        if not order.in_time:
            continue
        # A cut lifeline sends SIGKILL, so that one always counts as sent.
        if not status.known or status.signal in {signal.SIGKILL, *ending.signals} or _fell_over_dump(ending):
            return order
        # While it boots, a worker that finds its lifeline cut exits by itself, with any code.
        if status.code is not None and not ending.was_ready:
            return order
    return None


def _fell_over_dump(ending: Ending) -> bool:
    return DUMP_SIGNAL in ending.signals and ending.status.signal in FAULTS


def explain(ending: Ending) -> tuple[ExitReason, str]:
    """The reason, and what the reason alone doesn't say."""
    if ending.failure is not None:
        return ending.failure.reason, ending.failure.detail
    if order := fitting_order(ending):
        fell = f"; {describe(ending.status)} as its stacks were dumped" if _fell_over_dump(ending) else ""
        return order.reason, order.detail + fell
    status, how = ending.status, describe(ending.status)
    if not ending.was_ready and status.orphaned and status.signal in (None, signal.SIGKILL):
        return "boot_error", TEMPLATE_DIED
    perhaps = ", perhaps out of memory" if ending.out_of_memory else ""
    if not ending.was_ready:
        last = next((line.strip() for line in reversed(ending.output_tail.splitlines()) if line.strip()), "")
        return "boot_error", f"{how} before it was ready{perhaps}{': ' if last else ''}{last}"
    if status.signal is not None:
        return ("oom_suspect" if ending.out_of_memory else "crash"), how + perhaps
    return ("protocol_error" if status.code == EXIT_BROKEN_FRAME else "exited"), how


def build_report(ending: Ending) -> ExitReport:
    """The exit report."""
    reason, detail = explain(ending)
    status = ending.status
    return ExitReport(
        worker_id=ending.worker_id,
        pid=ending.pid,
        reason=reason,
        detail="; ".join(part for part in (detail, ending.missing) if part),
        exit_code=status.code,
        signal=None if status.signal is None else signal_name(status.signal),
        status_known=status.known,
        age_s=ending.age_s,
        peak_rss_bytes=status.peak_rss_bytes or ending.peak_rss_bytes,
        oom_kills=ending.oom_kills,
        output_tail=ending.output_tail,
        stack_dump=current_first(ending.stack_dump or (ending.failure.stack_dump if ending.failure else "")),
        remote_traceback=ending.failure.traceback if ending.failure else "",
        start_method=ending.start_method,
    )
