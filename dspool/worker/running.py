"""Calls that give pieces, or that can be cancelled, seen from their slots' threads.

Rules:
    1. A call's response is written when nothing of it runs any more, never before: its slot is idle after that.
    2. A cancellation is a wish. What runs on the worker's event loop (call_loop.py) is ended by it; what runs on a
       thread is told at the next piece that it gives, before its next request to an LM, and in a pause between two.

The loop is started by the first call that wants it, on a daemon thread: a worker without such calls has none, and
doesn't import asyncio. Imports no dspy.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from dspool.errors import EncodeError, FrameTooLarge
from dspool.protocol import values
from dspool.protocol.messages import Event, ItemChunk, Piece, Status, StreamArgs

if TYPE_CHECKING:
    import asyncio

    from dspool.worker.call_loop import Outlet

T = TypeVar("T")
REMEMBERED = 1024
"""Cancelled requests that were not read yet; the oldest are forgotten."""


class CallCancelled(BaseException):
    """Nobody wants the call's result. No Exception, so that a program's own handlers let it pass."""


class CallRefused(Exception):
    """The call was not run, or what it gives can't be sent.

    Args:
        code: the error's.
        message: what is wrong.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancellation:
    """Whether a call was cancelled, and what ends it."""

    def __init__(self) -> None:
        self.requested = False
        self._end: Callable[[], object] | None = None
        self._lock = threading.Condition(threading.Lock())

    def request(self) -> None:
        """Cancel the call; from any thread, more than once."""
        with self._lock:
            self.requested = True
            end = self._end
            self._lock.notify_all()
        if end is not None:
            end()

    def ends_with(self, end: Callable[[], object]) -> None:
        """From now on, or at once, this is what a cancellation does."""
        with self._lock:
            self._end = end
            requested = self.requested
        if requested:
            end()

    def check(self) -> None:
        """Raise CallCancelled where the call was cancelled."""
        if self.requested:
            raise CallCancelled

    def pause(self, seconds: float) -> None:
        """Wait so long on this thread; raise CallCancelled as soon as the call is cancelled."""
        with self._lock:
            self._lock.wait_for(lambda: self.requested, seconds)
        self.check()


class CancellableCalls:
    """The calls that can be cancelled now, by their requests' ids."""

    def __init__(self) -> None:
        self._running: dict[int, Cancellation] = {}
        self._early: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self, request_id: int) -> Iterator[Cancellation]:
        """The cancellation of a call that begins now; it may have come before its request was read."""
        cancellation = Cancellation()
        with self._lock:
            self._running[request_id] = cancellation
            cancellation.requested = self._early.pop(request_id, self) is None
        try:
            yield cancellation
        finally:
            with self._lock:
                del self._running[request_id]

    def cancel(self, request_id: int) -> None:
        """Cancel a call. One whose request was not read yet is cancelled when it is: the pipes are two, and race."""
        with self._lock:
            cancellation = self._running.get(request_id)
            if cancellation is None:
                self._early[request_id] = None
                if len(self._early) > REMEMBERED:
                    self._early.popitem(last=False)
        if cancellation is not None:
            cancellation.request()


class CallLoop:
    """The worker's event loop for calls."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; it runs from the first time that it is asked for."""
        with self._lock:
            if self._loop is None:
                import asyncio

                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="calls", daemon=True).start()
            return self._loop


class RunningCall:
    """One call that is streamed, or can be cancelled, seen from its slot's thread.

    Args:
        request_id: its request's.
        loop: where it may run.
        cancellation: its own.
        emit: writes an event to the slot's pipe.
        stream: how it is streamed; None: it isn't.
    """

    def __init__(
        self,
        request_id: int,
        loop: CallLoop,
        cancellation: Cancellation,
        emit: Callable[[Event], None],
        stream: StreamArgs | None,
    ) -> None:
        self.cancellation = cancellation
        self.stream = stream
        self._request_id = request_id
        self._loop = loop
        self._emit = emit

    def give(self, piece: Piece) -> None:
        """Write a piece; waits until the pipe takes it.

        Raises:
            CallRefused: it can't be sent.
            CallCancelled: nobody reads it.
        """
        self.cancellation.check()
        try:
            self._emit(Event(self._request_id, "status" if isinstance(piece, Status) else "chunk", piece))
        except OSError as error:
            raise CallCancelled from error
        except FrameTooLarge as error:
            raise CallRefused("result_too_large", f"a piece of the result can't be sent: {error}") from error
        except EncodeError as error:
            raise CallRefused("encode_error", f"a piece of the result {error}") from error

    def run(self, work: Callable[[Outlet], Coroutine[Any, Any, T]]) -> T:
        """Run it on the loop and write its pieces as they come; waits for its end, whatever happens.

        Raises:
            CallCancelled: it was cancelled.
            CallRefused: a piece can't be sent.
            BaseException: what it raised.
        """
        from dspool.worker.call_loop import run  # asyncio is a fifth of a worker's start, for what few programs do

        return run(self._loop.loop, work, self.cancellation, self.give)


def item_of(value: Any) -> ItemChunk:
    """What a generator gave, as a piece.

    Raises:
        CallRefused: it has no plain form.
    """
    try:
        return ItemChunk(values.to_plain(value, "item"))
    except EncodeError as error:
        raise CallRefused("encode_error", f"a piece of the result can't be sent: {error}") from error
