"""In which state a fault struck: the closed list of these moves, and which of them apply now.

A fault that struck says little; a worker that died *with an answer in its pipe nobody had read* says something. So each
fault counts as a move, as those of the state tables do, and a run shows which were seen and which were not.

Rules:
    1. What may be seen is listed here. To note a move that is not in the list is an error.
    2. Looking changes nothing, and draws no chance: it may read the core's tables, where the world's layers may not.
"""

from __future__ import annotations

from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease, Worker
from dspool.pool.core.states import LeaseState, PoolState, SlotState, WorkerState
from dspool.testing.simulation.parts import Caller, Pipe, Process
from dspool.testing.simulation.swarm import FAULTS

MOMENTS: dict[str, str] = {
    # a worker ends by itself
    "death": "starting|idle|checking|granted|running|answered|between runs|cancelling|abandoned|due|replacing|tried|"
    "hung|draining|stopping|killed",
    # a worker is stopped where it stands, as by SIGSTOP: it lives, and does nothing any more
    "hang": "starting|idle|running|draining|stopping",
    # a caller gives up
    "cancel": "queued|refused|checking|granted|running|answered|between runs|over",
    # a caller's time, or its lease's, is over
    "deadline": "queued|running|hold",
    "ready": "in time|given up|gone",
    "pong": "lost|of the idle|of the busy|of the draining|of the stopping|of the gone|stale",
    "verdict": "skip|remove|died|too late",
    "resize": "up|down|to nothing|of no group|while draining|while paused|while starting",
    "drain": "idle|waiting|running|paused",
    "close": "idle|waiting|running|paused|draining",
    "jump": "idle|waiting|running|starting|paused",
    "template": "dies alone|dies under workers|dies as it starts|fails|is kept|is renewed|leaves an unknown exit",
}
FAULT_MOVES: frozenset[str] = frozenset(FAULTS) | frozenset(
    f"{what}: {where}" for what, places in MOMENTS.items() for where in places.split("|")
)
"""Every fault, and every state that one may strike in."""


def of_worker(core: PoolCore, process: Process) -> list[str]:
    """What a worker that lives is doing."""
    worker = core.workers[process.worker_id]
    seen = ["hung"] if process.hung else []
    if core.heir is worker:
        seen.append("replacing")
    if worker.group.breaker.trial == worker.worker_id:
        seen.append("tried")
    if worker.state is WorkerState.STOPPING:
        return [*seen, "killed" if worker.killed else "stopping"]
    if worker.state is WorkerState.STARTING:
        return [*seen, "starting"]
    if worker.state is WorkerState.DRAINING:
        seen.append("draining")
    if worker.due is not None:
        seen.append("due")
    return seen + _of_slots(core, worker, process)


def _of_slots(core: PoolCore, worker: Worker, process: Process) -> list[str]:
    if not worker.busy:
        return ["idle"]
    seen = []
    for slot, pipe in zip(worker.slots, process.pipes, strict=True):
        if slot.state is SlotState.LEASED and slot.lease_id is not None:
            seen.append(_of_lease(core.leases[slot.lease_id], pipe))
        elif slot.state in (SlotState.CANCELLING, SlotState.ABANDONED):
            seen.append(slot.state.value)
    return seen


def _of_lease(lease: Lease, pipe: Pipe) -> str:
    if lease.state is LeaseState.CHECKING:
        return "checking"
    if pipe.answer is not None:
        return "answered"
    if pipe.frame is not None:
        return "running"
    return "between runs" if lease.program is not None and not lease.running else "granted"


def of_caller(core: PoolCore, processes: dict[int, Process], caller: Caller) -> str:
    """What a caller is waiting for when it is cancelled, or was waiting for."""
    lease = core.leases.get(caller.lease_id)
    if lease is None:
        return "over"
    if lease.state in (LeaseState.QUEUED, LeaseState.CLOSED):
        return "queued" if lease.state is LeaseState.QUEUED else "refused"
    assert lease.worker_id is not None
    return _of_lease(lease, processes[lease.worker_id].pipes[lease.slot])


def of_pong(core: PoolCore, worker_id: int) -> str:
    """Whom an answered ping reaches."""
    worker = core.workers.get(worker_id)
    if worker is None:
        return "of the gone"
    if not worker.probing:
        return "stale"
    if worker.state is WorkerState.READY:
        return "of the busy" if worker.leased else "of the idle"
    return f"of the {worker.state.value}"


def of_pool(core: PoolCore) -> list[str]:
    """What the pool as a whole is doing."""
    seen = []
    if core.queue.count:
        seen.append("waiting")
    if any(worker.leased for worker in core.workers.values()):
        seen.append("running")
    if any(group.starting for group in core.groups.values()):
        seen.append("starting")
    if core.paused:
        seen.append("paused")
    if core.state is PoolState.DRAINING:
        seen.append("draining")
    return seen or ["idle"]
