"""The log of frames that `debug_log=` asks for: one line of JSON for each frame of a pool, either way.

    {"time": "2026-01-31T12:00:00.000000+00:00", "pool": "pool-1", "worker_id": 3, "slot": 0, "direction": "out",
     "message": "request", "command": "execute_program", "id": 17, "bytes": 212}
    {..., "slot": 0, "direction": "in", "message": "response", "command": "execute_program", "id": 17, "ok": true,
     "bytes": 180, "took_ms": 4.21}

Rules:
    1. What a frame carries is never written: neither inputs nor results, programs, sessions or keys. So nothing has to
       be masked.
    2. A pipe that is logged is of another class than one that isn't, chosen when it is made. A pool without the option
       has no code for it on a call's way.
    3. The file is the user's alone (0600) and only ever appended to: several pools may share one, each line is one
       write, and making it shorter is the user's business.
    4. A log that can't be written costs no call: it ends, and a warning says so.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from dspool.errors import OptionsError
from dspool.logs import get_logger
from dspool.protocol.frames import HEADER_BYTES
from dspool.protocol.line_file import LineFile

Slot = int | Literal["control"]


class _Head(msgspec.Struct):
    """What is read of a message: a request's id and command, an event's id and kind, or a response's id and success."""

    id: int | None = None
    command: str | None = None
    success: bool | None = None
    event: str | None = None


_HEADS = msgspec.msgpack.Decoder(_Head)


class FrameLog:
    """The file. Any thread may write.

    Args:
        path: where; made if it is missing.
        pool: the pool's name, for the lines.

    Raises:
        OptionsError: it can't be written, or is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str], pool: str) -> None:
        self.path = os.fspath(path)
        self._pool = pool
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call at any bytecode
        try:
            self._file = LineFile(self.path)
        except OSError as error:
            raise OptionsError(f"debug_log={self.path!r} can't be written: {error.strerror}") from error

    def write(self, **fields: Any) -> None:
        """Append a line, with the time and the pool's name."""
        line = msgspec.json.encode(
            {"time": datetime.now(UTC).isoformat("T", "microseconds"), "pool": self._pool, **fields}
        )
        with self._lock:
            if error := self._file.write(line):
                log = get_logger("dspool.supervisor", pool=self._pool)
                log.warning("the debug log has ended: it can't be written", path=self.path, error=error)

    def close(self) -> None:
        """Write no more. Idempotent."""
        with self._lock:
            self._file.close()


class PipeLog:
    """The log of one pipe's frames.

    Args:
        log: the file.
        worker_id: whose pipe it is.
        slot: its slot's number, or "control".
    """

    def __init__(self, log: FrameLog, worker_id: int, slot: Slot) -> None:
        self._log = log
        self._pipe = {"worker_id": worker_id, "slot": slot}
        self._open: dict[int | None, tuple[str | None, float]] = {}
        """id -> command and time of the requests that aren't answered yet."""

    def sent(self, frame: bytes | bytearray | memoryview) -> None:
        """A request is being written; `frame` with its header."""
        head = _head(memoryview(frame)[HEADER_BYTES:])
        self._open[head.id] = head.command, time.monotonic()
        self._write("out", message="request", command=head.command, id=head.id, bytes=len(frame))

    def received(self, body: memoryview) -> None:
        """A whole frame was read."""
        head = _head(body)
        if head.event is not None:
            command, _ = self._open.get(head.id, (None, 0.0))
            kind = head.event if head.event in ("chunk", "status") else "unknown"
            self._write("in", message=kind, command=command, id=head.id, bytes=len(body) + HEADER_BYTES)
            return
        command, since = self._open.pop(head.id, (None, None))
        fields: dict[str, Any] = {} if since is None else {"took_ms": round((time.monotonic() - since) * 1000, 3)}
        size = len(body) + HEADER_BYTES
        self._write("in", message="response", command=command, id=head.id, ok=head.success, bytes=size, **fields)

    def failed(self, error: BaseException) -> None:
        """Nothing more can be read: the pipe has ended, or what came is no frame."""
        self._write("in", message="end", error=str(error))

    def _write(self, direction: Literal["in", "out"], **fields: Any) -> None:
        self._log.write(**self._pipe, direction=direction, **fields)


def _head(body: memoryview) -> _Head:
    try:
        return _HEADS.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Head()
