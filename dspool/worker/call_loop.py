"""The event loop's side of a call: its task, and the way of its pieces to the slot's thread.

    program, on the loop or on a thread   --put()-->   Outlet   --give()-->   the slot's thread, which writes the event

Rules:
    1. Each call is a task of its own, so that cancelling it ends what it awaits: an HTTP request to an LM is closed.
    2. A piece waits until the pipe has taken those before it, at most WINDOW of them: whoever makes pieces is held up
       by a caller who doesn't read.

Imported by the first call that wants it, or with DSPy, which has asyncio anyway. Imports no dspy.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dspool.protocol.messages import Piece
from dspool.worker.running import CallCancelled, Cancellation

T = TypeVar("T")
Work = Callable[["Outlet"], Coroutine[Any, Any, T]]
WINDOW = 16
"""Pieces that may wait for the pipe."""
MOST_STATUS = 1000
"""Status messages that may wait where their sender can't; further ones are dropped."""


class Outlet:
    """Where a call on the loop puts its pieces.

    Args:
        loop: the loop it runs on.
        cancellation: the call's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cancellation: Cancellation) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Pieces, each with whether it has waited for room; and, last, the call's task."""
        self._loop = loop
        self._cancellation = cancellation
        self._room = asyncio.Semaphore(WINDOW)

    async def put(self, piece: Piece) -> None:
        """Give a piece, once there is room for it.

        Raises:
            CallCancelled: nobody wants it.
        """
        self._cancellation.check()
        if asyncio.get_running_loop() is not self._loop:
            # DSPy sends an async program's status from a loop of its own, and blocks ours until it is through: it must
            # not wait for room that only our loop can make.
            if self.items.qsize() < MOST_STATUS:
                self.items.put((piece, False))
            return
        await self._room.acquire()
        self._cancellation.check()
        self.items.put((piece, True))

    def make_room(self) -> None:
        """A piece that had waited for room went to the pipe; from the slot's thread."""
        self._loop.call_soon_threadsafe(self._room.release)


def run(loop: asyncio.AbstractEventLoop, work: Work[T], cancellation: Cancellation, give: Callable[[Piece], None]) -> T:
    """Run a call on the loop, from another thread; see RunningCall.run."""
    outlet = Outlet(loop, cancellation)
    context = contextvars.copy_context()
    loop.call_soon_threadsafe(functools.partial(_begin, work, outlet, cancellation), context=context)
    failure: BaseException | None = None
    while not isinstance(item := outlet.items.get(), asyncio.Task):
        piece, waited = item
        if failure is None and not cancellation.requested:
            try:
                give(piece)
            except BaseException as error:
                failure = error
                cancellation.request()
        if waited:
            outlet.make_room()
    try:
        value: T = item.result()
    except BaseException as error:
        if failure is not None:
            raise failure from error
        if isinstance(error, asyncio.CancelledError) and cancellation.requested:
            raise CallCancelled from error
        raise
    if failure is not None:
        raise failure
    return value


def _begin(work: Work[T], outlet: Outlet, cancellation: Cancellation) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work(outlet))
    task.add_done_callback(outlet.items.put)
    cancellation.ends_with(lambda: loop.call_soon_threadsafe(task.cancel))
