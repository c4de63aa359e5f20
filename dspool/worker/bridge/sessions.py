"""Sessions: a client's keys, the data that it keeps under each, and a bound on both.

A session begins with the first thing that is kept for it and ends with cleanup_session; no clock ends one. One that
nothing is kept for can't be told from one that never was: its data is the empty object.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dspool.worker.bridge.storage import Storage, check_count, size_of


class _Session(msgspec.Struct):
    data: dict[str, Any] = {}
    size: int = 0


class Sessions:
    """Those that something is kept for.

    Args:
        storage: counts the bytes.
        limit: how many there may be.
    """

    def __init__(self, storage: Storage, limit: int) -> None:
        self._storage = storage
        self._limit = limit
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self, session_id: str) -> None:
        """See that this session is there or may be begun.

        Raises:
            Refused: there are too many.
        """
        if session_id not in self._sessions:
            check_count(len(self), self._limit, "Session", "--max-sessions", "clean up some")

    def begin(self, session_id: str) -> None:
        """Begin it, if it isn't there. check_room has been asked."""
        self._sessions.setdefault(session_id, _Session())

    def data(self, session_id: str) -> dict[str, Any]:
        """What is kept under it."""
        found = self._sessions.get(session_id)
        return {} if found is None else found.data

    def update(self, session_id: str, data: dict[str, Any]) -> None:
        """Put data beside what is there; keys that are there already are replaced.

        Raises:
            Refused: there are too many sessions, or bytes; nothing is changed.
        """
        self.check_room(session_id)
        session = self._sessions.get(session_id) or _Session()
        merged = {**session.data, **data}
        size = size_of(merged)
        self._storage.replace(session.size, size)
        self._sessions[session_id] = _Session(merged, size)

    def remove(self, session_id: str) -> None:
        """Forget it and its data."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._storage.replace(session.size, 0)

    def clear(self) -> None:
        """Forget all."""
        for session_id in list(self._sessions):
            self.remove(session_id)
