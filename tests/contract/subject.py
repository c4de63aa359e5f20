"""A pool under test, blocking or async, with the same awaitable face, and what a test needs around it."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

import dspool
from dspool.pool.lease import AsyncLease, Lease
from dspool.pool.streams import AsyncStream, Stream
from dspool.testing.scripted import behave
from tests.contract.backends import DEADLINE_S, Backend, Gate

_RUN_OPTIONS = frozenset(
    {"session", "affinity", "on_session_lost", "timeout_s", "priority", "require", "lm", "idempotent"}
)
_END = object()


class Events:
    """An on_event hook that a test can wait with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._lock:
            self.seen.append((event, dict(fields)))
        try:
            self._in.send(b"x")
        except OSError:
            return  # the test is over, or didn't look for long

    async def wait(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait until the event has come `count` times with these fields; gives the last one's."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                with self._lock:
                    found = [more for name, more in self.seen if name == event and fields.items() <= more.items()]
                if len(found) >= count:
                    return found[count - 1]
                await anyio.wait_readable(self._out)
                self._out.recv(4096)

    def names(self) -> list[str]:
        """The events so far."""
        with self._lock:
            return [name for name, _ in self.seen]

    def close(self) -> None:
        """The test is over."""
        self._out.close()
        self._in.close()


class Subject:
    """The pool. Calls of a blocking one go through a thread."""

    def __init__(self, pool: dspool.Pool | dspool.AsyncPool, backend: Backend, events: Events) -> None:
        self.pool = pool
        self.backend = backend
        self.events = events

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call any method of the pool."""
        function = getattr(self.pool, method)
        if isinstance(self.pool, dspool.AsyncPool):
            return await function(*args, **kwargs)
        return await in_thread(function, *args, **kwargs)

    async def run(self, do: str = "echo", **mixed: Any) -> Any:
        """pool.run(behave, {"do": do, ...}); run()'s own options are told from inputs by their names."""
        options = {name: value for name, value in mixed.items() if name in _RUN_OPTIONS}
        inputs = {name: value for name, value in mixed.items() if name not in _RUN_OPTIONS}
        return await self.call("run", behave, {"do": do, **inputs}, **options)

    async def meet(self, gate: Gate, value: Any = None, **options: Any) -> Any:
        """A call that begins at the gate and ends when it is let go there."""
        return await self.run("meet", path=gate.path, value=value, **options)

    def map(self, rows: Any, program: Any = behave, **options: Any) -> AsyncIterator[Any]:
        """pool.map(program, rows), as an async generator."""
        if isinstance(self.pool, dspool.AsyncPool):
            return self.pool.map(program, rows, **options)
        return _in_steps(self.pool.map(program, rows, **options))

    def stream(self, program: Any, inputs: dict[str, Any], **options: Any) -> Streamed:
        """pool.stream()."""
        return Streamed(self.pool.stream(program, inputs, **options))

    async def checkout(self, **options: Any) -> Borrowed:
        """pool.checkout()."""
        return Borrowed(await self.call("checkout", **options))

    async def stats(self) -> dspool.PoolStats:
        """pool.stats()."""
        stats: dspool.PoolStats = await self.call("stats")
        return stats

    async def health(self) -> dspool.PoolHealth:
        """pool.health()."""
        health: dspool.PoolHealth = await self.call("health")
        return health

    async def workers(self) -> list[dspool.WorkerInfo]:
        """pool.workers()."""
        workers: list[dspool.WorkerInfo] = await self.call("workers")
        return workers

    async def worker(self) -> dspool.WorkerInfo:
        """The only worker."""
        (worker,) = await self.workers()
        return worker

    async def tokens(self) -> list[int]:
        """Where calls can run now."""
        return [self.backend.token_of(worker) for worker in await self.workers()]

    async def until(self, holds: Callable[[dspool.PoolStats], bool]) -> dspool.PoolStats:
        """Wait until the pool's own figures are so. For the moments that no event tells of."""
        with anyio.fail_after(DEADLINE_S):
            while not holds(stats := await self.stats()):  # noqa: ASYNC110  there is no event to wait for
                await anyio.sleep(0.001)
        return stats


class Streamed:
    """A stream under test, as an async iterator."""

    def __init__(self, stream: Stream | AsyncStream) -> None:
        self.stream = stream
        self.given: list[Any] = []
        """The pieces so far."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if isinstance(self.stream, AsyncStream):
            piece = await anext(self.stream)
        elif (piece := await in_thread(next, self.stream, _END)) is _END:
            raise StopAsyncIteration
        self.given.append(piece)
        return piece

    async def all(self) -> list[Any]:
        """Every piece."""
        return [piece async for piece in self]

    async def close(self) -> None:
        """stream.close()."""
        if isinstance(self.stream, AsyncStream):
            await self.stream.aclose()
        else:
            await in_thread(self.stream.close)


class Borrowed:
    """A lease under test."""

    def __init__(self, lease: Lease | AsyncLease) -> None:
        self.lease = lease

    async def run(self, do: str = "echo", **mixed: Any) -> Any:
        """lease.run(behave, {"do": do, ...})."""
        options = {name: mixed.pop(name) for name in ("timeout_s", "lm") if name in mixed}
        return await self.call(behave, {"do": do, **mixed}, **options)

    async def call(self, program: Any, inputs: dict[str, Any], **options: Any) -> Any:
        """lease.run()."""
        if isinstance(self.lease, AsyncLease):
            return await self.lease.run(program, inputs, **options)
        return await in_thread(self.lease.run, program, inputs, **options)

    def stream(self, program: Any, inputs: dict[str, Any], **options: Any) -> Streamed:
        """lease.stream()."""
        return Streamed(self.lease.stream(program, inputs, **options))

    async def close(self) -> None:
        """lease.close()."""
        if isinstance(self.lease, AsyncLease):
            await self.lease.close()
        else:
            await in_thread(self.lease.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.lease, AsyncLease):
            await self.lease.__aexit__(kind, error, trace)
        else:
            self.lease.__exit__(kind, error, trace)


class World:
    """Makes pools of one kind (`front`) over workers of one kind (`backend`)."""

    def __init__(self, front: str, backend: Backend, name: Callable[[], str]) -> None:
        self.front = front
        self.backend = backend
        self._name = name

    def gate(self) -> Gate:
        """A gate for calls to meet at."""
        return self.backend.gate()

    def make(self, *, faults: tuple[str | None, ...] = (), **options: Any) -> Subject:
        """A pool that isn't open."""
        events = Events()
        settings: dict[str, Any] = {
            "name": self._name(),
            "workers": 1,
            "on_event": events,
            "timeout_s": DEADLINE_S,
            "launcher": self.backend.launcher(faults),
            **self.backend.options(),
            **options,
        }
        kind = dspool.Pool if self.front == "pool" else dspool.AsyncPool
        try:
            return Subject(kind(**settings), self.backend, events)
        except BaseException:
            events.close()
            raise

    @asynccontextmanager
    async def pool(self, **options: Any) -> AsyncIterator[Subject]:
        """An open pool, closed at the end."""
        subject = self.make(**options)
        try:
            await subject.call("open")
            try:
                yield subject
            finally:
                await subject.call("close", 0.0)
        finally:
            subject.events.close()


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it on a thread."""
    return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs))


async def _in_steps(iterator: Any) -> AsyncIterator[Any]:
    """A blocking iterator as an async one."""
    try:
        while (item := await in_thread(next, iterator, _END)) is not _END:
            yield item
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(iterator.close)


class Outcome:
    """What became of a call that was started beside the test."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    async def get(self) -> Any:
        """Its value, or its exception raised."""
        with anyio.fail_after(DEADLINE_S):
            await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


class Beside:
    """Calls beside the test; what they raise is for the test to look at."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.tasks = tasks

    def start(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
        """Start one."""
        outcome = Outcome()

        async def run() -> None:
            try:
                outcome.value = await call(*args, **kwargs)
            except Exception as error:
                outcome.error = error
            finally:
                outcome.done.set()

        self.tasks.start_soon(run)
        return outcome


@asynccontextmanager
async def beside() -> AsyncIterator[Beside]:
    """Calls beside the test; the block ends when they have."""
    async with anyio.create_task_group() as tasks:
        yield Beside(tasks)


async def gather(*calls: Outcome) -> list[Any]:
    """Their values, in order."""
    return [await call.get() for call in calls]


def reasons(reports: Iterable[Any]) -> list[str]:
    """The exit reasons of reports."""
    return [report.reason for report in reports]
