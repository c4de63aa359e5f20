"""What a pool's workers share of models' limits: one small file, in which each model has a record of its own.

Rules:
    1. Whoever changes a record holds the file's lock meanwhile, a record lock of the kernel: it ends with the process,
       however that ends. Such locks are the process's, so among its threads there is another one.
    2. Nobody waits for the lock in here. Where another process has it, whoever wants it tries again a little later, and
       so keeps its deadline even if that process was stopped in the middle.
    3. A record is written by one pwrite within one page, which a kill comes before or after. So at any moment the file
       is sane, and nothing has to be repaired.
    4. Bounded: MAX_RECORDS. One that holds nobody back makes room, or else the one that does so for the shortest time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from dspool.worker.pacing import State

MAX_RECORDS = 4096
DIGEST_BYTES = 16
_RECORD = struct.Struct(f"={DIGEST_BYTES}s3df2df")
"""64 bytes, so that none lies across two pages."""

T = TypeVar("T")


class Busy(Exception):
    """Another process holds the lock."""


class LimitRecords:
    """The records, seen from one worker.

    Args:
        path: where the manager has made it; it is empty at first.

    Raises:
        OSError: it can't be opened.
    """

    def __init__(self, path: str) -> None:
        # One descriptor for as long as the process lives: closing any other one of the same file would end the lock.
        self._fd = os.open(path, os.O_RDWR)
        self._forget_threads()
        os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        self._lock = threading.Lock()

    def peek(self, digest: bytes) -> State:
        """A record as it is now, without the lock; a state of zeros where there is none."""
        records = self._read()
        return _state(records, _find(records, digest))

    def change(self, digest: bytes, step: Callable[[State], tuple[T, State]]) -> T:
        """Replace a record by what `step` makes of it, and return what else it gives. If it raises, nothing is changed.

        Raises:
            Busy: another process holds the lock; try again in a millisecond.
        """
        with self._lock:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise Busy from None
                raise
            try:
                records = self._read()
                at = _find(records, digest)
                given, state = step(_state(records, at))
                place = _place(records) if at is None else at
                os.pwrite(self._fd, _RECORD.pack(digest, *state), place)
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
            return given

    def _read(self) -> bytes:
        return os.pread(self._fd, MAX_RECORDS * _RECORD.size, 0)


def _find(records: bytes, digest: bytes) -> int | None:
    """Where a record begins; None where there is none."""
    at = records.find(digest)
    while at > 0 and at % _RECORD.size:
        at = records.find(digest, at + 1)
    return at if at >= 0 else None


def _state(records: bytes, at: int | None) -> State:
    return State() if at is None else State(*_RECORD.unpack_from(records, at)[1:])


def _place(records: bytes) -> int:
    """Where a new record goes: behind the others, or over the one that is done with soonest."""
    if len(records) < MAX_RECORDS * _RECORD.size:
        return len(records)
    states = (State(*fields[1:]) for fields in _RECORD.iter_unpack(records))
    owed = [(max(state.not_before, state.requests_paid_at, state.tokens_paid_at), state.touched_at) for state in states]
    return owed.index(min(owed)) * _RECORD.size
