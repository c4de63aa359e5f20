"""Which workers of a group have an idle slot, and which hold a program warm.

Rules:
    1. A worker stands here exactly while it is ready and has an idle slot: at the level of its busy slots, the most
       recently used last. Overflow workers stand apart, because sessions take them last.
    2. Who holds a program is kept apart from who is idle: it changes when a program is loaded or forgotten, not with
       each call.

A pick looks at the most recently used worker first. Where that one holds the program, which is the rule once a pool is
warm, it is all that is looked at; else the shorter of two lists is walked, the idle ones or the holders.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from dspool.pool.core.records import Worker

Rank = tuple[bool, int, bool, int]
"""What is taken first: not overflow (for a session), few busy slots, program warm, used last."""
_Level = dict[int, Worker]
_NOBODY: Mapping[int, Worker] = {}


class IdleWorkers:
    """A group's lendable workers.

    Args:
        slots: how many slots each worker has.
    """

    def __init__(self, slots: int) -> None:
        self._ordinary: list[_Level] = [{} for _ in range(slots)]
        self._overflow: list[_Level] = [{} for _ in range(slots)]
        self._holders: dict[str, dict[int, Worker]] = {}
        self._turns = 0

    def __bool__(self) -> bool:
        """Whether any worker has an idle slot."""
        return any(self._ordinary) or any(self._overflow)

    def enter(self, worker: Worker) -> None:
        """It has an idle slot: from now on the most recently used of its level. It stands there already, or nowhere."""
        levels = self._overflow if worker.overflow else self._ordinary
        levels[len(worker.slots) - len(worker.free)][worker.worker_id] = worker
        self._turns = worker.turn = self._turns + 1

    def leave(self, worker: Worker) -> None:
        """Its number of busy slots is about to change, or it is lent no more."""
        if not worker.free:
            return
        levels = self._overflow if worker.overflow else self._ordinary
        levels[len(worker.slots) - len(worker.free)].pop(worker.worker_id, None)

    def lend(self, worker: Worker) -> int:
        """Take one of its idle slots; its number. With what is left of them it stands one level further on."""
        self.leave(worker)
        index = worker.free.pop()
        if worker.free:
            self.enter(worker)
        return index

    def holds(self, worker: Worker, program: str) -> None:
        """The worker holds this program warm from now on."""
        self._holders.setdefault(program, {})[worker.worker_id] = worker

    def forget(self, worker: Worker, program: str) -> None:
        """The worker doesn't hold this program any more."""
        holders = self._holders.get(program)
        if holders is not None and holders.pop(worker.worker_id, None) is not None and not holders:
            del self._holders[program]

    def last_used(self, program: str | None) -> Worker | None:
        """The plain case of pick(): nobody is skipped, nobody is overflow, the worker used last holds the program."""
        if any(self._overflow):
            return None
        for workers in self._ordinary:
            if workers:
                worker = workers[next(reversed(workers))]
                return worker if program in worker.programs or program not in self._holders else None
        return None

    def pick(self, program: str | None, skipped: Container[int], session: bool) -> tuple[Rank, Worker] | None:
        """The best worker outside `skipped`: least busy, then warm, then most recently used."""
        if not self:
            return None
        holders = self._holders.get(program, _NOBODY) if program is not None else _NOBODY
        best: tuple[Rank, Worker] | None = None
        for overflow, levels in ((False, self._ordinary), (True, self._overflow)):
            for level, workers in enumerate(levels):
                worker = _best(workers, holders, skipped) if workers else None
                if worker is not None:
                    rank = (overflow and session, level, worker.worker_id not in holders, -worker.turn)
                    if best is None or rank < best[0]:
                        best = rank, worker
                    break
        return best

    def levels_of(self, worker_id: int) -> list[int]:
        """Where a worker stands; for the invariants."""
        both = (self._ordinary, self._overflow)
        return [busy for levels in both for busy, workers in enumerate(levels) if worker_id in workers]

    def is_holder(self, worker_id: int, program: str) -> bool:
        """Whether the worker is known to hold the program; for the invariants."""
        return worker_id in self._holders.get(program, _NOBODY)


def _best(workers: _Level, holders: Mapping[int, Worker], skipped: Container[int]) -> Worker | None:
    """Of equally busy workers the holder used last, else the one used last."""
    if len(holders) < len(workers):
        idle_holders = [holders[each] for each in holders if each in workers and each not in skipped]
        if idle_holders:
            return max(idle_holders, key=_turn)
    spare: Worker | None = None
    for worker_id in reversed(workers):
        if worker_id in skipped:
            continue
        if not holders or worker_id in holders:
            return workers[worker_id]
        if spare is None:
            spare = workers[worker_id]
            if len(holders) < len(workers):
                break  # no holder is idle
    return spare


def _turn(worker: Worker) -> int:
    return worker.turn
