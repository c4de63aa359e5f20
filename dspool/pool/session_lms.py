"""The LMs of sessions: what set_session_lm() said, for as long as the session is remembered.

Rules:
    1. As sessions themselves: `session_ttl_s` after their last use they are forgotten, and beyond `max_sessions` the
       least recently used ones. One whose session the core still knows is not too old: a call of it may run.
    2. A pool in which no session has an LM pays one look for each call, and no lock.

Any thread may use it. Knows no workers.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from dspool.protocol.messages import LMSpec


class SessionLMs:
    """The LMs of one pool's sessions.

    Args:
        ttl_s: seconds from its last use until a session's LM is forgotten.
        limit: how many are kept.
        known: whether the pool knows a session.
        clock: monotonic seconds.
    """

    def __init__(
        self, ttl_s: float, limit: int, known: Callable[[str], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._limit = limit
        self._known = known
        self._clock = clock
        self._kept: OrderedDict[str, tuple[LMSpec, float]] = OrderedDict()
        """With when it was last used; the least recently used first."""
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def set(self, session: str, spec: LMSpec | None) -> None:
        """From now on calls of the session go to this LM; None: to whatever they would without."""
        with self._lock:
            now = self._clock()
            self._kept.pop(session, None)
            if spec is not None:
                self._kept[session] = spec, now
            self._forget_old(now)

    def of(self, session: object) -> LMSpec | None:
        """The LM of a session that is about to be used."""
        if not self._kept or not isinstance(session, str):
            return None
        with self._lock:
            now = self._clock()
            self._forget_old(now)
            found = self._kept.pop(session, None)
            if found is None:
                return None
            self._kept[session] = found[0], now
            return found[0]

    def _forget_old(self, now: float) -> None:
        while self._kept:
            session, (spec, last_used) = next(iter(self._kept.items()))
            if len(self._kept) <= self._limit:
                if last_used + self._ttl_s > now:
                    return
                if self._known(session):
                    self._kept.pop(session)
                    self._kept[session] = spec, now
                    continue
            del self._kept[session]
