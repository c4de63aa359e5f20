"""What must hold after every step. For tests and the simulator; the running pool doesn't pay for it.

    check(core)                    the tables, recounted from their rows and not from the machine's own indexes
    check_queue_bounds(core)       after a Checkout that was queued: how much may wait
    check_effects(core, effects)   what the step ordered, against the tables as it left them

Beside them `wakes` looks at what two steps in a row show: that each caller is woken exactly once.
Each message says which law is broken (design: section "the core"), and by whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from dspool.options import MAX_REMOVALS
from dspool.pool.core import commands as c, health
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Group, Lease, Worker
from dspool.pool.core.states import LeaseState, PoolState, SlotState, WorkerState

_LIVE = (WorkerState.READY, WorkerState.DRAINING)
_LENDABLE = (WorkerState.STARTING, WorkerState.READY)
_HELD = (LeaseState.CHECKING, LeaseState.GRANTED)
_OVER = (PoolState.CLOSING, PoolState.CLOSED)
_DUE = ("reloaded", "recycle_requests", "recycle_age", "recycle_memory")
_LEFT_BEHIND = (SlotState.CANCELLING, SlotState.ABANDONED)


def check(core: PoolCore) -> None:
    """Raise AssertionError, saying which law is broken, by whom."""
    for worker in core.workers.values():
        _check_worker(core, worker)
        _check_slots(core, worker)
    for lease in core.leases.values():
        _check_lease(core, lease)
    for group in core.groups.values():
        _check_group(core, group)
    _check_queue(core)
    _check_order(core)
    _check_lines(core)
    _check_sessions(core)
    _check_bounds(core)
    _check_timers(core)
    _check_health(core)
    if core.state is PoolState.CLOSED:
        assert not core.workers, "a closed pool has workers"


def _check_health(core: PoolCore) -> None:
    history = core.history
    if history.began_at is not None:
        passed_s, spent_s = core.now - history.began_at, sum(history.spent(core.now).values())
        ended = history.ended_at is not None
        assert ended or abs(passed_s - spent_s) < 1e-6 * (1 + passed_s), f"{passed_s:g} s passed, {spent_s:g} s count"
    if core.state in _OVER:
        assert history.ended_at is not None, "a closing pool's clock runs on"
        assert not core.timers.armed("health"), "a closing pool has something to tell of its health"
        return
    status = health.judge(core.groups.values(), lazy=core.options.lazy).status
    assert history.status == status, f"the pool is {status} and its history says {history.status}"
    armed, untold = core.timers.armed("health"), history.told != status
    assert armed == untold, f"the pool is {status}, told to be {history.told}, and will {'' if armed else 'not '}say so"


def _said(row: Worker | Lease) -> str:
    if isinstance(row, Worker):
        return f"worker {row.worker_id} ({row.state.value})"
    return f"lease {row.lease_id} ({row.state.value})"


# --- workers and slots ------------------------------------------------------------------------------------------------


def _check_worker(core: PoolCore, worker: Worker) -> None:
    ready = worker.state is WorkerState.READY
    assert worker.state is not WorkerState.GONE, f"{_said(worker)} is still in the table"
    idle = [slot.state is SlotState.IDLE for slot in worker.slots]
    expected = [len(worker.slots) - sum(idle)] if ready and any(idle) else []
    levels = worker.group.idle.levels_of(worker.worker_id)
    assert levels == expected, f"{_said(worker)}: stands at levels {levels}, not {expected} (law 6)"
    assert worker.last_program == next(reversed(worker.programs), None), f"{_said(worker)} ran another program last"
    for program in worker.programs:
        assert worker.group.idle.is_holder(worker.worker_id, program), (
            f"{_said(worker)}: nobody knows it holds {program}"
        )
    if not ready:
        assert not worker.sessions, f"{_said(worker)} has pinned sessions (law 6)"
        assert not worker.programs, f"{_said(worker)} holds programs for nobody"
    if ready:
        listed = worker.worker_id in worker.group.due
        assert listed == (worker.due is not None), f"{_said(worker)}: due {worker.due}, listed {listed}"
    if worker.state is WorkerState.DRAINING:
        assert any(slot.state is SlotState.LEASED for slot in worker.slots), (
            f"{_said(worker)} has no call and is not stopped"
        )
    if worker.state in (WorkerState.DRAINING, WorkerState.STOPPING):
        assert worker.reason is not None or worker.killed, f"{_said(worker)} ends for no reason"


def _check_slots(core: PoolCore, worker: Worker) -> None:
    if worker.state in _LIVE:
        idle = [index for index, slot in enumerate(worker.slots) if slot.state is SlotState.IDLE]
        assert sorted(worker.free) == idle, f"{_said(worker)}: free {worker.free}, idle {idle}"
    for index, slot in enumerate(worker.slots):
        lease = core.leases.get(slot.lease_id) if slot.lease_id is not None else None
        if slot.state is SlotState.LEASED:
            assert lease is not None, f"{_said(worker)}: slot {index} is leased to nobody (law 1)"
            assert lease.state in _HELD, (
                f"{_said(worker)}: slot {index} is leased to a {lease.state.value} lease (law 1)"
            )
            assert (lease.worker_id, lease.slot) == (worker.worker_id, index), (
                f"{_said(worker)}: slot {index} is leased twice"
            )
        elif slot.state in _LEFT_BEHIND:
            assert lease is None, f"{_said(worker)}: the call left behind in slot {index} still has its lease (law 2)"
            kind: Literal["cancel", "abandon"] = "cancel" if slot.state is SlotState.CANCELLING else "abandon"
            armed = core.timers.armed(kind, worker.worker_id, slot.lease_id or 0)
            assert armed or worker.state is not WorkerState.READY, (
                f"{_said(worker)}: slot {index} is left behind for ever (law 7)"
            )
        else:
            assert slot.lease_id is None, f"{_said(worker)}: {slot.state.value} slot {index} has a lease"


def _check_group(core: PoolCore, group: Group) -> None:
    counts = Counter(worker.state.value for worker in core.workers.values() if worker.group is group and worker.counted)
    for state in ("starting", "ready", "draining", "stopping"):
        kept, seen = getattr(group, state), counts[state]
        assert kept == seen, f"group {group.name}: counts {kept} {state}, has {seen}"
    for worker_id in group.due:
        due = core.workers.get(worker_id)
        assert due is not None, f"group {group.name}: worker {worker_id} is due and gone"
        assert due.state is WorkerState.READY, f"worker {worker_id} is due and {due.state.value} (law 6)"
    breaker, trial = group.breaker, group.breaker.trial
    if breaker.state == "open":
        assert core.timers.armed("breaker", group.number), f"group {group.name}: its breaker is open for ever"
    elif breaker.not_before > core.now:
        assert core.timers.armed("backoff", group.number), f"group {group.name}: it backs off for ever"
    if trial is not None:
        assert breaker.state == "half_open", f"group {group.name}: a trial of a {breaker.state} breaker"
        tried = core.workers.get(trial)
        assert tried is not None, f"group {group.name}: its breaker waits for worker {trial}, which is gone"
        assert tried.counted, f"group {group.name}: its breaker waits for worker {trial}, which won't end"
    ordinary = sum(
        worker.group is group and not worker.overflow and worker.state in _LENDABLE for worker in core.workers.values()
    )
    wanted = group.size + (core.heir is not None and core.heir.group is group)
    assert ordinary <= wanted, f"group {group.name}: {ordinary} workers beside overflow, {wanted} are wanted"


# --- leases and the queue ---------------------------------------------------------------------------------------------


def _check_lease(core: PoolCore, lease: Lease) -> None:
    queued = lease.wait_key is not None
    assert queued == (lease.state is LeaseState.QUEUED), f"{_said(lease)}: in the queue: {queued}"
    if lease.state in _HELD:
        worker = core.workers.get(lease.worker_id) if lease.worker_id is not None else None
        if worker is not None:
            slot = worker.slots[lease.slot]
            assert slot.state is SlotState.LEASED, f"{_said(lease)}: its slot is {slot.state.value} (law 1)"
            assert slot.lease_id == lease.lease_id, f"{_said(lease)}: its slot belongs to lease {slot.lease_id} (law 1)"
        assert lease.worker_id not in lease.skipped, f"{_said(lease)} holds a worker that skipped it"
        assert lease.worker_id not in lease.removed, f"{_said(lease)} holds a worker that it removed"
        armed = core.timers.armed("hold", lease.lease_id)
        held = lease.state is LeaseState.GRANTED and lease.hold_s != c.INFINITY
        assert armed == held, f"{_said(lease)}: its hold_s is watched: {armed} (law 7)"
        armed = core.timers.armed("check", lease.lease_id)
        checked = lease.state is LeaseState.CHECKING and lease.granted_at < lease.deadline < c.INFINITY
        assert armed == checked, f"{_said(lease)}: its deadline is watched while it is looked at: {armed} (law 7)"
    if lease.state is LeaseState.CLOSED:
        assert lease.refusal is not None, f"{_said(lease)} is closed and kept for nothing"
    assert len(lease.removed) <= MAX_REMOVALS, f"{_said(lease)} cost {len(lease.removed)} workers (law 7)"


def _waiters(core: PoolCore) -> list[Lease]:
    return [lease for lease in core.leases.values() if lease.state is LeaseState.QUEUED]


def _check_queue(core: PoolCore) -> None:
    waiters = _waiters(core)
    ids = sorted(lease.lease_id for lease in core.queue.everybody())
    assert ids == sorted(lease.lease_id for lease in waiters), f"{ids} stand in the queue"
    assert core.queue.count == len(waiters), f"{len(waiters)} wait, {core.queue.count} are counted"
    assert sum(lease.size_bytes for lease in waiters) == core.queue.size_bytes, "waiting bytes are miscounted"
    assert not waiters or core.state not in _OVER, "a closing pool has waiters"


def check_queue_bounds(core: PoolCore) -> None:
    """Law 7, after a Checkout that was queued.

    Beside max_waiting stand those a start is made for, and those who were let in before.
    """
    options, waiters = core.options, _waiters(core)
    back = [lease for lease in waiters if lease.removed or lease.skipped or lease.call_id != lease.lease_id]
    room = sum(group.size + group.overflow for group in core.groups.values()) * options.slots
    assert len(waiters) <= options.max_waiting + room + len(back), f"{len(waiters)} wait (law 7)"
    size_bytes = core.queue.size_bytes - sum(lease.size_bytes for lease in back)
    assert size_bytes <= options.max_waiting_bytes, f"{size_bytes} bytes wait (law 7)"


def _may_use(core: PoolCore, lease: Lease, worker: Worker) -> bool:
    """Whether a waiter may be lent this worker now: the rules in their plainest form."""
    if worker.worker_id in lease.skipped or not lease.require <= worker.group.options.labels:
        return False
    session = core.sessions.table[lease.session] if lease.session is not None else None
    if session is None or session.worker_id is None or lease.spilled:
        return True
    return session.worker_id == worker.worker_id


def _check_order(core: PoolCore) -> None:
    """Law 3: no slot is idle while a waiter could use it; what a waiter waits for may still come."""
    waiters = _waiters(core)
    ready = [worker for worker in core.workers.values() if worker.state is WorkerState.READY]
    idle = [worker for worker in ready if any(slot.state is SlotState.IDLE for slot in worker.slots)]
    for lease in waiters:
        if not core.paused:
            useful = [worker.worker_id for worker in idle if _may_use(core, lease, worker)]
            assert not useful, f"lease {lease.lease_id} waits though worker {useful[0]} is idle (law 3)"
        if not lease.skipped:
            continue
        fitting = [group for group in core.groups.values() if lease.require <= group.options.labels]
        left = [
            worker
            for worker in core.workers.values()
            if worker.state in _LENDABLE and worker.group in fitting and worker.worker_id not in lease.skipped
        ]
        hope = left or any(_may_grow(core, group) for group in fitting)
        assert hope, f"lease {lease.lease_id} was skipped by all that there is, and still waits"


def _check_lines(core: PoolCore) -> None:
    """Shedding: a line holds newcomers that wait, oldest first, and is looked at for as long as it does."""
    lines = [] if core.lines is None else list(core.lines.table.values())
    standing = {lease_id: line for line in lines for lease_id in line.waiters}
    for lease in core.leases.values():
        line = standing.pop(lease.lease_id, None)
        assert lease.line is line, f"{_said(lease)}: stands in another line than it knows"
        if line is not None:
            assert lease.state is LeaseState.QUEUED, f"{_said(lease)}: stands in a line and doesn't wait"
            before = {*lease.skipped, *lease.removed}
            assert not before, f"{_said(lease)}: stands in a line, and was granted workers {before} before"
    assert not standing, f"leases {sorted(standing)} stand in a line and are gone"
    for line in lines:
        arrivals = [lease.created_at for lease in line.waiters.values()]
        assert arrivals == sorted(arrivals), f"line {line.key}: {arrivals} is not the order in which they came"
        assert line.waiters or not line.shedding, f"line {line.key}: it is shed, and nobody waits"
        assert core.timers.armed("shed", line.number), f"line {line.key}: nobody looks at it (law 7)"


def _may_grow(core: PoolCore, group: Group) -> bool:
    lendable = sum(worker.group is group and worker.state in _LENDABLE for worker in core.workers.values())
    return group.breaker.state != "open" and lendable < group.size + group.overflow


# --- sessions, bounds, timers -----------------------------------------------------------------------------------------


def _check_sessions(core: PoolCore) -> None:
    running: dict[str, int] = {}
    queued: set[tuple[str, int]] = set()
    for lease in core.leases.values():
        if lease.session is not None and lease.state in _HELD:
            running[lease.session] = running.get(lease.session, 0) + 1
        elif lease.session is not None and lease.state is LeaseState.QUEUED:
            queued.add((lease.session, lease.lease_id))
    listed: set[tuple[str, int]] = set()
    for name, session in core.sessions.table.items():
        if session.worker_id is not None:
            worker = core.workers.get(session.worker_id)
            assert worker is not None, f"session {name} is pinned to worker {session.worker_id}, which is gone"
            assert worker.state is WorkerState.READY, f"session {name} is pinned to a {worker.state.value} worker"
            assert name in worker.sessions, f"worker {worker.worker_id} doesn't know session {name}"
        seen = running.get(name, 0)
        assert session.running == seen, f"session {name}: {session.running} running, not {seen}"
        assert (name in core.sessions.idle) != session.in_use, f"session {name}: in use {session.in_use}"
        listed.update((name, lease_id) for lease_id in session.queued)
        for lease_id in session.queued:
            key = core.leases[lease_id].wait_key
            assert key is not None
            pinned = None if core.leases[lease_id].spilled else session.worker_id
            assert key[0] == pinned, f"session {name} is split: lease {lease_id} waits for {key[0]}, not {pinned}"
    assert listed == queued, f"sessions' waiters are {sorted(queued)}, not {sorted(listed)}"
    for worker in core.workers.values():
        for name in worker.sessions:
            assert core.sessions.table[name].worker_id == worker.worker_id, f"session {name} is pinned twice"


def _check_bounds(core: PoolCore) -> None:
    options = core.options
    in_use = sum(session.in_use for session in core.sessions.table.values())
    assert len(core.sessions) <= max(options.max_sessions, in_use), f"{len(core.sessions)} sessions are known (law 7)"
    for worker in core.workers.values():
        assert len(worker.programs) <= options.max_programs, (
            f"worker {worker.worker_id} holds too many programs (law 7)"
        )
    starting = sum(worker.state is WorkerState.STARTING for worker in core.workers.values())
    assert options.start_concurrency is not None
    assert starting <= options.start_concurrency, f"{starting} workers are starting (law 4)"
    heirs = [worker for worker in core.workers.values() if worker.replaces is not None]
    assert heirs == ([] if core.heir is None else [core.heir]), f"replacements: {heirs}, known is {core.heir}"
    for heir in heirs:
        assert heir.replaces is not None
        old = core.workers.get(heir.replaces)
        assert heir.state is WorkerState.STARTING, f"the {heir.state.value} worker {heir.worker_id} replaces another"
        assert old is not None, f"worker {heir.worker_id} replaces worker {heir.replaces}, which is gone"
        assert old.state is WorkerState.READY, f"worker {old.worker_id} is being replaced and {old.state.value} (law 6)"
        assert old.due is not None, f"worker {old.worker_id} is being replaced for nothing"


def _check_timers(core: PoolCore) -> None:
    for worker in core.workers.values():
        if worker.state is WorkerState.STARTING:
            assert core.timers.armed("start", worker.worker_id), f"{_said(worker)} may start for ever (law 7)"
        if worker.state is WorkerState.STOPPING and worker.counted:
            assert core.timers.armed("stop", worker.worker_id), f"{_said(worker)} may stop for ever (law 7)"
        if worker.state is WorkerState.READY and core.options.ping_interval_s is not None:
            assert core.timers.armed("ping", worker.worker_id), f"{_said(worker)} is never pinged"
    for lease in _waiters(core):
        if lease.affinity == "hint" and lease.wait_key is not None and lease.wait_key[0] is not None:
            armed = core.timers.armed("hint", lease.lease_id)
            assert armed or core.paused, f"lease {lease.lease_id} waits for one worker for ever"
    if core.state is PoolState.CLOSING:
        ends = core.close_deadline == c.INFINITY or core.timers.armed("close")
        spared = [worker.worker_id for worker in core.workers.values() if not worker.killed]
        assert ends or not spared, f"a pool past its close deadline spares workers {spared}"


# --- effects ----------------------------------------------------------------------------------------------------------


def check_effects(core: PoolCore, effects: Iterable[c.Effect]) -> None:
    """Raise AssertionError where an order doesn't fit the tables that the step left."""
    effects = list(effects)
    if not effects:
        return
    woken = Counter(effect.lease_id for effect in effects if isinstance(effect, (c.Grant, c.Reject)))
    for lease_id, times in woken.items():
        assert times == 1, f"lease {lease_id} was woken {times} times in one step"
    _check_retirements(core, effects)
    killed = {effect.worker_id for effect in effects if isinstance(effect, c.Kill)}
    for effect in effects:
        if isinstance(effect, c.Grant):
            lease = core.leases.get(effect.lease_id)
            assert lease is not None, f"lease {effect.lease_id} is granted and gone"
            assert lease.state in _HELD, f"lease {effect.lease_id} is granted and {lease.state.value}"
            assert lease.worker_id is not None
            worker = core.workers[lease.worker_id]
            assert worker.state in _LIVE, f"lease {effect.lease_id} got a {worker.state.value} worker (law 6)"
            assert not core.paused, f"lease {effect.lease_id} was granted by a paused pool"
            late = c.AT_ONCE < lease.deadline < lease.granted_at
            assert not late, f"lease {effect.lease_id} was granted past its deadline (law 3)"
        elif isinstance(effect, c.Reject):
            lease = core.leases.get(effect.lease_id)
            assert lease is not None, f"lease {effect.lease_id} is refused and gone: nobody can read why"
            assert lease.state is LeaseState.CLOSED, f"lease {effect.lease_id} is refused and {lease.state.value}"
            _check_shed(core, lease)
        elif not isinstance(effect, c.Report):
            _check_order_for_worker(core, effect, killed)


def _check_shed(core: PoolCore, lease: Lease) -> None:
    """Who was let into the queue is shed only in a pool that sheds, after twice the target, and as a newcomer."""
    waited_s, target_s = core.now - lease.created_at, core.options.shed_target_s
    if lease.refusal is None or lease.refusal.code != "PoolSaturated" or waited_s == 0.0:
        return
    assert target_s is not None, (
        f"{_said(lease)} waited {waited_s:g} s, and was refused for a queue that was full before"
    )
    assert waited_s > 2 * target_s, f"{_said(lease)} was shed after {waited_s:g} s"
    before = {*lease.skipped, *lease.removed}
    assert not before, f"{_said(lease)} was shed, and had been granted workers {before}"


def _check_retirements(core: PoolCore, effects: list[c.Effect]) -> None:
    """Law 6: a due worker drains from the step of its replacement's WorkerReady; an overflow worker has none."""
    reports = [effect for effect in effects if isinstance(effect, c.Report)]
    replaced = any(report.event == "worker.ready" for report in reports)
    for report in reports:
        if report.event == "worker.draining" and report.fields["reason"] in _DUE:
            worker = core.workers[report.fields["worker_id"]]
            assert replaced or worker.overflow, f"{_said(worker)} was due and left before its replacement came (law 6)"


def _check_order_for_worker(core: PoolCore, effect: c.Effect, killed: set[int]) -> None:
    if isinstance(effect, c.Spawn):
        group = core.groups[effect.group]
        assert core.state not in _OVER, "a closing pool starts a worker"
        assert core.workers[effect.worker_id].state is WorkerState.STARTING, f"{effect}: it is not starting"
        present = sum(worker.group is group and worker.counted for worker in core.workers.values())
        heir = core.heir is not None and core.heir.group is group
        limit = group.size + group.overflow + heir
        assert present <= limit, f"{effect}: {present} workers are present, {limit} are allowed (law 4)"
        assert group.breaker.state != "open", f"{effect}: the breaker is open"
        tried = group.breaker.trial == effect.worker_id
        assert tried or group.breaker.state == "closed", f"{effect}: the half-open breaker tries another one"
    elif isinstance(effect, c.Stop):
        worker = core.workers[effect.worker_id]
        assert worker.state is WorkerState.STOPPING, f"{effect}: it is {worker.state.value} (law 6)"
        busy = [slot.state.value for slot in worker.slots if slot.state is not SlotState.IDLE]
        assert not busy, f"{effect}: it has {busy} slots"
    elif isinstance(effect, c.Kill):
        doomed = core.workers.get(effect.worker_id)
        assert doomed is None or doomed.state is WorkerState.STOPPING, f"{effect}: it is not stopping (law 6)"
    elif isinstance(effect, c.Probe):
        probed = core.workers[effect.worker_id]  # it may be retired later in the same step
        assert probed.ready_at is not None, f"{effect}: it is {probed.state.value}"
    elif isinstance(effect, (c.Abandon, c.CancelCall)) and effect.worker_id not in killed:
        slot = core.workers[effect.worker_id].slots[effect.slot]
        assert slot.state in _LEFT_BEHIND, f"{effect}: the slot is {slot.state.value}"
        assert slot.lease_id == effect.lease_id, f"{effect}: the slot belongs to lease {slot.lease_id}"
