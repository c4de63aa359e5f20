"""The stub's HTTP server: one asyncio loop, its counters, and the connections it holds.

Rules:

* Every request to a model endpoint ends in exactly one way, and the counters say which:
  ``requests == answered + aborted + cut + in_flight``.
* Everything runs on the loop's thread; nothing is locked. Others learn the state over HTTP: ``GET /stats``, and
  ``GET /stats?after=VERSION``, which is answered when the counters have changed since.
* Memory is bounded: the last requests are kept up to a number and a size, and so are error texts.

This module must not know HTTP (`stub_connection`), what an answer says (`stub_answers`) or when something goes wrong
(`stub_plan`).
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable

import msgspec

from dspool.testing.stub_connection import Connection
from dspool.testing.stub_plan import Plan
from dspool.testing.stub_request import StubCall, StubRequest

__all__ = ["StubServer", "StubStats"]

_KEPT_BYTES = 8 * 1024 * 1024
_KEPT_ERRORS = 10
_BACKLOG = 1024


class StubStats(msgspec.Struct, frozen=True, kw_only=True):
    """The stub's counters at one instant.

    Attributes:
        requests: Requests to a model endpoint, whatever became of them.
        answered: Those answered in full; an error that the plan wanted is an answer too.
        aborted: Those whose client left before the end.
        cut: Those that the stub itself broke off (``reset``, or stopped while they ran).
        rejected: Those of the answered that weren't a valid request, and got status 400.
        in_flight: Those begun and not ended now.
        max_in_flight: The highest ``in_flight`` so far.
        open_streams: SSE answers begun and not ended now.
        connections: Open connections that have carried a model request.
        faults: How often each fault was played, by name.
        errors: The last tracebacks of functions given for ``answers`` or ``faults`` (status 500); at most 10.
        cpu_s: CPU seconds of the server's thread since it started, the kernel's part included.
        version: Goes up with every change of the counters.
    """

    requests: int = 0
    answered: int = 0
    aborted: int = 0
    cut: int = 0
    rejected: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    open_streams: int = 0
    connections: int = 0
    faults: dict[str, int] = {}
    errors: list[str] = []
    cpu_s: float = 0.0
    version: int = 0


class StubServer:
    """The server's state and counters; `serve` runs it on the calling thread's loop.

    Args:
        say: Gives the assistant's message for a request.
        plan: Latency and faults.
        retry_after_s: The ``Retry-After`` of statuses 429 and 503, in seconds.
        piece_interval_s: The pause between two SSE events, in seconds.
        slow_interval_s: The pause between two pieces of an answer whose fault is ``slow``, in seconds.
        keep_requests: How many of the last requests to remember; together at most 8 MiB of them.
    """

    def __init__(
        self,
        say: Callable[[StubRequest], str],
        plan: Plan,
        *,
        retry_after_s: float = 0.0,
        piece_interval_s: float = 0.0,
        slow_interval_s: float = 0.02,
        keep_requests: int = 100,
    ) -> None:
        self.say = say
        self.plan = plan
        self.retry_after_s = retry_after_s
        self.piece_interval_s = piece_interval_s
        self.slow_interval_s = slow_interval_s
        self.connections: set[Connection] = set()
        self.watchers: set[Connection] = set()
        self.stopping = False
        self.requests = self.answered = self.aborted = self.cut = self.rejected = 0
        self.in_flight = self.max_in_flight = self.open_streams = self.used_connections = self.version = 0
        self.faults: dict[str, int] = {}
        self.errors: collections.deque[str] = collections.deque(maxlen=_KEPT_ERRORS)
        self.calls: collections.deque[StubCall] = collections.deque(maxlen=keep_requests)
        self.loop: asyncio.AbstractEventLoop
        self._keep = keep_requests
        self._kept: collections.deque[bytes] = collections.deque()
        self._kept_bytes = 0
        self._cpu_start = 0.0
        self._stop: asyncio.Event
        self._empty: asyncio.Event

    async def serve(self, port: int, on_listening: Callable[[int], None]) -> None:
        """Serve on 127.0.0.1 until `stop`; every connection is closed on return.

        Args:
            port: The port; 0 for any free one.
            on_listening: Called with the port once connections are accepted.

        Raises:
            OSError: The port is taken.
        """
        self.loop = asyncio.get_running_loop()
        self._stop, self._empty = asyncio.Event(), asyncio.Event()
        self._cpu_start = time.thread_time()
        server = await self.loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=_BACKLOG)
        on_listening(server.sockets[0].getsockname()[1])
        try:
            await self._stop.wait()
        finally:
            self.stopping = True
            server.close()
            for connection in tuple(self.connections):
                connection.transport.abort()
            if self.connections:
                await self._empty.wait()
            await server.wait_closed()

    def stop(self) -> None:
        """Ask `serve` to return. On the loop's thread only."""
        self._stop.set()

    def stats(self) -> StubStats:
        """Return the counters as they are now. On the loop's thread only."""
        return StubStats(
            requests=self.requests,
            answered=self.answered,
            aborted=self.aborted,
            cut=self.cut,
            rejected=self.rejected,
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            open_streams=self.open_streams,
            connections=self.used_connections,
            faults=dict(self.faults),
            errors=list(self.errors),
            cpu_s=time.thread_time() - self._cpu_start,
            version=self.version,
        )

    def kept_requests(self) -> list[bytes]:
        """Return the bodies of the last requests, oldest first."""
        return list(self._kept)

    def keep(self, raw: bytes) -> None:
        """Remember a request's body, and forget the oldest ones beyond the limits."""
        self._kept.append(raw)
        self._kept_bytes += len(raw)
        while self._kept and (len(self._kept) > self._keep or self._kept_bytes > _KEPT_BYTES):
            self._kept_bytes -= len(self._kept.popleft())

    def changed(self) -> None:
        """Note that a counter has changed, and answer those who wait for that once this step is over."""
        self.version += 1
        if self.watchers:
            self.loop.call_soon(self._answer_watchers)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.watchers.discard(connection)
        if self.stopping and not self.connections:
            self._empty.set()

    def _answer_watchers(self) -> None:
        watchers, self.watchers = self.watchers, set()
        for connection in watchers:
            connection.answer_watch()
