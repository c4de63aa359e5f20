"""What a fake worker is told to do: the call as a script sees it, and what may come of it. See `fake`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import Request, Response


class FakeCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as a script sees it.

    Attributes:
        worker_id: where it came.
        slot: on which of its slots.
        number: which call of this worker it is, from 1 on.
        program: the program's label or import path, as far as the worker was told.
        inputs: plain data, as a program in a process would get them.
        request: the whole request.
    """

    worker_id: int
    slot: int
    number: int
    program: str
    inputs: dict[str, Any]
    request: Request


class Trigger:
    """Something a test pulls once, and a `Late` waits for. Pulling is legal before, after, and from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulled = False
        self._listeners: list[Callable[[], None]] = []

    def pull(self) -> None:
        """Let everything go that waits for it, now and later."""
        with self._lock:
            self._pulled = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def when_pulled(self, listener: Callable[[], None]) -> None:
        """Call `listener` once, on the thread that pulls; at once where that is over."""
        with self._lock:
            if not self._pulled:
                self._listeners.append(listener)
                return
        listener()


class Hang(msgspec.Struct, frozen=True):
    """Never answer."""


class Die(msgspec.Struct, frozen=True):
    """End without an answer: with an exit code, or by a signal."""

    code: int | None = None
    signal: int | None = None


class CloseSlot(msgspec.Struct, frozen=True):
    """Close this slot's pipe and live on."""


class Garbage(msgspec.Struct, frozen=True):
    """Write these bytes where an answer belongs; by default a whole frame that is no message."""

    data: bytes = b"\x00\x00\x00\x03\xc1\xc1\xc1"


class ForeignId(msgspec.Struct, frozen=True):
    """Answer well, but to a request that nobody made."""

    request_id: int = 2**40
    value: Any = None


class Late(msgspec.Struct, frozen=True):
    """Go on with `then` once `until` is pulled, or, where it is a socket, can be read (the fake closes it).

    Where the worker dies first, `then` never happens.
    """

    until: Trigger | socket.socket
    then: Any = None


class Then(msgspec.Struct, frozen=True):
    """Several of these, in order: the answer first, then what comes after it unasked."""

    outcomes: Sequence[Any]


Answer = Callable[[FakeCall], Any]
Boot = Callable[[int], Any]
"""worker_id -> None to boot well, an exception to answer the handshake with, or an action in place of the answer."""
Control = Callable[[int, Request], Any]
"""worker_id and a control command -> as `Answer`; NotImplemented: as if there were no script."""


def frame_of(response: Response) -> bytes:
    """A response as the bytes of a frame, for Garbage."""
    return bytes(MSGPACK.encode(response))
