"""--debug-log: one line of JSON for each frame.

    {"time": "2026-01-31T12:00:00.000000+00:00", "pid": 4711, "direction": "in", "bytes": 212, "message": {...}}
    {..., "direction": "out", "bytes": 180, "took_ms": 4.21, "message": {...}}

Rules:
    1. The file is the user's alone (0600), and only appended to; each line is one write, so bridges may share it.
    2. Secrets are masked twice over: texts under a name that sounds like a secret, wherever they stand, and every
       secret that is known by its value.
    3. Long messages are cut, and a log that can't be written any more costs no call: it ends, with a line on stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from dspool.protocol.codec import JSON
from dspool.protocol.frames import HEADER_BYTES
from dspool.protocol.line_file import LineFile
from dspool.protocol.secrets import MASK, SECRET_FIELD, Secrets
from dspool.worker.loop import Pipe

MAX_MESSAGE_CHARS = 16 * 1024
"""Of a frame's JSON; of a longer one the beginning is shown, as text."""


class FrameLog:
    """The file.

    Args:
        path: where; made if it is missing.
        secrets: what is masked by its value.

    Raises:
        OSError: it can't be written, or is no regular file.
    """

    def __init__(self, path: str, secrets: Secrets) -> None:
        self._path = path
        self._secrets = secrets
        self._received = 0.0
        self._file = LineFile(path)
        os.register_at_fork(after_in_child=self._file.close)  # what a child of a program does is no frame

    def received(self, body: memoryview) -> None:
        """A whole frame was read."""
        self._received = time.monotonic()
        self._write("in", body)

    def sent(self, frame: bytearray) -> None:
        """An answer is being written; `frame` with its header."""
        took_ms = round((time.monotonic() - self._received) * 1000, 3)
        self._write("out", memoryview(frame)[HEADER_BYTES:], took_ms=took_ms)

    def _write(self, direction: str, body: memoryview, **fields: Any) -> None:
        if self._file.closed:
            return
        line = {
            "time": datetime.now(UTC).isoformat("T", "microseconds"),
            "pid": os.getpid(),
            "direction": direction,
            "bytes": len(body) + HEADER_BYTES,
            **fields,
            "message": self._shown(body),
        }
        if problem := self._file.write(msgspec.json.encode(line)):
            print(f"dspool bridge: the debug log {self._path} has ended: {problem}", file=sys.stderr)

    def _shown(self, body: memoryview) -> Any:
        """A message without its secrets; of what can't be read nothing is shown, since nothing can be masked in it."""
        try:
            message = masked(msgspec.json.decode(body), self._secrets)
            text = msgspec.json.encode(message)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return "<not JSON>"
        if len(text) > MAX_MESSAGE_CHARS:
            return text[:MAX_MESSAGE_CHARS].decode("utf-8", "ignore") + "..."
        return message


class LoggedPipe(Pipe):
    """A pipe in JSON whose frames are logged; a bridge without the option has no code for it on a call's way."""

    def __init__(
        self,
        receive_into: Callable[[memoryview], int],
        send: Callable[[bytearray], object],
        max_frame_bytes: int,
        log: FrameLog,
    ) -> None:
        def send_logged(frame: bytearray) -> None:
            log.sent(frame)
            send(frame)

        super().__init__(receive_into, send_logged, JSON, max_frame_bytes)
        self._log = log

    def receive(self) -> memoryview | None:
        """As Pipe's."""
        body = super().receive()
        if body is not None:
            self._log.received(body)
        return body


def masked(value: Any, secrets: Secrets, *, secret: bool = False) -> Any:
    """Plain data without secrets: the texts under names that sound like one, at any depth, and the known ones anywhere.

    Raises:
        RecursionError: it is nested deeper than Python's stack.
    """
    if isinstance(value, dict):
        return {
            secrets.mask(name): masked(item, secrets, secret=secret or bool(SECRET_FIELD.search(name)))
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item, secrets, secret=secret) for item in value]
    if isinstance(value, str):
        return MASK if secret and value else secrets.mask(value)
    return value
