"""Which workers of a group have an idle slot, found without walking over the others.

Rules:
    1. A worker stands here exactly while it is ready and has an idle slot: at the level of its busy slots, the most
       recently used last. Overflow workers stand apart, because sessions take them last.
    2. For each program there is the same list with only the workers that hold it warm. A worker that leaves its level
       stays in those lists and is dropped when somebody comes across it there: a worker enters far fewer lists than
       there are workers, and leaves each at most once for every time it entered.

So a pick costs the same with 4 workers and with 400; with `skipped`, one step more for each worker in it.
"""

from __future__ import annotations

from collections.abc import Container

from dspool.pool.core.records import Worker

Rank = tuple[bool, int, bool, int]
"""What is taken first: not overflow (for a session), few busy slots, program warm, used last."""
_Level = dict[int, Worker]


class IdleWorkers:
    """A group's lendable workers.

    Args:
        slots: how many slots each worker has.
    """

    def __init__(self, slots: int) -> None:
        self._tiers = (_Tier(slots), _Tier(slots))
        self._turns = 0

    def enter(self, worker: Worker) -> None:
        """It has an idle slot: from now on the most recently used of its level."""
        tier = self._tiers[worker.overflow]
        level, worker_id = worker.busy, worker.worker_id
        workers = tier.levels[level]
        workers.pop(worker_id, None)
        workers[worker_id] = worker
        self._turns += 1
        worker.turn = self._turns
        for program in worker.programs:
            levels = tier.warm.get(program)
            if levels is None:
                levels = tier.warm[program] = [{} for _ in tier.levels]
            holders = levels[level]
            holders.pop(worker_id, None)
            holders[worker_id] = worker

    def leave(self, worker: Worker) -> None:
        """Its number of busy slots is about to change, or it is lent no more."""
        if worker.free:
            self._tiers[worker.overflow].levels[worker.busy].pop(worker.worker_id, None)

    def forget(self, worker: Worker, program: str) -> None:
        """The worker doesn't hold this program any more."""
        for tier in self._tiers:
            levels = tier.warm.get(program)
            if levels is None:
                continue
            for holders in levels:
                holders.pop(worker.worker_id, None)
            if not any(levels):
                del tier.warm[program]

    def pick(self, program: str | None, skipped: Container[int], session: bool) -> tuple[Rank, Worker] | None:
        """The best worker outside `skipped`: least busy, then warm, then most recently used."""
        best: tuple[Rank, Worker] | None = None
        for overflow, tier in enumerate(self._tiers):
            found = tier.pick(program, skipped)
            if found is not None:
                level, cold, worker = found
                rank = (bool(overflow) and session, level, cold, -worker.turn)
                if best is None or rank < best[0]:
                    best = rank, worker
        return best

    def levels_of(self, worker_id: int) -> list[int]:
        """Where a worker stands; for the invariants."""
        return [busy for tier in self._tiers for busy, workers in enumerate(tier.levels) if worker_id in workers]


class _Tier:
    """Ordinary workers, or overflow workers."""

    __slots__ = ("levels", "warm")

    def __init__(self, slots: int) -> None:
        self.levels: list[_Level] = [{} for _ in range(slots)]
        self.warm: dict[str, list[_Level]] = {}

    def pick(self, program: str | None, skipped: Container[int]) -> tuple[int, bool, Worker] | None:
        """(busy slots, whether it lacks the program, worker) of the best one."""
        warm = self.warm.get(program) if program is not None else None
        for level, workers in enumerate(self.levels):
            if not workers:
                continue
            if warm is not None and (holder := _holder(warm[level], workers, skipped)) is not None:
                return level, False, holder
            for worker_id in reversed(workers):
                if worker_id not in skipped:
                    return level, True, workers[worker_id]
        return None


def _holder(holders: _Level, idle: _Level, skipped: Container[int]) -> Worker | None:
    stale: list[int] = []
    found: Worker | None = None
    for worker_id in reversed(holders):
        if worker_id not in idle:
            stale.append(worker_id)
        elif worker_id not in skipped:
            found = holders[worker_id]
            break
    for worker_id in stale:
        del holders[worker_id]
    return found
