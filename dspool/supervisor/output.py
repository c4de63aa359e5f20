"""A worker's stdout and stderr: log lines for people, and the last 8 KiB for its exit report.

Rules:
    1. Whatever a worker writes, it is read: a worker never blocks for long because of its own output.
    2. Whatever a worker writes, others don't wait for it: one read of bounded size per wake-up, a few lines logged at a
       time, LINES_PER_S lines a second. What is over that is counted and a line says how many; it is still in the tail.
       A worker that floods is read with pauses, so it waits for its pipe, not the loop for it.
    3. Keys are masked before anything is cut, logged or reported: a program, or a client in it, may print its own.
    4. EOF means nothing: a grandchild may hold a pipe open for ever, and a worker may close its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping

import anyio
from anyio.lowlevel import checkpoint

from dspool.logs import get_logger

TAIL_BYTES = 8 * 1024
MARGIN_BYTES = 4 * 1024
"""Bytes before the tail that are kept too: a key that is cut in half isn't found any more, so the cut comes after."""
LINE_BYTES = 4 * 1024
"""A longer line is logged in pieces."""
LINES_PER_S = 500

_READ_BYTES = 64 * 1024
_BATCH_LINES = 20
_FLOOD_PAUSE_S = 0.002
_REST_READS = 4
_REST_LINES = 100


class WorkerOutput:
    """Drains the output pipes of one worker.

    Args:
        fds: stream name -> the pipe's read end, non-blocking.
        fields: what each log line says beside its text: pool, worker_id, pid.
        mask: takes keys out of a text.
    """

    def __init__(self, fds: Mapping[str, int], fields: Mapping[str, object], mask: Callable[[str], str] = str) -> None:
        self._fds = dict(fds)
        self._mask = mask
        self._log = get_logger("dspool.worker", **fields)
        self._tail = bytearray()
        self._partial = dict.fromkeys(fds, b"")
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._window_ends = 0.0
        self._left = 0
        self._suppressed = 0

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams, one drain() each."""
        return tuple(self._fds)

    def tail(self) -> str:
        """The last TAIL_BYTES of both streams, in the order of arrival."""
        masked = self._masked(self._tail)
        if len(self._tail) > TAIL_BYTES:
            masked = masked[len(self._tail) - TAIL_BYTES :][-TAIL_BYTES:]
        return masked.decode("utf-8", "replace")

    def _masked(self, data: bytes | bytearray) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        masked = self._mask(text)
        return bytes(data) if masked is text else masked.encode("utf-8", "surrogateescape")

    async def drain(self, stream: str) -> None:
        """Read one stream until it ends."""
        while True:
            await anyio.wait_readable(self._fds[stream])
            data = _read(self._fds[stream])
            if data == b"":
                return
            complete = self._take(stream, data or b"")
            while self._waiting:
                self._log_waiting(_BATCH_LINES)
                await checkpoint()
            if not complete:
                await anyio.sleep(_FLOOD_PAUSE_S)

    def drain_rest(self) -> None:
        """Read what the pipes of a dead worker still hold. Bounded, never waits."""
        for stream, fd in self._fds.items():
            for _ in range(_REST_READS):
                data = _read(fd)
                if not data:
                    break
                self._take(stream, data)
        for stream, rest in self._partial.items():
            if rest:
                self._waiting.append((stream, self._masked(rest)))
        # Its last words say most about its end.
        while len(self._waiting) > _REST_LINES:
            self._waiting.popleft()
            self._suppressed += 1
        self._log_suppressed()
        self._log_waiting(_REST_LINES)

    def _take(self, stream: str, data: bytes) -> bool:
        """Keep the tail, queue the lines that may be logged; False where there were more."""
        self._tail += data
        del self._tail[: -TAIL_BYTES - MARGIN_BYTES]
        self._start_window()
        *lines, rest = (self._partial[stream] + data).split(b"\n", self._left)
        over = rest.count(b"\n")
        self._suppressed += over
        self._partial[stream] = rest[rest.rfind(b"\n") + 1 :]
        if len(self._partial[stream]) >= LINE_BYTES:
            if over or self._left == 0:
                self._suppressed += 1
                over += 1
            else:
                lines.append(self._partial[stream])
            self._partial[stream] = b""
        for line in map(self._masked, lines):
            pieces = [line[start : start + LINE_BYTES] for start in range(0, max(1, len(line)), LINE_BYTES)]
            self._waiting.extend((stream, piece) for piece in pieces)
            self._left = max(0, self._left - len(pieces))
        return over == 0

    def _start_window(self) -> None:
        now = time.monotonic()
        if now >= self._window_ends:
            self._log_suppressed()
            self._window_ends = now + 1.0
            self._left = LINES_PER_S

    def _log_waiting(self, most: int) -> None:
        for _ in range(min(most, len(self._waiting))):
            stream, line = self._waiting.popleft()
            self._log_line(line.rstrip(b"\r").decode("utf-8", "replace"), stream=stream)

    def _log_suppressed(self) -> None:
        if self._suppressed:
            count, self._suppressed = self._suppressed, 0
            self._log_line(f"{count} lines suppressed: too many at a time", suppressed=count)

    def _log_line(self, text: str, **more: object) -> None:
        # A log that can't be written (its pipe is closed, a processor fails) must not cost a healthy worker its life,
        # and there is no other place to say so.
        try:
            self._log.info(text, **more)
        except Exception:
            self._suppressed += 1


def _read(fd: int) -> bytes | None:
    """What the pipe holds, b"" at its end, None where it holds nothing now."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
