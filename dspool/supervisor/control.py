"""The manager's end of one worker's control pipe: requests out, answers in, matched by id.

Rules:
    1. Each request has an id of its own and is answered once. An answer to anything else, a second answer, a bad body
       or a broken frame is a ProtocolError, after which the pipe is not read any further.
    2. An answer to a request that was given up is dropped: it is late, not wrong.
    3. Writing never blocks. What the pipe doesn't take at once waits in order, for flush().
    4. A peer that is gone is not an error here: its exit, or the end of the pipe, says so.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import deque
from typing import Any

import anyio

from dspool.errors import InvalidMessage, ProtocolError
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder
from dspool.protocol.messages import HANDSHAKE_ID, Request, Response
from dspool.supervisor.process import tell_loop

_REST_READS = 64
"""Receives of what a dead worker left in the pipe; a grandchild may hold the other end and go on writing."""


class Question:
    """A request and, once it came, its answer."""

    __slots__ = ("_answered", "request_id", "response")

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.response: Response | None = None
        self._answered = anyio.Event()

    async def answer(self) -> Response:
        """The answer; waits for it without limit."""
        await self._answered.wait()
        assert self.response is not None
        return self.response

    def resolve(self, response: Response) -> None:
        """The answer came."""
        self.response = response
        self._answered.set()


class ControlPipe:
    """One worker's control pipe.

    Args:
        sock: the manager's end, non-blocking. The pipe closes it.
        max_frame_bytes: the longest message either way.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int) -> None:
        self._socket = sock
        self._max_frame_bytes = max_frame_bytes
        self._decoder = FrameDecoder(max_frame_bytes)
        self._ids = itertools.count(HANDSHAKE_ID)
        self._open: dict[int, Question] = {}
        self._given_up: set[int] = set()
        self._unsent: deque[memoryview] = deque()

    @property
    def blocked(self) -> bool:
        """Whether the pipe didn't take everything yet; flush() waits for it."""
        return bool(self._unsent)

    def ask(self, command: str, args: dict[str, Any]) -> Question:
        """Write a request, as far as the pipe takes it. The first one ever has the handshake's id.

        Raises:
            EncodeError, FrameTooLarge: it can't be sent; nothing was written.
        """
        request_id = next(self._ids)
        frame = MSGPACK.encode(Request(request_id, command, args), self._max_frame_bytes)
        question = self._open[request_id] = Question(request_id)
        self._send(frame)
        return question

    def give_up(self, question: Question) -> None:
        """Nobody waits for the answer any more."""
        if self._open.pop(question.request_id, None) is not None:
            self._given_up.add(question.request_id)

    async def flush(self) -> None:
        """Write the rest. One task at a time."""
        while self._unsent:
            await anyio.wait_writable(self._socket)
            self._write()

    async def read(self) -> None:
        """Take answers until the pipe ends.

        Raises:
            ProtocolError: see rule 1.
        """
        while True:
            await anyio.wait_readable(self._socket)
            if self._receive() == 0:
                self._decoder.finish()
                return

    def read_rest(self) -> None:
        """Take the answers that a dead worker left in the pipe. Never waits; what breaks rule 1 is left there."""
        with contextlib.suppress(ProtocolError):
            for _ in range(_REST_READS):
                if not self._receive():
                    return

    def end(self) -> None:
        """Let the worker read EOF. Answers are still taken."""
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        tell_loop(self._socket)
        self._socket.close()

    def _receive(self) -> int | None:
        """One receive and its answers: bytes received, 0 at the pipe's end, None where there is nothing yet."""
        try:
            count = self._socket.recv_into(self._decoder.space())
        except BlockingIOError:
            return None
        except ConnectionError:
            return 0
        self._decoder.received(count)
        while (frame := self._decoder.next_frame()) is not None:
            self._take(frame)
        return count

    def _take(self, frame: memoryview) -> None:
        response = MSGPACK.decode_response(frame)
        if response.id in self._given_up:
            self._given_up.discard(response.id)
            return
        question = None if response.id is None else self._open.pop(response.id, None)
        if question is None:
            raise InvalidMessage(
                f"an answer to request {response.id}, which is not open", "invalid_response", response.id
            )
        question.resolve(response)

    def _send(self, frame: bytearray) -> None:
        self._unsent.append(memoryview(frame))
        self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()
