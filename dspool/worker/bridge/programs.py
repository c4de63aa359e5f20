"""The programs that a bridge's client has created: under which ids, for which session, how often they ran.

Rules:
    1. A program belongs to a session or to the worker. Two sessions may use one id for two programs; a session sees its
       own and the worker's, its own first.
    2. A request without a session finds the worker's program of that id, else the one that any session has. Several
       sessions have one: it is told to say which.
    3. Whatever goes wrong in create(), what was there before is still there.

Loading is ProgramTable's; here is only the book.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import msgspec

from dspool.protocol.messages import LMSpec, ProgramSpec
from dspool.worker.bridge.refusal import Refused
from dspool.worker.bridge.storage import Storage, check_count
from dspool.worker.programs import ProgramTable

_SESSIONS_NAMED = 10


class Record(msgspec.Struct, kw_only=True):
    """A program.

    Attributes:
        program_id: the client's name for it.
        session_id: the session it belongs to; None: the worker.
        signature: as it was sent, without what was ignored in it.
        program_type: as it was sent.
        size: what its definition counts for, in bytes.
        lm: its own LM, or None.
        gemini: whether create_gemini_program made it.
        key: under which the table has it loaded.
    """

    program_id: str
    session_id: str | None
    signature: Any
    program_type: Any
    size: int
    lm: LMSpec | None = None
    gemini: bool = False
    key: str = ""
    created_at: float = 0.0
    execution_count: int = 0
    last_executed: float | None = None

    def executed(self) -> None:
        """A call of it has ended, well or not."""
        self.execution_count += 1
        self.last_executed = wall_clock()

    def info(self) -> dict[str, Any]:
        """What get_program_info answers."""
        return {
            "id": self.program_id,
            "signature": self.signature,
            "created_at": self.created_at,
            "execution_count": self.execution_count,
            "last_executed": self.last_executed,
            "program_type": self.program_type,
            "session_id": self.session_id,
            "model": None if self.lm is None else self.lm.model,
        }


def wall_clock() -> float:
    """A date for the client: seconds since the epoch."""
    return datetime.now(UTC).timestamp()


class Programs:
    """The book.

    Args:
        table: loads programs and keeps them loaded; it has room for one more than `limit`.
        storage: counts the bytes of definitions.
        limit: how many programs there may be.
    """

    def __init__(self, table: ProgramTable, storage: Storage, limit: int) -> None:
        self._table = table
        self._storage = storage
        self._limit = limit
        self._records: dict[tuple[str | None, str], Record] = {}
        self._keys = itertools.count(1)

    def __len__(self) -> int:
        return len(self._records)

    def create(self, record: Record, spec: ProgramSpec, *, replace: bool) -> None:
        """Load a program and note it.

        Raises:
            Refused: there is one of that id, or too much of something.
            Exception: it can't be loaded.
        """
        place = (record.session_id, record.program_id)
        old = self._records.get(place)
        if old is not None and not replace:
            raise Refused(
                "program_exists",
                f'Program already exists: {record.program_id}; delete it first, or send "replace": true',
                session_id=record.session_id,
            )
        if old is None:
            check_count(len(self), self._limit, "Program", "--max-programs", "delete some")
        old_size = 0 if old is None else old.size
        self._storage.replace(old_size, record.size)
        record.key = str(next(self._keys))
        try:
            self._table.create(record.key, spec)
        except BaseException:
            self._storage.replace(record.size, old_size)
            raise
        record.created_at = wall_clock()
        self._records[place] = record
        if old is not None:
            self._table.remove(old.key)

    def find(self, program_id: str, session_id: str | None) -> Record:
        """The program that a request means.

        Raises:
            Refused: there is none, or several.
        """
        for owner in (session_id, None):
            if found := self._records.get((owner, program_id)):
                return found
        if session_id is None:
            owners = [owner for owner, name in self._records if name == program_id and owner is not None]
            if len(owners) == 1:
                return self._records[owners[0], program_id]
            if owners:
                shown = ", ".join(owners[:_SESSIONS_NAMED]) + (", ..." if len(owners) > _SESSIONS_NAMED else "")
                raise Refused(
                    "ambiguous_program",
                    f"Program ID is ambiguous: {program_id} is a program of the sessions {shown}; send session_id",
                    sessions=len(owners),
                )
        raise Refused("program_not_found", f"Program not found: {program_id}", session_id=session_id)

    def ids(self, session_id: str | None) -> list[str]:
        """The ids that a request of this session can use, oldest first; without a session, all."""
        seen = (name for owner, name in self._records if session_id is None or owner in (session_id, None))
        return list(dict.fromkeys(seen))

    def delete(self, record: Record) -> None:
        """Forget one."""
        del self._records[record.session_id, record.program_id]
        self._storage.replace(record.size, 0)
        self._table.remove(record.key)

    def delete_of(self, session_id: str) -> int:
        """Forget a session's own; returns how many there were."""
        found = [record for record in self._records.values() if record.session_id == session_id]
        for record in found:
            self.delete(record)
        return len(found)

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        found = list(self._records.values())
        for record in found:
            self.delete(record)
        return len(found)
