"""The core's tables as users see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from dspool.pool.core import health
from dspool.pool.core.fleet import OVER
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Worker
from dspool.pool.core.states import WorkerState
from dspool.pool.core.stats import Counters
from dspool.types import (
    AnswerFigures,
    HealthChange,
    HealthStatus,
    PoolHealth,
    PoolStats,
    WorkerInfo,
    WorkerState as SeenState,
)


def seen_state(worker: Worker) -> SeenState:
    """starting, idle (a slot is idle), busy (none is), draining or stopping."""
    if worker.state is WorkerState.READY:
        return "idle" if worker.free else "busy"
    state: Any = worker.state.value
    return cast(SeenState, state)


def worker_info(worker: Worker, now: float, *, pid: int | None, start_method: str) -> WorkerInfo:
    """One row of the table of workers."""
    return WorkerInfo(
        worker_id=worker.worker_id,
        pid=pid,
        group=worker.group.name,
        state=seen_state(worker),
        labels=worker.group.options.labels,
        slots=len(worker.slots),
        busy=worker.busy if worker.state is not WorkerState.STARTING else 0,
        programs=len(worker.programs),
        sessions=len(worker.sessions),
        calls=worker.calls,
        age_s=now - worker.started_at,
        rss_bytes=worker.rss_bytes,
        start_method=start_method,
        due=worker.due,
        last_ping_age_s=_age(worker.pinged_at, now),
        last_ping_s=worker.ping_s,
        overflow=worker.overflow,
    )


def pool_stats(core: PoolCore, name: str, now: float, **more: Any) -> PoolStats:
    """Gauges and counters."""
    outcomes = core.outcomes
    groups = core.groups.values()
    workers = core.workers.values()
    return PoolStats(
        name=name,
        workers=len(workers),
        target=sum(group.size for group in groups),
        starting=sum(group.starting for group in groups),
        idle=_count(workers, lambda worker: seen_state(worker) == "idle"),
        busy=_count(workers, lambda worker: seen_state(worker) == "busy"),
        draining=sum(group.draining for group in groups),
        stopping=_count(workers, lambda worker: worker.state is WorkerState.STOPPING),
        waiting=core.queue.count,
        waiting_bytes=core.queue.size_bytes,
        leased=sum(worker.leased for worker in workers),
        sessions=len(core.sessions),
        paused=core.paused,
        shedding=core.lines is not None and core.lines.shedding,
        breaker=breaker_state(core),
        quarantined=core.quarantine.held(),
        suspects=tuple(core.quarantine.suspects),
        success_rate=outcomes.calls.success_rate,
        consecutive_failures=outcomes.calls.consecutive_failures,
        last_error=outcomes.last_error,
        last_error_age_s=_age(outcomes.last_error_at, now),
        **_copied(core.counters),
        **more,
    )


def pool_health(core: PoolCore, now: float) -> PoolHealth:
    """Ready workers against the target, judged as in `health`, now and since the pool was opened."""
    judgement, history = health.judge(core.groups.values(), lazy=core.options.lazy), core.history
    spent, lately = history.spent(now), history.spent_lately(now)
    return PoolHealth(
        status=judgement.status,
        ready=judgement.ready,
        target=judgement.target,
        breaker=breaker_state(core),
        reason="the pool is closed" if core.state in OVER else history.changes[-1].reason if history.changes else "",
        since_s=0.0 if history.began_at is None else max(0.0, now - history.since),
        time_s=dict(spent),
        availability=_availability(spent),
        availability_1h=_availability(lately),
        changes=tuple(
            HealthChange(
                age_s=max(0.0, now - change.at),
                status=change.status,
                before=change.before,
                ready=change.ready,
                target=change.target,
                reason=change.reason,
            )
            for change in history.changes
        ),
        changes_unsaid=history.unsaid,
        pings=_figures(core.pings, now),
        calls=_figures(core.outcomes.calls, now),
        last_exit=core.counters.last_exit,
    )


def _availability(spent: Mapping[HealthStatus, float]) -> float | None:
    """The share of that time in which some worker was ready, or none was wanted."""
    all_s = sum(spent.values())
    return 1.0 - spent["unhealthy"] / all_s if all_s > 0 else None


def _figures(answers: health.Answers, now: float) -> AnswerFigures:
    return AnswerFigures(
        done=answers.done,
        failed=answers.failures,
        consecutive_failures=answers.consecutive_failures,
        success_rate=answers.success_rate,
        mean_s=answers.mean_s,
        last_age_s=_age(answers.last_at, now),
    )


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)


def breaker_state(core: PoolCore) -> Any:
    """The worst of the groups' breakers."""
    states = {group.breaker.state for group in core.groups.values()}
    return next(state for state in ("open", "half_open", "closed") if state in states)


def _copied(counters: Counters) -> dict[str, Any]:
    """The counters, with nothing in them that goes on counting."""
    fields = msgspec.structs.asdict(counters)
    return {name: dict(value) if isinstance(value, dict) else value for name, value in fields.items()}


def _count(workers: Any, wanted: Callable[[Worker], bool]) -> int:
    return sum(1 for worker in workers if wanted(worker))
