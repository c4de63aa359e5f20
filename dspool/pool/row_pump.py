"""Rows in, their ends out: takes rows from an iterable, runs a bounded number at a time, and tells of each end.

The window bounds what is taken from the rows and not yet handed out, so a slow caller or a slow first row holds the
pump up instead of filling memory. Whose event loop it runs on, and who waits for the ends, is mapping.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sized
from typing import Any

import anyio
import msgspec

from dspool.errors import PoolClosed
from dspool.supervisor.starting import start_soon

RunRow = Callable[[Any], Awaitable[Any]]
_WINDOW = 4
"""Rows that may be taken and not yet handed out, for each row in flight."""
_MOST_AT_ONCE = 10_000
_OWN = (Exception, GeneratorExit, SystemExit, KeyboardInterrupt)
"""What user code may raise; a cancellation of ours is none of these."""


class RowsFailed(Exception):
    """`rows` raised; what it raised is the cause."""


class Done(msgspec.Struct):
    """A row's end: its value, or the exception it raised. index -1: the pump has ended."""

    index: int
    value: Any = None
    error: BaseException | None = None


class RowPump:
    """Runs rows, `concurrency` at a time, and emits a Done for each.

    Args:
        rows: an iterable or an async iterable.
        run_row: runs one row.
        concurrency: how many at a time.
        emit: takes each Done, and Done(-1) at the very end; called on the pump's loop.
    """

    def __init__(self, rows: Any, run_row: RunRow, concurrency: int, emit: Callable[[Done], None]) -> None:
        self._is_async = hasattr(rows, "__aiter__")
        self._most = len(rows) if isinstance(rows, Sized) else _MOST_AT_ONCE
        self._at_hand = isinstance(rows, (list, tuple, range, dict, set))
        self._rows = rows.__aiter__() if self._is_async else iter(rows)
        self._run_row = run_row
        self._concurrency = concurrency
        self._emit = emit
        self._window = anyio.Semaphore(concurrency * _WINDOW)
        self._taking = anyio.Lock()
        self._taken = 0
        self._scope = anyio.CancelScope()
        self._left = False
        """The caller wants no more."""
        self.over = anyio.Event()
        """run() has ended."""

    def handed_out(self) -> None:
        """The caller has a row's result: another may be taken. On the pump's loop."""
        self._window.release()

    def cancel(self) -> None:
        """Stop: cancel what runs, take nothing more. On the pump's loop."""
        self._left = True
        self._scope.cancel()

    async def run(self) -> None:
        """Run all rows. What goes wrong is in the last Done.

        Cancellation: from outside, by the end of the pool; the caller is told that rows are missing.
        """
        end = Done(-1)
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for _ in range(min(self._concurrency, self._most)):
                        start_soon(tasks, self._work)
        except Exception as error:
            end.error = error
        except BaseException as error:
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            end.error = PoolClosed("the pool was closed before the map had run all its rows") if cancelled else error
            raise
        finally:
            if self._left:
                end.error = None
            self.over.set()
            self._emit(end)

    async def _next_row(self) -> Any:
        """A row, or self where there are no more. An iterator that may take its time does so on a thread."""
        if self._is_async:
            return await self._rows.__anext__()
        row, error = (
            self._take() if self._at_hand else await anyio.to_thread.run_sync(self._take, abandon_on_cancel=True)
        )
        if error is not None:
            raise RowsFailed from error
        return row

    def _take(self) -> tuple[Any, BaseException | None]:
        """What `rows` raises is its own: not a cancellation of ours, and not our end."""
        try:
            return next(self._rows, self), None
        except BaseException as error:
            return None, error

    async def _work(self) -> None:
        while True:
            await self._window.acquire()
            async with self._taking:
                done = Done(self._taken)
                self._taken += 1
                try:
                    row = await self._next_row()
                except StopAsyncIteration:
                    row = self
                except (*_OWN, RowsFailed) as error:  # the caller's own iterable failed
                    done.error = error.__cause__ if isinstance(error, RowsFailed) else error
                    self._emit(done)
                    self._rows, self._is_async = iter(()), False
                    return
            if row is self:
                return
            try:
                done.value = await self._run_row(row)
            except _OWN as error:
                done.error = error
            self._emit(done)
