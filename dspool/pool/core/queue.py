"""The waiters: one queue per class, merged by (priority, call_id).

A class is (pinned worker or None, required labels, workers that skipped the waiter): everybody in it can be served by
exactly the same workers, so a class whose workers are all busy costs nothing and blocks nobody.

Rules:
    1. The order is (priority, call_id), lowest first; a call_id is drawn once: a call that comes back keeps its place.
    2. The heaps hold ids. An id is stale when its lease stands elsewhere; stale ids are skipped when they surface and
       cleared out when they outnumber the live ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from dspool.pool.core.records import Lease, WaitKey, Worker

_COMPACT_FROM = 32
_Entry = tuple[int, int, int]
"""(priority, call_id, lease_id)"""


class WaitClass:
    """The waiters of one class."""

    __slots__ = ("groups", "heap", "live", "skipped")

    def __init__(self, groups: tuple[str, ...], skipped: frozenset[int]) -> None:
        self.groups = groups
        self.skipped = skipped
        self.heap: list[_Entry] = []
        self.live = 0


class WaitQueue:
    """All waiters.

    Args:
        leases: the core's table of leases.
        fitting: required labels -> names of the groups that have them.
    """

    def __init__(self, leases: dict[int, Lease], fitting: Callable[[frozenset[str]], tuple[str, ...]]) -> None:
        self._leases = leases
        self._fitting = fitting
        self._open: dict[WaitKey, WaitClass] = {}
        self._pinned: dict[int, dict[WaitKey, WaitClass]] = {}
        self.count = 0
        self.size_bytes = 0

    def put(self, lease: Lease, pinned_to: int | None) -> None:
        """`lease` waits from now on, for this worker or for any that fits."""
        key: WaitKey = (pinned_to, lease.require, frozenset(lease.skipped))
        classes = self._open if pinned_to is None else self._pinned.setdefault(pinned_to, {})
        waiters = classes.get(key)
        if waiters is None:
            waiters = classes[key] = WaitClass(self._fitting(lease.require), key[2])
        lease.wait_key = key
        heapq.heappush(waiters.heap, (lease.priority, lease.call_id, lease.lease_id))
        waiters.live += 1
        self.count += 1
        self.size_bytes += lease.size_bytes

    def discard(self, lease: Lease) -> None:
        """`lease` doesn't wait any more, if it did."""
        key = lease.wait_key
        if key is None:
            return
        lease.wait_key = None
        self.count -= 1
        self.size_bytes -= lease.size_bytes
        classes = self._open if key[0] is None else self._pinned[key[0]]
        waiters = classes[key]
        waiters.live -= 1
        if waiters.live == 0:
            del classes[key]
            if key[0] is not None and not classes:
                del self._pinned[key[0]]
        elif len(waiters.heap) > _COMPACT_FROM and len(waiters.heap) > 2 * waiters.live:
            waiters.heap = list({entry for entry in waiters.heap if self._stands(entry, key)})
            heapq.heapify(waiters.heap)

    def first_for(self, worker: Worker) -> Lease | None:
        """The earliest waiter that may use a slot of `worker`; it stays in the queue."""
        best: _Entry | None = None
        for classes in (self._open, self._pinned.get(worker.worker_id)) if self._pinned else (self._open,):
            if not classes:
                continue
            for key, waiters in classes.items():
                if worker.group.name not in waiters.groups or worker.worker_id in waiters.skipped:
                    continue
                head = self._head(key, waiters)
                if best is None or head < best:
                    best = head
        return None if best is None else self._leases[best[2]]

    def everybody(self) -> Iterator[Lease]:
        """Every waiter, class by class."""
        for classes in [self._open, *self._pinned.values()]:
            for key, waiters in list(classes.items()):
                yield from self._of(key, waiters)

    def unpinned(self) -> Iterator[tuple[WaitClass, Iterator[Lease]]]:
        """The classes of waiters that are not bound to one worker, each with its waiters."""
        for key, waiters in list(self._open.items()):
            yield waiters, self._of(key, waiters)

    def demand(self, group: str, starting: dict[str, int]) -> int:
        """How many wait that a new worker of this group could serve and that no worker now starting will.

        Args:
            group: the group's name.
            starting: slots of the workers now starting, by group; those with the fewest groups to choose from come
                first.
        """
        wanted = 0
        for waiters in sorted(self._open.values(), key=lambda each: len(each.groups)):
            left = waiters.live
            for name in waiters.groups:
                taken = min(left, starting[name])
                starting[name] -= taken
                left -= taken
            if group in waiters.groups:
                wanted += left
        return wanted

    def _of(self, key: WaitKey, waiters: WaitClass) -> Iterator[Lease]:
        for entry in sorted(set(waiters.heap)):
            if self._stands(entry, key):
                yield self._leases[entry[2]]

    def _head(self, key: WaitKey, waiters: WaitClass) -> _Entry:
        heap = waiters.heap  # never empty of live entries: a class without them is deleted
        while not self._stands(heap[0], key):
            heapq.heappop(heap)
        return heap[0]

    def _stands(self, entry: _Entry, key: WaitKey) -> bool:
        lease = self._leases.get(entry[2])
        return lease is not None and lease.wait_key == key and lease.call_id == entry[1]
