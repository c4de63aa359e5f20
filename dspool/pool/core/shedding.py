"""Overload: when a queue only stands, its oldest waiters are refused, so that those who are served are served in time.

A queue that a burst leaves behind empties by itself, and refusing anybody would waste what could have been done. A
queue that stands does nobody any good: the pool is as busy as it can be, and everybody's call comes late. The two
differ in the *shortest* wait. So the calls of one line (the same groups may serve them, with the same priority: one
first-come, first-served queue) are judged by the waits that are seen there:

    good      somebody was granted a slot within `target_s`, or a slot is idle, or nobody waits
    over      nobody was: each grant came later than that, or there was none and the oldest has waited longer
    shedding  it was over for a whole `interval_s`, until the next good wait: who has waited more than twice `target_s`
              is refused, when he is about to be granted a slot, or else by a timer

Rules:
    1. Only those who came to the queue as newcomers are shed. A call that was granted a slot before, and came back from
       a verdict or as a retry, was accepted.
    2. A line is judged only while it can be: not while the pool is paused or draining, nor while no worker that might
       serve it is ready. Then it begins anew.
    3. A line lives while somebody waits in it, or its timer is armed, so lines are bounded by waiters.
    4. Deadlines, the queue's bounds and the order of grants are not touched: shedding only takes waiters away.

Source: CoDel (Nichols and Jacobson, "Controlling Queue Delay", 2012), for the shortest wait over an interval; the form
for requests, with its twice the target, is Maurer's ("Fail at Scale", 2015). Unlike there, time is judged by timers too
and not only as somebody is served: a queue that nobody serves is shed all the same. One line for each priority is ours,
because the few who go first would hide that all others only stand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from dspool.pool.core.commands import INFINITY
from dspool.pool.core.records import Lease

LOOKS_PER_TARGET = 10
"""While it sheds, a line is looked at so often: who has to go is refused at most a tenth of the target late."""

LineKey = tuple[tuple[str, ...], int]
"""The groups that may serve, and the priority."""


@dataclass(eq=False, slots=True)
class Line:
    """Waiters that are served first come, first served.

    Attributes:
        number: its timer's key.
        waiters: oldest first.
        began_at: before this no wait is judged: the line was empty, or somebody was served in time.
        over_since: since when only waits over the target were seen at grants; infinity: none was.
        shedding: it is shed.
        shed: how many were, this time.
    """

    key: LineKey
    number: int
    target_s: float
    interval_s: float
    began_at: float
    waiters: OrderedDict[int, Lease] = field(default_factory=OrderedDict)
    over_since: float = INFINITY
    shedding: bool = False
    shed: int = 0

    def join(self, lease: Lease, now: float) -> None:
        """A newcomer waits."""
        if not self.waiters:
            self.restart(now)
        self.waiters[lease.lease_id] = lease

    def leave(self, lease: Lease) -> None:
        """It waits no more, whatever the reason."""
        self.waiters.pop(lease.lease_id, None)

    def restart(self, now: float) -> None:
        """Nothing is known against it before now."""
        self.began_at, self.over_since = now, INFINITY

    def served(self, waited_s: float, now: float) -> bool:
        """Somebody was granted a slot. Returns whether that was in time."""
        if waited_s <= self.target_s:
            self.restart(now)
            return True
        self.over_since = min(self.over_since, max(self.began_at, now - waited_s + self.target_s))
        return False

    def too_old(self, lease: Lease, now: float) -> bool:
        """Whether it has waited more than twice the target."""
        return now - lease.created_at > 2 * self.target_s

    def expired(self, now: float) -> Lease | None:
        """The oldest waiter, if it has waited too long."""
        oldest = self.oldest
        return oldest if oldest is not None and self.too_old(oldest, now) else None

    @property
    def oldest(self) -> Lease | None:
        """Who has waited longest."""
        return next(iter(self.waiters.values()), None)

    @property
    def over_from(self) -> float:
        """Since when it is over the target, or from when it will be if nobody is served. It has waiters."""
        oldest = self.oldest
        assert oldest is not None
        return min(self.over_since, max(self.began_at, oldest.created_at + self.target_s))

    def look_again_at(self, now: float) -> float:
        """When it should be looked at next. It has waiters."""
        if not self.shedding:
            return self.over_from + self.interval_s
        oldest = self.oldest
        assert oldest is not None
        return max(oldest.created_at + 2 * self.target_s, now) + self.target_s / LOOKS_PER_TARGET


class Lines:
    """The lines of a pool that sheds.

    Args:
        target_s: the wait that is still good.
        interval_s: how long all waits must have been longer.

    Attributes:
        table: those that somebody waits in, or whose timer is armed.
        by_number: the same by their timers' keys.
    """

    def __init__(self, target_s: float, interval_s: float) -> None:
        self.target_s = target_s
        self.interval_s = interval_s
        self.table: dict[LineKey, Line] = {}
        self.by_number: dict[int, Line] = {}
        self._last = 0

    @property
    def shedding(self) -> bool:
        """Whether any of them is shed now."""
        return any(line.shedding for line in self.table.values())

    def line(self, key: LineKey, now: float) -> Line:
        """The line of this key, made if need be."""
        found = self.table.get(key)
        if found is None:
            self._last += 1
            found = Line(key, self._last, self.target_s, self.interval_s, now)
            self.table[key] = self.by_number[found.number] = found
        return found

    def forget(self, line: Line) -> None:
        """Nobody waits in it and its timer is not armed."""
        del self.table[line.key]
        del self.by_number[line.number]
