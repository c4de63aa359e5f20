"""A way to run a function in another process, as every benchmark sees it.

Two kinds: those that block a thread (Blocking) and those that live in an event loop (InLoop), whose loop runs in a
thread of its own. A round's calls are made and timed inside that loop; only the order to begin comes from outside. So
all contestants can take turns within one run.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from benchmarks.contestants import threads
from benchmarks.harness.processes import cpu_s, descendants, own_cpu_s

Kind = Literal["floor", "dspool", "peer"]
Program = Callable[[Any], Any]
Call = Callable[[Program, Any], Any]
AsyncCall = Callable[[Program, Any], Awaitable[Any]]
PATIENCE_S = 60.0
"""How long a burst may take to end, and a loop to answer, beyond what was asked for."""


@dataclass(frozen=True)
class Burst:
    """What many callers at once got done. Times are in seconds."""

    times: list[float]
    wall_s: float
    cpu_s: float = 0.0

    @property
    def per_second(self) -> float:
        """Calls per second."""
        return len(self.times) / self.wall_s


class Contestant(ABC):
    """One who takes part.

    Attributes:
        name: as it is shown.
        kind: floor, dspool or peer.
        kills: whether one call that hangs can be ended, by its pool's own means, without losing the others.
        pids: its processes, as far as they are not this one.
    """

    def __init__(self, name: str, kind: Kind, kills: bool) -> None:
        self.name, self.kind, self.kills = name, kind, kills
        self.pids: set[int] = set()

    @abstractmethod
    def call(self, program: Program, value: Any) -> Any:
        """One call, from any thread."""

    @abstractmethod
    def _one_after_the_other(self, program: Program, value: Any, calls: int) -> list[float]: ...

    @abstractmethod
    def _at_once(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst: ...

    def time_calls(self, program: Program, value: Any, calls: int) -> tuple[list[float], float]:
        """Make so many calls one after the other. Returns each one's seconds, and the CPU seconds of all processes."""
        before = self._cpu_s()
        times = self._one_after_the_other(program, value, calls)
        return times, self._cpu_s() - before

    def burst(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst:
        """Have so many callers call again and again for so long."""
        before = self._cpu_s()
        burst = self._at_once(program, value, callers, duration_s)
        return Burst(burst.times, burst.wall_s, self._cpu_s() - before)

    def _cpu_s(self) -> float:
        return own_cpu_s() + cpu_s(self.pids)


class Blocking(Contestant):
    """Calls block their thread."""

    def __init__(self, name: str, kind: Kind, call: Call, *, kills: bool = False) -> None:
        super().__init__(name, kind, kills)
        self._call = call

    def call(self, program: Program, value: Any) -> Any:
        return self._call(program, value)

    def _one_after_the_other(self, program: Program, value: Any, calls: int) -> list[float]:
        clock, call, times = time.perf_counter, self._call, []
        for _ in range(calls):
            began = clock()
            call(program, value)
            times.append(clock() - began)
        return times

    def _at_once(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst:
        clock, call = time.perf_counter, self._call
        ready = threading.Barrier(callers + 1)
        until = [0.0]

        def caller() -> list[float]:
            times = []
            ready.wait()
            began = clock()
            while began < until[0]:
                call(program, value)
                ended = clock()
                times.append(ended - began)
                began = ended
            return times

        running = [threads.start(caller, f"caller of {self.name}") for _ in range(callers)]
        began = clock()
        until[0] = began + duration_s
        ready.wait()
        times = [seconds for one in threads.results(running, duration_s + PATIENCE_S) for seconds in one]
        return Burst(times, clock() - began)


class InLoop(Contestant):
    """Calls are awaited, in a loop that runs in a thread of its own.

    Args:
        open_call: an asynchronous context manager that gives the coroutine function to call.
        backend: "asyncio", "uvloop" or "trio".
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        open_call: Callable[[], AbstractAsyncContextManager[AsyncCall]],
        backend: str,
        *,
        kills: bool = False,
    ) -> None:
        super().__init__(name, kind, kills)
        self._open_call = open_call
        self._orders: queue.SimpleQueue[tuple[Callable[[AsyncCall], Awaitable[Any]], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(backend,), name=f"loop of {name}", daemon=True)

    @contextmanager
    def running(self) -> Iterator[InLoop]:
        """Its loop runs meanwhile."""
        self._thread.start()
        try:
            self._ready.result(PATIENCE_S)
            yield self
        finally:
            self._orders.put(None)
            self._thread.join(60)

    def call(self, program: Program, value: Any) -> Any:
        return self._order(lambda call: call(program, value))

    def _run(self, backend: str) -> None:
        options = {"use_uvloop": True} if backend == "uvloop" else {}
        try:
            anyio.run(self._serve, backend="trio" if backend == "trio" else "asyncio", backend_options=options)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                raise

    async def _serve(self) -> None:
        async with self._open_call() as call, anyio.create_task_group() as tasks:
            self._ready.set_result(None)
            while (order := await anyio.to_thread.run_sync(self._orders.get)) is not None:
                tasks.start_soon(self._carry_out, call, *order)

    @staticmethod
    async def _carry_out(call: AsyncCall, work: Callable[[AsyncCall], Awaitable[Any]], answer: Future[Any]) -> None:
        try:
            answer.set_result(await work(call))
        except Exception as error:
            answer.set_exception(error)

    def _order(self, work: Callable[[AsyncCall], Awaitable[Any]], timeout_s: float = PATIENCE_S) -> Any:
        answer: Future[Any] = Future()
        self._orders.put((work, answer))
        return answer.result(timeout_s)

    def _one_after_the_other(self, program: Program, value: Any, calls: int) -> list[float]:
        async def work(call: AsyncCall) -> list[float]:
            clock, times = time.perf_counter, []
            for _ in range(calls):
                began = clock()
                await call(program, value)
                times.append(clock() - began)
            return times

        return list(self._order(work))

    def _at_once(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst:
        async def work(call: AsyncCall) -> Burst:
            clock, times = time.perf_counter, list[float]()
            began_all = clock()
            until = began_all + duration_s

            async def caller() -> None:
                began = clock()
                while began < until:
                    await call(program, value)
                    ended = clock()
                    times.append(ended - began)
                    began = ended

            async with anyio.create_task_group() as tasks:
                for _ in range(callers):
                    tasks.start_soon(caller)
            return Burst(times, clock() - began_all)

        burst = self._order(work, duration_s + PATIENCE_S)
        assert isinstance(burst, Burst)
        return burst


@contextmanager
def adopting(contestant: Contestant) -> Iterator[Contestant]:
    """Processes that appear meanwhile are the contestant's. One at a time, or they can't be told apart."""
    before = descendants()
    yield contestant
    contestant.pids |= descendants() - before
