"""Sessions: which worker a caller's key is pinned to, and what was lost when that worker left.

Rules:
    1. The pin is made in the step that grants a session's first call; queued calls look it up here and never copy it.
    2. A worker that drains or leaves is unpinned in that step; the generation goes up when state was lost with it.
    3. A session with a queued or running call is never forgotten; of the others the least recently used go first.
"""

from __future__ import annotations

import msgspec


class Session(msgspec.Struct):
    """One session.

    Attributes:
        worker_id: the worker it is pinned to.
        generation: how often it lost the state it kept in a worker.
        used: a call of it ran, or may have run, in the pinned worker: there is state to lose.
        lost: state was lost and no caller has been told yet.
        unsettled: its worker left while its first call ran there: state is lost if that call is answered.
        running: calls granted and not over.
        queued: lease_ids of its calls that wait.
    """

    worker_id: int | None = None
    generation: int = 0
    used: bool = False
    lost: bool = False
    unsettled: bool = False
    last_used: float = 0.0
    running: int = 0
    queued: dict[int, None] = {}

    def unpin(self) -> None:
        """Its worker is no longer its own."""
        self.worker_id = None
        if self.used:
            self.used = False
            self._lose()
        elif self.running:
            self.unsettled = True

    def answered(self, worker_id: int | None) -> None:
        """A call of it was answered, or may still run, in this worker: it left state there."""
        if self.worker_id == worker_id:
            self.used = True
        elif self.unsettled:
            self._lose()

    def stop_running(self) -> None:
        """A granted call is over, or waits again."""
        self.running -= 1
        if not self.running:
            self.unsettled = False

    def _lose(self) -> None:
        self.generation += 1
        self.lost, self.unsettled = True, False

    @property
    def in_use(self) -> bool:
        """Whether a call of it waits or runs."""
        return self.running > 0 or bool(self.queued)


class Sessions:
    """The table of sessions.

    Args:
        ttl_s: seconds from its last use until a session is forgotten.
        limit: how many are remembered, those in use aside.

    Attributes:
        idle: the names of those not in use, least recently used first.
    """

    def __init__(self, ttl_s: float, limit: int) -> None:
        self.ttl_s = ttl_s
        self.limit = limit
        self.table: dict[str, Session] = {}
        self.idle: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.table)

    def queue(self, name: str, lease_id: int) -> Session:
        """A call of it waits for a worker; the session is made if need be."""
        session = self.table.get(name)
        if session is None:
            session = self.table[name] = Session()
        self.idle.pop(name, None)
        session.queued[lease_id] = None
        return session

    def run(self, name: str, lease_id: int) -> Session:
        """That call is granted."""
        session = self.table[name]
        session.queued.pop(lease_id, None)
        session.running += 1
        return session

    def unqueue(self, name: str, lease_id: int, now: float) -> None:
        """That call waits no more, and was not granted."""
        session = self.table.get(name)
        if session is not None and lease_id in session.queued:
            del session.queued[lease_id]
            self._rest(name, session, now)

    def end(self, name: str, now: float) -> None:
        """A granted call is over."""
        session = self.table[name]
        session.stop_running()
        self._rest(name, session, now)

    def requeue(self, name: str, lease_id: int) -> Session:
        """A granted call waits again."""
        session = self.table[name]
        session.stop_running()
        session.queued[lease_id] = None
        return session

    def _rest(self, name: str, session: Session, now: float) -> None:
        if not session.in_use:
            session.last_used = now
            self.idle.pop(name, None)
            self.idle[name] = None

    def expired(self, now: float) -> str | None:
        """A session whose time is over, or that is one too many: to be forgotten."""
        for name in self.idle:
            if len(self.table) > self.limit or self.table[name].last_used + self.ttl_s <= now:
                return name
            break
        return None

    def forget(self, name: str) -> Session:
        """Take it out of the table."""
        del self.idle[name]
        return self.table.pop(name)

    def next_expiry(self) -> float | None:
        """When the least recently used session's time is over."""
        for name in self.idle:
            return self.table[name].last_used + self.ttl_s
        return None
