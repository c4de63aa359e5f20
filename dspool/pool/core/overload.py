"""Shedding in the core: who stands in which line, what is seen there, and who is refused. `shedding` has the rules.

A layer between upkeep, whose workers tell whether a line can be judged, and dispatch, whose queue the waiters stand in.
Without `shed_target_s` there are no lines, and nothing here is done.
"""

from __future__ import annotations

from abc import abstractmethod

from dspool.options import PoolOptions
from dspool.pool.core import commands as c, refusals
from dspool.pool.core.records import Lease
from dspool.pool.core.shedding import Line, Lines
from dspool.pool.core.states import PoolState
from dspool.pool.core.upkeep import Upkeep


class Overload(Upkeep):
    """Lines of waiters, where the pool sheds."""

    def __init__(self, options: PoolOptions, seed: float = 0.0) -> None:
        super().__init__(options, seed)
        target_s = options.shed_target_s
        self.lines = None if target_s is None else Lines(target_s, options.shed_interval_s)

    @abstractmethod
    def _refuse(self, lease: Lease, refusal: c.Refusal) -> None:
        """End a lease that holds no slot."""

    def _line_up(self, lease: Lease) -> None:
        """A newcomer waits."""
        if self.lines is None:
            return
        line = lease.line = self.lines.line((self._fitting(lease.require), lease.priority), self._now)
        line.join(lease, self._now)
        if not self.timers.armed("shed", line.number):
            self.timers.arm(line.look_again_at(self._now), "shed", line.number)

    def _leave_line(self, lease: Lease) -> None:
        """It waits no more. A line that nobody waits in is no overload."""
        line, lease.line = lease.line, None
        if line is not None:
            line.leave(lease)
            if line.shedding and not line.waiters:
                self._end_shedding(line)

    def _saw_wait(self, lease: Lease, waited_s: float) -> None:
        """A slot was granted, at once or after a wait in a line. Who went before others shows nothing by his wait."""
        assert self.lines is not None
        line = lease.line
        if line is None:
            line = self.lines.table.get((self._fitting(lease.require), lease.priority))
            if line is None or waited_s:
                return
        if line.served(waited_s, self._now) and line.shedding:
            self._end_shedding(line)
        self._leave_line(lease)

    def _shed_if_too_old(self, lease: Lease) -> bool:
        """Whether a waiter had to go instead of being served."""
        line = lease.line
        if line is None or not line.shedding or not line.too_old(lease, self._now):
            return False
        self._shed(lease, line)
        return True

    def _shed(self, lease: Lease, line: Line) -> None:
        waited_s = self._now - lease.created_at
        ready = sum(self.groups[name].ready for name in line.key[0])
        line.shed += 1
        self.counters.shed += 1
        self._refuse(lease, refusals.overloaded(waited_s, self.queue.count, ready, self.options))

    # --- looking at a line ----------------------------------------------------------------------------------------

    def _look_at_line(self, number: int) -> None:
        """Its timer is due."""
        assert self.lines is not None
        line = self.lines.by_number[number]
        if line.waiters:
            self._judge(line)
            while line.shedding and (lease := line.expired(self._now)) is not None:
                self._shed(lease, line)
        if line.waiters:
            self.timers.arm(line.look_again_at(self._now), "shed", number)
        else:
            self.lines.forget(line)

    def _judge(self, line: Line) -> None:
        groups = [self.groups[name] for name in line.key[0]]
        able = self.state is PoolState.OPEN and not self.paused and any(group.ready for group in groups)
        if not able or any(group.idle for group in groups):  # who came now would not wait
            self._begin_anew(line)
        elif not line.shedding and line.over_from + line.interval_s <= self._now:
            line.shedding, line.shed = True, 0
            self._report("pool.shedding_began", **self._about(line), waiting=len(line.waiters))

    def _begin_anew(self, line: Line) -> None:
        line.restart(self._now)
        if line.shedding:
            self._end_shedding(line)

    def _end_shedding(self, line: Line) -> None:
        line.shedding = False
        self._report("pool.shedding_ended", **self._about(line), shed=line.shed)

    def _about(self, line: Line) -> dict[str, object]:
        groups, priority = line.key
        return {"groups": groups, "priority": priority, "target_s": line.target_s}

    def _lines_begin_anew(self) -> None:
        """What was waited for until now says nothing: the pool was paused, or had no worker."""
        if self.lines is not None:
            for line in self.lines.table.values():
                self._begin_anew(line)
