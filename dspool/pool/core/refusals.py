"""Why a lease is refused: what happened, with the numbers, and what to do now. The pool's name is put before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dspool.options import PoolOptions
from dspool.pool.core.commands import Refusal
from dspool.pool.core.records import Group, Lease

_DIGEST_CHARS = 32
_LEAVING = ("draining", "stopping")


def closed(state: str) -> Refusal:
    """The pool takes nothing new."""
    return Refusal("PoolClosed", f"is {state} and takes no new calls; open a new pool")


def closed_while_waiting() -> Refusal:
    """The pool was closed before a worker came free."""
    return Refusal("PoolClosed", "was closed while the call waited; it was not run")


def no_such_labels(require: frozenset[str], groups: Mapping[str, Group]) -> Refusal:
    """`require=` asks for what no group has."""
    have = {name: sorted(group.options.labels) for name, group in groups.items()}
    message = f"has no worker group with the labels {sorted(require)}; its groups have {have}"
    return Refusal("CheckoutSkipped", message)


def late(
    waited_s: float, waiting: int, groups: Collection[Group], oldest: Lease | None, now: float, *, paused: bool
) -> Refusal:
    """The deadline came first. `oldest`: the lease that holds its slot for longest, which may be what is wrong."""
    counts = {state: sum(getattr(group, state) for group in groups) for state in ("ready", "starting", *_LEAVING)}
    workers = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state not in _LEAVING)
    if paused:
        advice = "the pool is paused: call resume()"
    elif resize := _resize(groups):
        advice = resize
    elif counts["starting"] and not counts["ready"]:
        advice = "they were still starting: allow more time with timeout_s or queue_timeout_s, or wait_ready() first"
    else:
        advice = "add workers, or allow more time with timeout_s or queue_timeout_s"
    if oldest is not None:
        what = _name(oldest.program) if oldest.running and oldest.program else "a lease that runs nothing"
        workers += f"; longest held: worker {oldest.worker_id} for {now - oldest.granted_at:.3f} s, by {what}"
    message = f"had no worker free within {waited_s:.3f} s; calls that wait: {waiting}; workers: {workers}; {advice}"
    return Refusal("QueueTimeout", message)


def granted_late(waited_s: float) -> Refusal:
    """The deadline came as the worker did."""
    message = (
        f"had a worker for this call only when its deadline was over, {waited_s:.3f} s after the call; it was not "
        "sent; add workers, or allow more time with timeout_s"
    )
    return Refusal("QueueTimeout", message)


def hook_late(worker_id: int | None, waited_s: float) -> Refusal:
    """The deadline came first, since the user's hook took its time."""
    message = (
        f"had worker {worker_id} for this call, but the check hook still looked at it at the call's deadline: "
        f"{waited_s:.3f} s have passed, and the call was not sent; make the hook quicker, or allow more time with "
        "timeout_s or queue_timeout_s"
    )
    return Refusal("QueueTimeout", message)


def saturated(waiting: int, waiting_bytes: int, groups: Collection[Group], options: PoolOptions) -> Refusal:
    """The queue is full."""
    workers = sum(group.present for group in groups)
    advice = _resize(groups) or "try again later, or add workers"
    message = (
        f"has a full queue: {waiting} calls with {waiting_bytes:,} bytes wait "
        f"(max_waiting={options.max_waiting}, max_waiting_bytes={options.max_waiting_bytes:,}) "
        f"for {workers} workers; {advice}"
    )
    return Refusal("PoolSaturated", message)


def overloaded(waited_s: float, waiting: int, ready: int, options: PoolOptions) -> Refusal:
    """The queue only stands, and the call has stood there long enough."""
    message = (
        f"is overloaded: for {options.shed_interval_s:g} s or longer nobody got a worker within "
        f"shed_target_s={options.shed_target_s:g}; this call has waited {waited_s:.3f} s, more than twice that, and is "
        f"not run; calls that wait: {waiting}; ready workers: {ready}; try again later, or add workers"
    )
    return Refusal("PoolSaturated", message)


def too_many_removed(lease: Lease) -> Refusal:
    """One call cost too many workers."""
    removed = dict(lease.removed)
    message = (
        f"removed {len(removed)} workers for this one call, which is the limit: {_said(removed)}; it was not run. They "
        "are replaced: try again, or mend what the reasons name"
    )
    return Refusal("CheckoutSkipped", message, reasons=removed, retryable=lease.all_found_dead)


def skipped_by_all(skipped: Mapping[int, str]) -> Refusal:
    """Every worker was asked and none suits."""
    message = f"has no worker that suits this call; {len(skipped)} were asked: {_said(skipped)}"
    return Refusal("CheckoutSkipped", message, reasons=dict(skipped))


def pin_unfit(lease: Lease, worker_id: int) -> Refusal:
    """A strict session's worker doesn't suit."""
    reason = lease.skipped.get(worker_id, f"lacks the labels {sorted(lease.require)}")
    message = f"pinned session {lease.session!r} to worker {worker_id}, which doesn't suit this call: {reason}"
    return Refusal("CheckoutSkipped", message, reasons={**lease.skipped, worker_id: reason})


def session_busy(session: str | None, worker_id: int) -> Refusal:
    """A fail-fast session's worker has no idle slot."""
    message = (
        f"pinned session {session!r} to worker {worker_id}, which is busy; try again, or wait with affinity='strict'"
    )
    return Refusal("SessionBusy", message)


def session_lost(session: str | None) -> Refusal:
    """The session's worker left and the caller wants to know."""
    message = (
        f"lost the worker of session {session!r}, and with it what the session kept there; the next call starts afresh"
    )
    return Refusal("SessionLost", message)


def quarantined(program: str | None, wait_s: float, ends: Sequence[str], options: PoolOptions) -> Refusal:
    """The program keeps killing workers. `ends`: how the last of them ended."""
    message = (
        f"holds program {program} in quarantine: {options.quarantine_after} calls of it in a row ended their "
        f"worker (the last that ended: {'; '.join(ends)}); mend the program, then release({program!r}), or wait: it is "
        f"tried again in {wait_s:.1f} s"
    )
    return Refusal("ProgramQuarantined", message, retry_after_s=wait_s)


def broken(groups: Sequence[Group], options: PoolOptions) -> Refusal:
    """No worker is left and none may be started."""
    reports = tuple(report for group in groups for report in group.breaker.reports)
    last = f"; the last one: {reports[-1].reason} {reports[-1].detail}".rstrip() if reports else ""
    names = ", ".join(sorted(group.name for group in groups))
    message = (
        f"has no worker left in group {names}, and starts are stopped after more than {options.max_restarts} failures "
        f"within {options.restart_window_s:g} s{last}; mend the cause, then reload(), or wait: one worker is tried "
        f"every {max(group.breaker.cooldown_s for group in groups):g} s"
    )
    return Refusal("PoolBroken", message, reports=reports)


def _name(program: str) -> str:
    """A program's id as people know it: without digest or number, nor the kind before a path."""
    kind, _, path = program.partition(":")
    name = (path if kind in ("callable", "import") else program).partition("#")[0]
    before, _, digest = name.rpartition("-")
    return before if len(digest) == _DIGEST_CHARS and before else name


def _resize(groups: Collection[Group]) -> str:
    """What to do where there are to be no workers at all; empty where there are to be some."""
    if any(group.size + group.overflow for group in groups):
        return ""
    names = ", ".join(sorted(group.name for group in groups))
    return f"the size of group {names} is 0: call resize() to have workers started"


def _said(reasons: Mapping[int, str]) -> str:
    return "; ".join(f"worker {worker_id}: {reason}" for worker_id, reason in reasons.items())
