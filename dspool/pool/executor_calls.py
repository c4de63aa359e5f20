"""The calls of an Executor on their way: one thread with an event loop takes them from a queue to the pool's slots.

Rules:
    1. As many calls are under way as the pool has slots, and AHEAD more, which are pickled meanwhile. The others wait
       in the queue as the objects that they were submitted with, and have cost nothing yet.
    2. Who is told of a future's end is told by the loop's thread.
    3. A call that is cancelled is given up as any call of the pool: its steps end with what was really done, so that a
       call which was never sent costs no worker.
    4. finish() may be called from anywhere, a finaliser and a signal handler too: it takes no lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from dspool.errors import DspoolError, EncodeError, PoolBroken, PoolClosed, ProgramError
from dspool.logs import get_logger
from dspool.pool import data_path as path
from dspool.pool.blocking import Pool
from dspool.pool.core.commands import INFINITY
from dspool.pool.programs import Program
from dspool.pool.results import program_error
from dspool.pool.submitted import Call, Outcome, SettlingThread, SubmittedFuture, rebuilt
from dspool.pool.threads import start_thread
from dspool.pool.waits import ThreadWaits, drive_async
from dspool.protocol.messages import ErrorInfo, ExecuteArgs, Response
from dspool.protocol.requests import encode_request
from dspool.types import ExitReport

AHEAD = 2
"""Calls that are made ready beyond those that the pool's slots can take."""
Cancelled = Literal["none", "waiting", "all"]
_SEVERITY: tuple[Cancelled, ...] = ("none", "waiting", "all")


class ExecutorBroken(PoolBroken, concurrent.futures.BrokenExecutor):
    """An Executor's initializer failed, or its own thread did: it takes no more calls. Make another one.

    Attributes:
        reports: the workers that could not start for it, newest last.
    """


class Dispatcher:
    """Takes calls to a pool.

    Args:
        pool: the pool.
        entry: the program that the calls run; see dspool.protocol.submitted.
        own: whether the pool is opened and closed here.
        has_initializer: whether the entry has one, whose failure breaks the executor.
    """

    def __init__(self, pool: Pool, entry: Any, *, own: bool, has_initializer: bool) -> None:
        self.pool = pool
        self.broken: ExecutorBroken | None = None
        self._entry = entry
        self._own = own
        self._has_initializer = has_initializer
        self._pid: int | None = None
        """The process that it was started in."""
        self._waiting: deque[Call[Any]] = deque()
        self._active: dict[SubmittedFuture[Any], Call[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: ThreadWaits | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._hungry = False
        """The loop has nothing to take, and wants to be told when there is."""
        self._finishing: Cancelled | None = None
        """What is cancelled when no more calls come; None: they do."""
        self._over: asyncio.Event | None = None
        self._gone = False
        self._fault: BaseException | None = None

    # --- from any thread ------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether start() was called."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """Whether there is still something to wait for, in this process."""
        return self._thread is not None and self._thread.is_alive() and self._pid == os.getpid()

    @property
    def unfinished(self) -> int:
        """Calls that are not over."""
        return len(self._waiting) + len(self._active)

    def start(self) -> None:
        """Open the pool, if it is ours, and start the thread.

        Raises:
            PoolError: the system refuses a thread; nothing is left open.
        """
        if self._own:
            self.pool.open()
        else:
            self.pool._driver.check_usable()
        self._pid = os.getpid()
        thread = SettlingThread(target=self._main, name=f"dspool-executor-{self.pool.name}", daemon=True)
        start_thread(thread, self.pool.name, otherwise=self._close_own)
        self._thread = thread
        self._ready.wait()

    def put(self, call: Call[Any]) -> None:
        """A call for the queue.

        Raises:
            PoolClosed: this process was forked from the one where it was started.
        """
        if self._pid != os.getpid():
            self.pool._opened.driver.check_process()
        self._waiting.append(call)
        if self._hungry:
            self._hungry = False
            self._tell(self._take)
        if self._gone:
            self._refuse_waiting()

    def give_up(self, future: SubmittedFuture[Any]) -> None:
        """A call under way was cancelled by its caller."""
        self._tell(self._end_call, future)

    def finish(self, *, cancel: Cancelled = "none") -> None:
        """No more calls come. End when those that are here are over."""
        self._tell(self._finish, cancel)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end. Returns whether it has come; at once on the loop's own thread, and in a forked process."""
        if not self.alive or threading.current_thread() is self._thread:
            return True
        assert self._thread is not None
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _tell(self, what: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # the loop has ended: there is nothing left to tell
                self._loop.call_soon_threadsafe(what, *args)

    # --- the loop's thread ----------------------------------------------------------------------------------------

    def _main(self) -> None:
        """The thread. Whatever ends it, nobody waits for ever."""
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            get_logger("dspool.executor", pool=self.pool.name).error("executor.broken", exc_info=True)
            self.broken = ExecutorBroken(f"the executor's thread failed: {error!r}; make another executor")
            self.broken.__cause__ = error
        finally:
            self._close_own()
            for future in list(self._active):
                future.settle(None, self._ending_error())
            self._active.clear()
            self._gone = True
            self._refuse_waiting()
            self._ready.set()

    def _refuse_waiting(self) -> None:
        """Nobody takes them any more. Who adds one after this has looked sees that it has to look itself."""
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().future.settle(None, self._ending_error())

    def _ending_error(self) -> PoolBroken | PoolClosed:
        if self.broken is None:
            return PoolClosed(f"the executor over pool {self.pool.name!r} has ended")
        return ExecutorBroken(str(self.broken), self.broken.reports)

    def _close_own(self) -> None:
        if self._own:
            self.pool.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waits = ThreadWaits(self.pool._driver)
        self._over = asyncio.Event()
        self._loop.set_exception_handler(self._fail)
        self._hungry = True
        self._ready.set()
        await self._over.wait()
        if self._fault is not None:
            raise self._fault

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault of ours in one of the loop's callbacks, which would only log it, and go on without the call."""
        assert self._over is not None
        self._fault = context.get("exception") or RuntimeError(context["message"])
        self._over.set()

    def _take(self) -> None:
        """Start as many calls as there is room for. Who adds one after this has looked is told to say so."""
        self._hungry = False
        width = self._width()
        while len(self._active) < width:
            if not self._waiting:
                self._hungry = True
                if not self._waiting:
                    break
                self._hungry = False
            self._start_call(self._waiting.popleft())
        if self._finishing is not None and not self._active and not self._waiting and self._over is not None:
            self._over.set()

    def _width(self) -> int:
        assert self._waits is not None
        options, groups = self.pool.options, self._waits.driver.core.groups.values()
        workers = sum(group.size + group.overflow for group in groups)
        return workers * options.slots + min(AHEAD, options.max_waiting)

    def _start_call(self, call: Call[Any]) -> None:
        future = call.future
        if future.cancelled() or self.broken is not None:
            future.settle(None, self._ending_error())
            return
        future.under_way = True
        self._active[future] = call
        assert self._loop is not None
        call.task = self._loop.create_task(self._run(call))
        call.task.add_done_callback(partial(self._ended, call))
        if future.cancelled():  # before it was seen to be under way
            self._end_call(future)

    def _end_call(self, future: SubmittedFuture[Any]) -> None:
        call = self._active.get(future)
        if call is not None and call.task is not None:
            call.task.cancel()

    def _finish(self, cancel: Cancelled) -> None:
        self._finishing = max(self._finishing or "none", cancel, key=_SEVERITY.index)
        if self._finishing != "none":
            while self._waiting:
                future = self._waiting.popleft().future
                future.cancel()
                future.settle(None, None)
        if self._finishing == "all":
            for future in list(self._active):
                future.cancel()
        self._take()

    async def _run(self, call: Call[Any]) -> Outcome:
        """One call, from the queue to its result or error. Cancelled, it is given up by its own steps."""
        try:
            return await self._result(call)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too, where it is the function's own
            if isinstance(error, DspoolError):
                error.__traceback__ = None  # it is raised in the caller; ours would keep the call's frames alive
            return None, self._judged(error)

    def _ended(self, call: Call[Any], task: asyncio.Task[Outcome]) -> None:
        """A call's task is over; if it was cancelled perhaps before it began."""
        del self._active[call.future]
        value, failure = (None, self._ending_error()) if task.cancelled() else task.result()
        call.future.settle(value, failure)
        del value, failure
        self._take()

    async def _result(self, call: Call[Any]) -> Outcome:
        pool = self.pool
        control = pool._opened
        driver, limit = control.driver, pool.options.max_frame_bytes
        resolved = control.programs.resolve(self._entry)
        name, data = call.pickle(pool.name)
        now = time.monotonic()
        deadline = now + pool._timeout_s
        args = ExecuteArgs(resolved.program_id, {"call": data})
        try:
            frame = encode_request("execute_program", args, limit, deadline=deadline != INFINITY)
        except EncodeError as error:
            raise EncodeError(f"pool {pool.name!r}: a call of {name} was not sent: {error}") from None
        del data, args
        # The books are kept by function: which one fails, which one ends workers.
        checkout = pool._checkout(next(driver.ids), now, deadline, name, None, None, "rebind", 0, None)
        checkout.size_bytes = len(frame)
        program = Program(resolved.program_id, name, resolved.spec, False, {})
        steps = path.call(driver, checkout, program, frame, deadline, idempotent=False)
        assert self._waits is not None
        response, worker_id = await drive_async(steps, self._waits)
        return self._value(program, response, worker_id)

    def _value(self, program: Program, response: Response, worker_id: int) -> Outcome:
        """What the function returned or raised. That is not raised here: a coroutine makes something else of a
        StopIteration or a CancelledError of the function's own."""
        if not response.success:
            info = response.error_info or ErrorInfo("program_error", response.error or "unknown error")
            data = info.details.pop("pickle", None)
            failure = program_error(program, _told(info), pool=self.pool.name, worker_id=worker_id)
            return None, rebuilt(data, failure) if isinstance(data, bytes) else self._judged(failure)
        assert isinstance(response.result, dict)
        value = response.result["value"]
        if not self._entry.pickles:
            return value, None
        try:
            return pickle.loads(value), None
        except BaseException as error:  # SystemExit too, of the object's own
            raise ProgramError(
                f"pool {self.pool.name!r}, worker {worker_id}: {program.label} ran, but its result can't be unpickled "
                f"here: {type(error).__name__}: {error}",
                code="decode_error",
                type=f"{type(error).__module__}.{type(error).__qualname__}",
            ) from error

    def _judged(self, error: BaseException) -> BaseException:
        """The error, or, where it says that the initializer failed, that the executor is broken."""
        if not self._has_initializer:
            return error
        reports: tuple[ExitReport, ...] = ()
        if isinstance(error, PoolBroken):
            reports = tuple(report for report in error.reports if report.reason == "boot_error")
        if not reports and not (isinstance(error, ProgramError) and error.code == "load_error"):
            return error
        if self.broken is None:
            self.broken = ExecutorBroken(f"the workers of this executor can't be initialized: {error}", reports)
        broken = ExecutorBroken(str(self.broken), reports)
        broken.__cause__ = error
        return broken


def _told(info: ErrorInfo) -> ErrorInfo:
    """The error under the code that it has for a call of the pool."""
    if info.type == "dspool.protocol.submitted.NotPlain":
        info.code = "not_plain"
    elif info.type == "dspool.protocol.submitted.CallNotLoaded":
        info.code = "call_not_loaded"
    return info
