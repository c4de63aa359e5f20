"""Executor: a `concurrent.futures.Executor` over a pool, so that code written for ProcessPoolExecutor can move over.

    with dspool.Executor(4) as executor:
        for result in executor.map(work, rows):
            ...

It is for functions of your own, in your own processes: functions and arguments are pickled. What it has beyond the
standard's is what a pool has: a call that is cancelled while it runs is ended, a worker's death fails its own call
alone, and a worker that hangs, grows or gets old is replaced.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from dspool.errors import OptionsError
from dspool.logs import get_logger
from dspool.option_values import did_you_mean
from dspool.options import PoolOptions
from dspool.pool.blocking import Pool
from dspool.pool.executor_calls import Dispatcher, ExecutorBroken
from dspool.pool.interrupts import guarded
from dspool.pool.submitted import Call, SubmittedFuture
from dspool.pool.unsendable import A_POOL_STAYS, pickled_or_named
from dspool.protocol.submitted import Entry, run_chunk

P = ParamSpec("P")
T = TypeVar("T")
_KILL_S = 10.0
"""How long the interpreter's exit waits for calls that were ended."""
_OWN_DEFAULTS: dict[str, Any] = {
    "min_ready": 0,
    "timeout_s": None,
    "max_waiting": 1_000_000,
    "quarantine_after": None,
    "preload": ("cloudpickle",),
}
"""Where the pool of an executor differs from a pool, unless it is told otherwise: no limits that the standard's
executors don't have, and workers begin when there is something to do."""
_INSTEAD = {
    "mp_context": "start_method='template' or 'spawn' says how workers start",
    "max_tasks_per_child": "max_requests= says after how many calls a worker is replaced",
    "workers": "max_workers= says how many",
}
_OWN_OPTIONS = {"max_workers", "initializer", "initargs", "pool", "unpickle_results"}

_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_exiting = False


class Executor(concurrent.futures.Executor):
    """Runs functions in the workers of a pool, as `concurrent.futures.ProcessPoolExecutor` does.

        with dspool.Executor(max_workers=4, initializer=connect, initargs=(url,)) as executor:
            future = executor.submit(work, 1, mode="fast")
            print(future.result(timeout=10))

    Functions, arguments and what the initializer takes are pickled with cloudpickle: what a script or notebook defines
    travels by value, and no `if __name__ == "__main__"` guard is needed. Any thread may use it. Workers start with the
    first call.

    Args:
        max_workers: worker processes; None: usable cores.
        initializer: called once in each worker before its first call. One that raises breaks the executor.
        initargs: its arguments.
        pool: an open Pool to use instead of one of its own; it is left open.
        unpickle_results: let results and exceptions be any objects, unpickled in this process: only where everything
            that runs in the workers is trusted like this process's own code. Without it results are plain data (None,
            bool, int, float, str, bytes, list, tuple, dict, set, datetime, Decimal, UUID), a function that returns
            anything else fails, and what it raises is a ProgramError.
        options: the pool's options, as PoolOptions has them; calls have no deadline unless `timeout_s` is given.

    Raises:
        OptionsError: an option is unknown or out of range. It is a ValueError.
        TypeError: the initializer can't be called.
        EncodeError: the initializer can't be pickled.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        pool: Pool | None = None,
        unpickle_results: bool = False,
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        if pool is not None and not isinstance(pool, Pool):
            raise OptionsError(f"pool must be a dspool.Pool, not a {type(pool).__name__}")
        if pool is not None and (max_workers is not None or options):
            given = ", ".join(["max_workers"] * (max_workers is not None) + [*options])
            raise OptionsError(f"pool={pool!r} has its own workers and options; leave out {given}")
        if max_workers is not None and isinstance(max_workers, int) and max_workers <= 0:
            raise OptionsError(f"max_workers must be greater than 0; it is {max_workers!r}")
        if isinstance(max_workers, Pool):
            raise OptionsError("the first argument is max_workers; a pool goes by its name: Executor(pool=pool)")
        if max_workers is not None and not isinstance(max_workers, int):
            raise OptionsError(f"max_workers must be a whole number; it is {max_workers!r:.80}")
        _check_names(options)
        entry = Entry(uuid.uuid4().hex, _pickled_initializer(initializer, tuple(initargs)), bool(unpickle_results))
        own = pool is None
        if pool is None:
            options = {**_OWN_DEFAULTS, **options}
            warm = options.get("warm", ())
            options["warm"] = (*(warm if isinstance(warm, (list, tuple)) else (warm,)), entry)
            pool = Pool(workers=max_workers, **options)
        self.pool = pool
        """The pool that runs the calls, for stats(), health() and workers()."""
        self._lock = threading.RLock()  # a signal handler's shutdown() may come in the middle of submit()
        self._closed = False
        self._dispatcher = Dispatcher(pool, entry, own=own, has_initializer=initializer is not None)
        self._end = weakref.finalize(self, self._dispatcher.finish)
        self._end.atexit = False

    def __repr__(self) -> str:
        return f"<Executor over {self.pool!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(A_POOL_STAYS)

    @property
    def _broken(self) -> ExecutorBroken | None:
        return self._dispatcher.broken

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> SubmittedFuture[T]:
        """Call `fn(*args, **kwargs)` in a worker.

        Returns:
            A future, at once. Its cancel() also ends a call that runs: the worker is killed and replaced, and the
            future is cancelled. Its result() raises what went wrong: EncodeError (the call can't be pickled),
            ProgramError (the function raised, or its result can't travel; with unpickle_results the function's own
            exception, from a ProgramError with the worker's traceback), WorkerLost (the worker died with the call in
            it), CallTimeout, another PoolError, or ExecutorBroken.

        Raises:
            RuntimeError: the executor is shut down, or the interpreter exits.
            ExecutorBroken: the initializer failed before.
            PoolError: the pool could not be opened.
        """
        return self._submit(fn, args, kwargs)

    @guarded
    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SubmittedFuture[T]:
        dispatcher = self._dispatcher
        future: SubmittedFuture[T] = SubmittedFuture(dispatcher.give_up)
        with self._lock:
            if dispatcher.broken is not None:
                raise ExecutorBroken(str(dispatcher.broken), dispatcher.broken.reports)
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if not dispatcher.started:
                self._start()
            dispatcher.put(Call(future, fn, args, kwargs))
        return future

    def _start(self) -> None:
        self._dispatcher.start()
        _dispatchers.add(self._dispatcher)
        if self._closed:  # by a signal handler meanwhile, when there was nobody to tell
            self._dispatcher.finish()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with one item of each iterable at a time, as the builtin map() does, in the workers.

        All calls are submitted at once, unless `buffersize` is given.

        Args:
            fn: the function.
            iterables: its arguments; the shortest says how many calls there are.
            timeout: seconds from now for all results; None: no limit.
            chunksize: rows that a worker is sent at a time.
            buffersize: submitted calls (chunks, with `chunksize`) whose results were not yielded yet; None: all.

        Returns:
            An iterator of the results, in the order of the rows. Leaving it early, by an error of its own too, ends the
            calls that run and forgets those that wait.

        Raises:
            TimeoutError: from the iterator, when the time is over.
            ValueError: chunksize or buffersize is under 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables)  # noqa: B905 - as the builtin map() does
        if chunksize == 1:
            waiting = deque(self.submit(fn, *row) for row in islice(rows, buffersize))
            more = (self.submit(fn, *row) for row in rows) if buffersize is not None else None
            return _results(waiting, more, deadline)
        chunks = iter(lambda: list(islice(rows, chunksize)), [])
        run: Callable[..., list[T]] = partial(run_chunk, fn)
        in_chunks = deque(self.submit(run, chunk) for chunk in islice(chunks, buffersize))
        more_chunks = (self.submit(run, chunk) for chunk in chunks) if buffersize is not None else None
        return _flat(_results(in_chunks, more_chunks, deadline))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; when those that were submitted are done, end the workers. Idempotent.

        Args:
            wait: return when the last one is done and nothing of the executor is left; inside a callback of one of its
                futures it returns at once all the same.
            cancel_futures: cancel the calls that have not begun.
        """
        with self._lock:
            self._closed = True
        self._dispatcher.finish(cancel="waiting" if cancel_futures else "none")
        if wait:
            self._dispatcher.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """As shutdown(). On the way of a KeyboardInterrupt nobody waits for what runs: it is ended."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._dispatcher.finish(cancel="all")
        self.shutdown(wait=True)
        return False


def _check_names(options: dict[str, Any]) -> None:
    """Refuse an option that an executor doesn't have, in its own words rather than its pool's."""
    known = {entry.name for entry in fields(PoolOptions)} - _INSTEAD.keys() | _OWN_OPTIONS
    for name in options:
        if name in _INSTEAD:
            raise OptionsError(f"an Executor has no option {name!r}: {_INSTEAD[name]}")
        if name not in known:
            raise OptionsError(
                f"an Executor has no option {name!r}{did_you_mean(name, known)} There are {', '.join(sorted(known))}"
            )


def _pickled_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes | None:
    if initializer is None:
        return None
    given = (initializer, initargs)
    return pickled_or_named(given, "(initializer, initargs)", "the initializer can't be pickled")


def _results(
    waiting: deque[SubmittedFuture[T]], more: Iterator[SubmittedFuture[T]] | None, deadline: float | None
) -> Iterator[T]:
    """The futures' results in their order; no reference to one that was handed out is kept."""
    try:
        while waiting:
            left_s = None if deadline is None else deadline - time.monotonic()
            with suppress(concurrent.futures.CancelledError):
                waiting[0].exception(left_s)
            if more is not None and (another := next(more, None)) is not None:
                waiting.append(another)
                del another
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _flat(chunks: Iterator[list[T]]) -> Iterator[T]:
    """The elements of the chunks, none of which is kept."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


@atexit.register
def _end_dispatchers() -> None:
    """The interpreter ends: calls that were accepted are given grace_s, as close() gives them; then they are ended."""
    global _exiting
    _exiting = True
    running = [dispatcher for dispatcher in _dispatchers if dispatcher.alive]
    for dispatcher in running:
        dispatcher.finish()
    for dispatcher in running:
        if dispatcher.join(dispatcher.pool.options.grace_s):
            continue
        get_logger("dspool.executor", pool=dispatcher.pool.name).warning(
            "executor.abandoned", calls=dispatcher.unfinished, waited_s=dispatcher.pool.options.grace_s
        )
        dispatcher.finish(cancel="all")
        dispatcher.join(_KILL_S)
