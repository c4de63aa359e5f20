"""How a task waits: the waits of the data path, awaited on asyncio, trio, or whatever anyio runs on.

asyncio   a reader is registered once per slot and stays, so that a call costs no system call for it; idle, it also
          tells us that a worker has died.
trio      wait_readable for each wait.
beside    either, where a task awaits a call of a blocking pool, whose news come from another thread.
anyio     the same through anyio: for the control plane of a blocking pool, which reads abandoned slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from dspool.errors import PoolError
from dspool.pool.driver import Driver
from dspool.pool.slot_pipe import SlotPipe
from dspool.pool.steps import GRANT, HOOK, LATE, READ, REPORT, WRITE, Steps, Wait
from dspool.pool.threads import start_thread

T = TypeVar("T")
_FOREVER_S = 10 * 365 * 86400.0
_NEVER = float("inf")
HOOKS_LEFT = 100
"""Calls of a check hook that may run on after their callers' deadlines; each has a thread."""


async def drive_async(steps: Steps[T], waits: AnyioWaits) -> T:
    """Run steps of the data path in this task, awaiting where they wait. Cancellation is thrown into the steps."""
    try:
        wait = next(steps)
        while True:
            try:
                came = await (waits.read(wait[1], wait[2]) if wait[0] is READ else waits.wait(wait))
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(came)
    except StopIteration as stop:
        value: T = stop.value
        return value


class AnyioWaits:
    """The waits that are the same on every loop. GRANT comes from the subclasses, which have READ in their own way too.

    Args:
        driver: the pool's.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.thread = threading.get_ident()
        self._hooks_left: set[_Asked] = set()

    async def wait(self, wait: Wait) -> Any:
        """Wait as asked, READ aside; the answer is the hook's verdict, or whether it came before the deadline."""
        kind, what, deadline = wait
        if kind is GRANT:
            return await self.grant(what, deadline)
        if kind is WRITE:
            return await self.write(what, deadline)
        if kind is REPORT:
            return await self.report(what, deadline)
        assert kind is HOOK
        with anyio.move_on_after(_left(deadline)):
            verdict = await self.ask(what)
            return await verdict if inspect.isawaitable(verdict) else verdict
        return LATE

    def read(self, pipe: SlotPipe, deadline: float) -> Awaitable[bool]:
        """Until the pipe can be read."""
        return _in_time(anyio.wait_readable, pipe, deadline)

    def write(self, pipe: SlotPipe, deadline: float) -> Awaitable[bool]:
        """Until the pipe can be written or read: a worker that answers too early, or ends, makes it readable."""
        return _in_time(_wait_ready, pipe, deadline)

    async def ask(self, hook: Callable[[], Any]) -> Any:
        """A check hook's answer: on a thread, since it may block. What an async one gives is still to be awaited.

        Raises:
            PoolError: too many calls of it never returned, or the system refuses the thread.
        """
        if len(self._hooks_left) >= HOOKS_LEFT:
            raise PoolError(
                f"pool {self.driver.name!r}: {HOOKS_LEFT} calls of its check hook went on after their deadlines and "
                "have not returned; the hook is not called until one does. Give it a time limit of its own"
            )
        asked = _Asked(hook)

        def run() -> None:
            asked.run()
            self._hooks_left.discard(asked)

        try:
            await self.on_thread(run)
        except Exception:  # there is no thread for it
            raise
        except BaseException:
            self._hooks_left.add(asked)
            asked.give_up()
            if asked.returned:  # before it was added
                self._hooks_left.discard(asked)
            raise
        return asked.answer()

    async def on_thread(self, work: Callable[[], None]) -> None:
        """Run it on a thread; cancelled, it runs on there. Not one of the application's, which it could use up."""
        raise NotImplementedError

    async def grant(self, lease_id: int, deadline: float) -> bool:
        """Until the lease is granted or refused."""
        raise NotImplementedError

    async def report(self, worker_id: int, deadline: float) -> bool:
        """Until the worker's exit report is there."""
        while worker_id not in self.driver.reports:
            if not await self.changed(deadline) and worker_id not in self.driver.reports:
                return False
        return True

    async def changed(self, deadline: float) -> bool:
        """Until something about the workers changed."""
        if self.driver.over.is_set():
            return False
        event = anyio.Event()
        self.driver.changed.append(event.set)
        with anyio.move_on_after(_left(deadline)):
            await event.wait()
            return True
        return False


class AsyncioWaits(AnyioWaits):
    """On asyncio or uvloop."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.loop = asyncio.get_running_loop()

    def read(self, pipe: SlotPipe, deadline: float) -> Awaitable[bool]:
        """Until the pipe can be read."""
        return self._reading(pipe, deadline)

    def _reading(self, pipe: SlotPipe, deadline: float) -> asyncio.Future[bool]:
        reader = pipe.reader
        if reader is None:
            reader = pipe.reader = Reader(self.loop, pipe.sock.fileno())
        future: asyncio.Future[bool] = reader.wait(deadline)
        return future

    async def on_thread(self, work: Callable[[], None]) -> None:
        """As above. A daemon thread: anyio's, if the work never returns, keeps the interpreter from ending."""
        done: asyncio.Future[bool] = self.loop.create_future()

        def run() -> None:
            work()
            self._tell(done)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(run,), name="dspool-check", daemon=True)
        start_thread(thread, self.driver.name)
        await done

    async def write(self, pipe: SlotPipe, deadline: float) -> bool:
        """Until the pipe can be written or read: a worker that answers too early, or ends, makes it readable."""
        reading = self._reading(pipe, deadline)
        fd = pipe.sock.fileno()
        self.loop.add_writer(fd, _resolve, reading)
        try:
            return await reading
        finally:
            self.loop.remove_writer(fd)

    async def grant(self, lease_id: int, deadline: float) -> bool:
        """Until the lease is granted or refused."""
        future: asyncio.Future[bool] = self.loop.create_future()

        def wake() -> None:
            if threading.get_ident() == self.thread:
                _resolve(future)
            else:
                self._tell(future)

        self.driver.wake_with(lease_id, wake)
        try:
            return self.driver.decided(lease_id) or await self._until(future, deadline)
        finally:
            self.driver.sleep_no_more(lease_id)

    def _tell(self, future: asyncio.Future[bool]) -> None:
        try:
            self.loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:
            return  # the loop has ended: nobody waits there any more

    async def _until(self, future: asyncio.Future[bool], deadline: float) -> bool:
        if deadline == float("inf"):
            return await future
        timer = self.loop.call_later(max(0.0, deadline - time.monotonic()), _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()


class ThreadWaits(AsyncioWaits):
    """On a loop beside a blocking pool: a slot's pipe is somebody else's before and after, so nothing stays."""

    def read(self, pipe: SlotPipe, deadline: float) -> Awaitable[bool]:
        """Until the pipe can be read."""
        return self._ready(pipe, deadline, writing=False)

    async def write(self, pipe: SlotPipe, deadline: float) -> bool:
        """Until the pipe can be written or read."""
        return await self._ready(pipe, deadline, writing=True)

    async def _ready(self, pipe: SlotPipe, deadline: float, *, writing: bool) -> bool:
        future: asyncio.Future[bool] = self.loop.create_future()
        fd = pipe.sock.fileno()
        self.loop.add_reader(fd, _resolve, future)
        if writing:
            self.loop.add_writer(fd, _resolve, future)
        try:
            return await self._until(future, deadline)
        finally:
            self.loop.remove_reader(fd)
            if writing:
                self.loop.remove_writer(fd)

    async def report(self, worker_id: int, deadline: float) -> bool:
        """Until the worker's exit report is there; it is brought by another thread.

        1. We look: it isn't there. 2. It comes, and whoever waits is woken. 3. We begin to wait, for ever. So we look
        once more when we can be woken.
        """
        driver = self.driver
        while worker_id not in driver.reports:
            future: asyncio.Future[bool] = self.loop.create_future()
            driver.changed.append(functools.partial(self._tell, future))
            if worker_id in driver.reports or driver.over.is_set() or not await self._until(future, deadline):
                break
        return worker_id in driver.reports


class _Asked:
    """A hook that is asked on a thread, by a task that may give it up meanwhile.

    An async hook's coroutine that nobody awaits any more is closed, else Python would warn of it. The answer is taken
    out of the list by one of three: who waits, who gives up, or the thread that finds that it was given up already.
    """

    def __init__(self, hook: Callable[[], Any]) -> None:
        self._hook = hook
        self._answers: list[tuple[Any, BaseException | None]] = []
        self._given_up = False
        self.returned = False

    def run(self) -> None:
        """On the thread."""
        try:
            self._answers.append((self._hook(), None))
        except BaseException as error:
            self._answers.append((None, error))
        self.returned = True
        if self._given_up:
            self._drop()

    def answer(self) -> Any:
        """What the hook gave, or raises what it raised; once, after run()."""
        answer, error = self._answers.pop()
        if error is not None:
            raise error
        return answer

    def give_up(self) -> None:
        """Nobody wants the answer any more."""
        self._given_up = True
        self._drop()

    def _drop(self) -> None:
        try:
            answer, _ = self._answers.pop()
        except IndexError:
            return  # it is still to come, or another thread was quicker
        if inspect.iscoroutine(answer):
            answer.close()


class Reader:
    """Watches one slot's socket on an asyncio loop for as long as the slot lives.

    The loop reports level by level: after it has woken the caller it may call once more before the caller has read. So
    one call that nobody waits for means nothing; a second one in a row means that the worker has ended or talks out of
    turn, and the watching stops until somebody waits again. Otherwise the loop would spin.

    Its timer is left alone as long as it is due before the deadline of whoever waits; when it fires it looks who that
    is, and is set anew. So a call that is answered in time costs none.
    """

    __slots__ = ("_deadline", "_due", "_fd", "_future", "_idle_calls", "_loop", "_timer", "_watching")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._future: asyncio.Future[bool] | None = None
        self._deadline = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._due = _NEVER
        self._idle_calls = 0
        self._watching = False

    def wait(self, deadline: float) -> asyncio.Future[bool]:
        """A future that is True once the socket can be read, False at the deadline (monotonic seconds)."""
        future = self._future = self._loop.create_future()
        self._idle_calls = 0
        self._deadline = deadline
        if deadline < self._due:
            self._set_timer(deadline)
        if not self._watching:
            self._loop.add_reader(self._fd, self._readable)
            self._watching = True
        return future

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._timer_due)

    def _timer_due(self) -> None:
        self._timer, self._due = None, _NEVER
        if self._future is None or self._future.done() or self._deadline == _NEVER:
            return
        if self._deadline <= time.monotonic():
            self._future.set_result(False)
        else:
            self._set_timer(self._deadline)

    def close(self) -> None:
        """Stop watching; before the socket is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due = None, _NEVER
        if self._watching:
            self._loop.remove_reader(self._fd)
            self._watching = False

    def _readable(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(True)
            return
        self._idle_calls += 1
        if self._idle_calls > 1 and self._watching:
            self._loop.remove_reader(self._fd)
            self._watching = False


class TrioWaits(AnyioWaits):
    """On trio."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        import trio

        self.trio = trio
        self.token = trio.lowlevel.current_trio_token()
        self._threads = trio.CapacityLimiter(_NEVER)

    async def read(self, pipe: SlotPipe, deadline: float) -> bool:
        """Until the pipe can be read."""
        trio = self.trio
        if deadline == float("inf"):
            await trio.lowlevel.wait_readable(pipe.sock)
            return True
        with trio.move_on_after(max(0.0, deadline - time.monotonic())) as scope:
            await trio.lowlevel.wait_readable(pipe.sock)
        return not scope.cancelled_caught

    async def on_thread(self, work: Callable[[], None]) -> None:
        """As above. Trio's threads are daemons; the limit is HOOKS_LEFT, and not the one for all of the application."""
        await self.trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    async def grant(self, lease_id: int, deadline: float) -> bool:
        """Until the lease is granted or refused."""
        event = self.trio.Event()

        def wake() -> None:
            if threading.get_ident() == self.thread:
                event.set()
            else:
                self.token.run_sync_soon(event.set)

        self.driver.wake_with(lease_id, wake)
        try:
            if self.driver.decided(lease_id):
                return True
            with self.trio.move_on_after(_left(deadline)) as scope:
                await event.wait()
            return not scope.cancelled_caught
        finally:
            self.driver.sleep_no_more(lease_id)


class TrioThreadWaits(TrioWaits):
    """On a trio loop beside a blocking pool."""

    async def report(self, worker_id: int, deadline: float) -> bool:
        """Until the worker's exit report is there; as ThreadWaits has it."""
        driver = self.driver
        while worker_id not in driver.reports:
            event = self.trio.Event()
            driver.changed.append(functools.partial(self._tell, event))
            if worker_id in driver.reports or driver.over.is_set():
                break
            with self.trio.move_on_after(_left(deadline)) as scope:
                await event.wait()
            if scope.cancelled_caught:
                break
        return worker_id in driver.reports

    def _tell(self, event: Any) -> None:
        with contextlib.suppress(self.trio.RunFinishedError):  # nobody waits there any more
            self.token.run_sync_soon(event.set)


def waits_beside(driver: Driver) -> AnyioWaits:
    """How the task that asks waits for calls of a blocking pool."""
    return TrioThreadWaits(driver) if on_trio() else ThreadWaits(driver)


def on_trio() -> bool:
    """Whether this task runs on trio. Where a loop of asyncio runs, it is that one's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


async def _wait_ready(sock: Any) -> None:
    async with anyio.create_task_group() as tasks:

        async def first(wait: Callable[[Any], Awaitable[None]]) -> None:
            await wait(sock)
            tasks.cancel_scope.cancel()

        tasks.start_soon(first, anyio.wait_readable)
        tasks.start_soon(first, anyio.wait_writable)


async def _in_time(wait: Callable[[Any], Awaitable[None]], pipe: SlotPipe, deadline: float) -> bool:
    with anyio.move_on_after(_left(deadline)):
        await wait(pipe.sock)
        return True
    return False


def _resolve(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)


def _give_up(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


def _left(deadline: float) -> float:
    return min(_FOREVER_S, max(0.0, deadline - time.monotonic()))
