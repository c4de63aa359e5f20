"""map: a program over many rows, with a bounded number in flight, in order or as they finish.

A RowPump does the work on an event loop: AsyncPool's own, or, for Pool, one on a background thread, so that rows go on
while the caller looks at results, and leaving early cancels what runs.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from dspool.errors import OptionsError
from dspool.pool.interrupts import guarded
from dspool.pool.progress import Progress
from dspool.pool.row_pump import Done, RowPump, RunRow
from dspool.pool.threads import start_thread
from dspool.pool.waits import ThreadWaits, drive_async

if TYPE_CHECKING:
    from dspool.pool.blocking import Pool

_CLOSE_S = 5.0
"""How long leaving an async map early waits for its calls to be cancelled."""


class Sorter:
    """Results as they come -> results as they are wanted."""

    def __init__(self, *, ordered: bool, with_index: bool, return_exceptions: bool) -> None:
        self._ordered = ordered
        self._with_index = with_index
        self._return_exceptions = return_exceptions
        self._held: dict[int, Done] = {}
        self._next = 0

    def put(self, done: Done) -> None:
        """A row has ended."""
        self._held[done.index if self._ordered else self._next + len(self._held)] = done

    def take(self) -> Done | None:
        """The next result to hand out, if it is there."""
        done = self._held.pop(self._next, None)
        if done is not None:
            self._next += 1
        return done

    def value(self, done: Done) -> Any:
        """What the caller gets for it; raises the row's exception unless exceptions are to be returned."""
        if done.error is not None and not (self._return_exceptions and isinstance(done.error, Exception)):
            raise done.error
        value = done.value if done.error is None else done.error
        return (done.index, value) if self._with_index else value


def check_rows(rows: object) -> None:
    """Rows must be something to iterate over."""
    if isinstance(rows, (str, bytes, Mapping)) or not (hasattr(rows, "__iter__") or hasattr(rows, "__aiter__")):
        raise OptionsError(f"rows must be an iterable of mappings, one for each call; got a {type(rows).__name__}")


def check_concurrency(concurrency: int | None, slots: int) -> int:
    """How many rows at a time: as asked, else as many as there are slots."""
    if concurrency is None:
        return max(1, slots)
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= 100_000:
        raise OptionsError(f"concurrency must be a whole number, 1 to 100,000; it is {concurrency!r}")
    return concurrency


def map_rows(
    pool: Pool,
    program: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    concurrency: int | None,
    ordered: bool,
    with_index: bool,
    return_exceptions: bool,
    progress: bool,
    as_run: dict[str, Any],
) -> Iterator[Any]:
    """See Pool.map. Arguments are checked here, at once; the rest is lazy."""
    check_rows(rows)
    width = check_concurrency(concurrency, pool._target * pool.options.slots)
    pool._prepare_row(program, {}, as_run)  # a program or an option that can't work is told now, not at the first row
    bar = Progress(len(rows) if isinstance(rows, Sized) else None, pool.name, shown=progress)
    sorter = Sorter(ordered=ordered, with_index=with_index, return_exceptions=return_exceptions)
    return _rows_done(_Background(pool, program, rows, width, as_run), sorter, bar)


def _rows_done(background: _Background, sorter: Sorter, bar: Progress) -> Iterator[Any]:
    try:
        with bar:
            while True:
                done = sorter.take()
                if done is None:
                    done = background.get()
                    if done.index < 0:
                        break
                    bar.row_done(failed=done.error is not None)
                    sorter.put(done)
                    continue
                background.handed_out()
                yield sorter.value(done)
    finally:
        try:
            background.cancel()
        except KeyboardInterrupt:  # perhaps before it had begun
            background.cancel()
            raise
        finally:
            background.join()


class _Background:
    """A RowPump on a thread with a loop of its own."""

    def __init__(self, pool: Pool, program: Any, rows: Iterable[Any], concurrency: int, as_run: dict[str, Any]) -> None:
        self._pool = pool
        self._program = program
        self._rows = rows
        self._concurrency = concurrency
        self._as_run = as_run
        self._results: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._post: Callable[..., Any] | None = None
        self._pump: RowPump | None = None
        self._cancelled = False
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self) -> Done:
        """The next row that has ended."""
        if self._thread is None:
            self._start()
        done = self._results.get()
        if done.index < 0 and done.error is not None and not self._cancelled:
            raise done.error
        return done

    @guarded
    def _start(self) -> None:
        context = contextvars.copy_context()  # the caller's DSPy settings are in it
        name = f"dspool-map-{self._pool.name}"
        thread = threading.Thread(target=context.run, args=(self._main,), name=name, daemon=True)
        self._thread = thread  # before it runs: whoever is interrupted meanwhile cancels it
        start_thread(thread, self._pool.name, otherwise=self._forget_thread)

    def _forget_thread(self) -> None:
        self._thread = None

    def _main(self) -> None:
        """The thread. Whatever ends it, the caller is told."""
        try:
            if (sniffio := sys.modules.get("sniffio")) is not None:
                sniffio.current_async_library_cvar.set(None)  # so is which loop the caller runs on; this one is ours
            anyio.run(self._serve)
        except BaseException as error:
            self._results.put(Done(-1, error=error))
        finally:
            self._started.set()

    def handed_out(self) -> None:
        """A result was handed out."""
        if self._pump is not None:
            self._tell(self._pump.handed_out)

    @guarded
    def cancel(self) -> None:
        """Cancel what runs. Idempotent."""
        self._cancelled = True
        if self._thread is not None:
            self._started.wait()
            if self._pump is not None:
                self._tell(self._pump.cancel)

    def join(self) -> None:
        """Wait until it is over. The caller's own rows may hold that up, so an interrupt ends the wait."""
        if self._thread is not None:
            self._thread.join()

    def _tell(self, what: Callable[[], None]) -> None:
        assert self._post is not None
        try:
            self._post(what)
        except RuntimeError:
            return  # its loop has ended: there is nothing left to tell

    async def _serve(self) -> None:
        import asyncio

        try:
            waits = ThreadWaits(self._pool._driver)
            self._post = asyncio.get_running_loop().call_soon_threadsafe

            async def run_row(row: Any) -> Any:
                _, resolved, steps = self._pool._prepare_row(self._program, row, self._as_run)
                response, worker_id = await drive_async(steps, waits)
                return self._pool._finish(resolved, response, worker_id)

            self._pump = RowPump(self._rows, run_row, self._concurrency, self._results.put)
        finally:
            self._started.set()
        await self._pump.run()


class AsyncRows(AsyncIterator[Any]):
    """AsyncPool.map's results: an async iterator. Leaving early: aclose(), or let it go."""

    def __init__(
        self, rows: Any, run_row: RunRow, concurrency: int, sorter: Sorter, bar: Progress, start: Callable[..., Any]
    ) -> None:
        self._sorter = sorter
        self._bar = bar
        self._start: Callable[..., Any] | None = start
        self._ended: deque[Done] = deque()
        self._came = anyio.Event()
        """Set when there is something new to look at: a row's end, or our own."""
        self._pump = RowPump(rows, run_row, concurrency, self._take_in)
        self._over = False

    def _take_in(self, done: Done) -> None:
        if not self._over:
            self._ended.append(done)
            self._came.set()

    async def _next_ended(self) -> Done:
        """The next row that has ended, or the end of the pump."""
        await anyio.lowlevel.checkpoint()
        while not self._ended:
            if self._over:  # closed by another task
                return Done(-1)
            if self._came.is_set():
                self._came = anyio.Event()
            await self._came.wait()
        return self._ended.popleft()

    async def __anext__(self) -> Any:
        if self._start is not None:
            self._start(self._pump.run)
            self._start = None
            self._bar.__enter__()
        while not self._over:
            done = self._sorter.take()
            if done is not None:
                self._pump.handed_out()
                try:
                    return self._sorter.value(done)
                except BaseException:
                    await self.aclose()
                    raise
            done = await self._next_ended()
            if done.index < 0:
                await self.aclose()
                if done.error is not None:
                    raise done.error
                break
            self._bar.row_done(failed=done.error is not None)
            self._sorter.put(done)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel what runs and wait until it is over. Idempotent."""
        if not self._over:
            self._over = True
            self._came.set()
            self._pump.cancel()
            if self._start is None:
                with anyio.move_on_after(_CLOSE_S, shield=True):
                    await self._pump.over.wait()
                self._bar.__exit__(None, None, None)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._over = True
            if self._start is None and not self._pump.over.is_set():
                with contextlib.suppress(RuntimeError):  # its event loop has ended before the pump's first step
                    self._pump.cancel()
