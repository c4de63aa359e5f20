"""Stream and AsyncStream: a call whose pieces are handed out as they come, its result last.

Rules:
    1. The steps of the call are suspended while the caller has a piece. To close them is to cancel the call, and takes
       no wait: so leaving early is the same for threads, tasks and the garbage collector.
    2. The caller's pace is the worker's: what isn't read stays in the pipe, and the worker waits for room in it.
    3. After an error, or an interrupt in a wait, a stream is over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import anyio.lowlevel

from dspool.errors import OptionsError, PoolError
from dspool.pool.data_path import Driven
from dspool.pool.driver import Driver
from dspool.pool.interrupts import guarded
from dspool.pool.polling import drive
from dspool.pool.programs import Program
from dspool.pool.steps import Steps, until_piece
from dspool.pool.unsendable import pickled_or_named
from dspool.protocol.messages import Event, FieldChunk, ItemChunk, LMChunk, StreamArgs

if TYPE_CHECKING:
    from dspool.pool.aio import AsyncPool
    from dspool.pool.front import PoolFront

PROVIDER_NOT_SENT = "the provider of status messages can't be sent to a worker"
LET_IT_MAKE_THEM = "Let its methods make what they use"
_NOTHING: Any = object()
_left_to_parent: list[Any] = []
"""Steps that a forked process found among its garbage. Closing them is the parent's affair."""


def stream_args(fields: str | Iterable[str] | None, status: Any) -> StreamArgs:
    """The arguments of stream() as a worker takes them.

    Raises:
        OptionsError: `fields` or `status` is something else.
        EncodeError: the status provider can't be pickled.
    """
    if isinstance(fields, str):
        fields = [fields]
    if fields is not None:
        fields = list(fields) if isinstance(fields, Iterable) else [fields]
        if not all(isinstance(field, str) for field in fields):
            raise OptionsError(f"fields must be names of output fields, as strings, or None; it is {fields!r}")
    named = isinstance(status, str) and ":" in status
    made = callable(status) or hasattr(status, "tool_start_status_message")
    if not (status is None or isinstance(status, bool) or named or made):
        raise OptionsError(
            "status must be True, False, a StatusMessageProvider of DSPy's, or the import path of one, "
            f'"package.module:attribute"; it is {status!r:.100}'
        )
    if status is None:
        status = False
    elif not isinstance(status, bool | str):
        status = pickled_or_named(status, "status", PROVIDER_NOT_SENT, LET_IT_MAKE_THEM)
    return StreamArgs(fields, status)


class _Pieces:
    """What both streams have in common."""

    def __init__(self, front: PoolFront, driver: Driver, program: Program, steps: Steps[Driven]) -> None:
        self._front = front
        self._driver = driver
        self._program = program
        self._steps = steps
        self._over = False
        self._taking = threading.Lock()

    def _begin(self) -> None:
        if not self._taking.acquire(blocking=False):
            raise PoolError(
                f"pool {self._driver.name!r}: a stream gives one piece at a time; another caller waits for it"
            )

    def _piece(self, event: Event | None, end: Driven | None) -> Any:
        """What the caller gets; _NOTHING where the stream is over without a value."""
        if event is not None:
            return piece_of(event)
        self._over = True
        assert end is not None
        response, worker_id = end
        result = response.result
        if response.success and isinstance(result, dict) and "returned" in result:  # a generator's
            return _NOTHING if result["returned"] is None else result["returned"]
        return self._front._finish(self._program, response, worker_id)

    @guarded
    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._driver.pid == os.getpid():
            self._steps.close()
        else:
            _left_to_parent.append(self._steps)

    def _leave(self) -> None:
        """Close it, where nobody waits for a piece of it."""
        self._begin()
        try:
            self._end()
        finally:
            self._taking.release()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._end()


def piece_of(event: Event) -> Any:
    """A piece as its caller gets it."""
    data = event.data
    if isinstance(data, ItemChunk):
        return data.value
    if isinstance(data, LMChunk):  # nobody asked for
        return data.data
    from dspy.streaming import StatusMessage, StreamResponse

    if isinstance(data, FieldChunk):
        return StreamResponse(data.predict_name, data.signature_field_name, data.chunk, data.is_last_chunk)
    return StatusMessage(data.message)


class Stream(_Pieces, Iterator[Any]):
    """A call's pieces, for threads; from Pool.stream(). To leave it early: `with`, or let it go."""

    def __next__(self) -> Any:
        self._begin()
        try:
            if self._over:
                raise StopIteration
            self._driver.check_process()
            piece = self._piece(*drive(self._driver, until_piece(self._steps)))
        except BaseException:
            self._end()
            raise
        finally:
            self._taking.release()
        if piece is _NOTHING:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Cancel the call, unless it has ended. Idempotent; returns at once.

        Raises:
            PoolError: another thread waits for the next piece.
        """
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncStream(_Pieces, AsyncIterator[Any]):
    """A call's pieces, for tasks; from AsyncPool.stream(). To leave it early: `async with`, or let it go."""

    _front: AsyncPool

    async def __anext__(self) -> Any:
        self._begin()
        try:
            if self._over:
                raise StopAsyncIteration
            self._driver.check_process()
            await anyio.lowlevel.checkpoint()
            piece = self._piece(*await self._front._drive(until_piece(self._steps)))
        except BaseException:
            self._end()
            raise
        finally:
            self._taking.release()
        if piece is _NOTHING:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Cancel the call, unless it has ended. Idempotent; returns at once.

        Raises:
            PoolError: another task waits for the next piece.
        """
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._leave()
