"""AsyncPool: tasks in front of the core, on asyncio, uvloop or trio.

A task writes to and reads from its worker's pipe itself, waiting for readability in its own loop. The control plane is
a task of its own on the same loop (on trio a system task), so that open() and close() may come from different tasks. An
AsyncPool belongs to its loop.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import time
import warnings
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sized
from typing import Any, Never, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from dspool.errors import PoolBroken, PoolError
from dspool.option_values import seconds
from dspool.options import PoolOptions
from dspool.pool import data_path as path
from dspool.pool.control import ControlPlane
from dspool.pool.core import commands as c
from dspool.pool.driver import Driver
from dspool.pool.front import (
    CHECKOUT_ARGUMENTS,
    RUN_ARGUMENTS,
    OnSessionLost,
    PoolFront,
    Timeout,
    unknown_argument,
)
from dspool.pool.lease import AsyncLease
from dspool.pool.mapping import AsyncRows, Sorter, check_concurrency, check_rows
from dspool.pool.progress import Progress
from dspool.pool.steps import Steps
from dspool.pool.streams import AsyncStream
from dspool.pool.waits import AnyioWaits, AsyncioWaits, TrioWaits, drive_async, on_trio
from dspool.supervisor.launch import Launcher
from dspool.supervisor.starting import start_soon
from dspool.types import Affinity, PoolHealth, PoolStats, WorkerInfo

T = TypeVar("T")
_CLOSE_SLACK_S = 10.0
_open_pools: weakref.WeakSet[AsyncPool] = weakref.WeakSet()


class AsyncPool(PoolFront):
    """A pool of worker processes for tasks.

        async with dspool.AsyncPool(workers=4, lm="openai/gpt-4o-mini") as pool:
            answer = await pool.run("question -> answer", {"question": "..."})

    The names, arguments, values and errors are Pool's. Cancelling a task that runs a call ends the call: one that waits
    is forgotten, one that was sent costs its worker, which is replaced (with slots > 1: its slot is given up). Streams,
    and all calls with execution="async", are cancelled in the worker, which is kept.

    Args:
        options: a PoolOptions; keywords override it.
        launcher: starts workers in place of the start method; for tests with fakes.
        overrides: options by keyword; see PoolOptions.

    Raises:
        OptionsError: an option is unknown or out of range. Nothing was started.
    """

    _how_to_open = "use `async with`, or await open()"

    def __init__(
        self, options: PoolOptions | None = None, *, launcher: Launcher | None = None, **overrides: Any
    ) -> None:
        super().__init__(options, launcher=launcher, **overrides)
        self._waits: AnyioWaits | None = None
        self._home: Any = None
        self._task: asyncio.Task[None] | None = None
        self._nursery: list[anyio.abc.TaskGroup] = []
        """One task group: maps run in it."""
        self._closed = False
        """close() was called, in time or not."""

    # --- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> AsyncPool:
        """As Pool.open().

        Cancellation: everything that was started is killed.
        """
        if self._control is not None:
            raise PoolError(f"pool {self.name!r} was opened before; make a new one")
        self._control = control = ControlPlane(self.options, self._launcher)
        _open_pools.add(self)
        if on_trio():
            self._waits = TrioWaits(control.driver)
            self._home = self._waits.token
            control.driver.protect_from_interrupts(self._waits.trio.lowlevel.enable_ki_protection, calls=True)
            spawn = self._waits.trio.lowlevel.spawn_system_task
            spawn(_serve, control, self._waits, self._nursery, name=f"dspool-control-{self.name}")
        else:
            self._waits = AsyncioWaits(control.driver)
            self._home = asyncio.get_running_loop()
            serving = _serve(control, self._waits, self._nursery)
            self._task = self._home.create_task(serving, name=f"dspool-control-{self.name}")
            # asyncio.run's end cancels every task. It drops one that has not begun, whose `finally` nobody runs then.
            self._task.add_done_callback(lambda _: control.end_without_loop())
        try:
            # Until its tasks have begun: asyncio warns of a coroutine that is cancelled before its first step, as these
            # would be where the loop ends now. Maps run in its task group.
            while not control.serving and not control.driver.over.is_set():
                await anyio.lowlevel.checkpoint()
            if self._min_ready:
                await self._wait_ready(self._min_ready, None, opening=True)
        except BaseException:
            await self.close(0.0)
            raise
        return self

    async def close(self, grace_s: float | None = None) -> None:
        """As Pool.close(). Shielded from cancellation: it is bounded by the grace."""
        control = self._control
        if control is None or self._home is not _here():
            if control is not None and not control.driver.over.is_set():
                self._check_home()
            self._closed = True
            return
        self._closed = True
        grace_s = self.options.grace_s if grace_s is None else seconds("grace_s", grace_s)
        driver = control.driver
        with anyio.CancelScope(shield=True):
            if not driver.over.is_set():
                driver.order(c.Close(time.monotonic() + grace_s))
                control.wake()
                deadline = time.monotonic() + grace_s + self.options.grace_s + _CLOSE_SLACK_S
                assert self._waits is not None
                while not driver.over.is_set() and await self._waits.changed(deadline):
                    pass
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=_CLOSE_SLACK_S)

    async def __aenter__(self) -> AsyncPool:
        return await self.open()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        control = getattr(self, "_control", None)
        if control is None or self._closed or control.driver.pid != os.getpid():
            return
        self._closed = True
        over = control.driver.over.is_set()  # the event loop has ended, and the workers with it
        try:
            _warn(
                f"async pool {self.name!r} was never closed; its workers {'were' if over else 'are'} killed, whatever "
                "they ran. Use `async with`, or await close() before the event loop ends",
                ResourceWarning,
                source=self,
            )
        finally:  # a warning may be an error
            if not over:
                control.driver.order(c.Close(time.monotonic()))
                control.wake()
                if self._task is not None and self._task.get_loop().is_closed():
                    control.end_without_loop()

    async def wait_ready(self, workers: int | None = None, timeout_s: float | None = None) -> None:
        """As Pool.wait_ready()."""
        await self._wait_ready(self._wanted(workers), timeout_s, opening=False)

    async def _wait_ready(self, wanted: int, timeout_s: float | None, *, opening: bool) -> None:
        driver = self._driver
        assert self._waits is not None
        deadline = time.monotonic() + seconds("timeout_s", timeout_s, none=True)
        while not driver.ready(wanted, opening=opening):
            if not await self._waits.changed(deadline) and not driver.ready(wanted, opening=opening):
                raise self._not_ready(wanted, timeout_s)

    async def drain(self, timeout_s: float | None = None) -> bool:
        """As Pool.drain()."""
        driver = self._driver
        left_s = seconds("timeout_s", timeout_s, none=True)
        driver.order(c.Drain())
        with anyio.move_on_after(left_s):
            while driver.busy:
                self._driver.check_sound()  # closed meanwhile, a lease that somebody keeps may stay in its table
                done = anyio.Event()
                driver.when_idle(done.set)
                if driver.busy:
                    await done.wait()
        return not driver.busy

    # --- calls ----------------------------------------------------------------------------------------------------

    async def run(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        session: str | None = None,
        affinity: Affinity | None = None,
        on_session_lost: OnSessionLost = "rebind",
        timeout_s: Timeout = ...,
        priority: int = 0,
        require: str | Iterable[str] | None = None,
        lm: Any = None,
        idempotent: bool = False,
        **unknown: Never,
    ) -> Any:
        """As Pool.run()."""
        if unknown:
            raise unknown_argument("run", unknown, RUN_ARGUMENTS)
        _, resolved, steps = self._prepare(
            program,
            inputs,
            session=session,
            affinity=affinity,
            on_session_lost=on_session_lost,
            timeout_s=timeout_s,
            priority=priority,
            require=require,
            lm=lm,
            idempotent=idempotent,
        )
        response, worker_id = await self._drive(steps)
        return self._finish(resolved, response, worker_id)

    def map(
        self,
        program: Any,
        rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        with_index: bool = False,
        return_exceptions: bool = False,
        progress: bool = False,
        **as_run: Any,
    ) -> AsyncIterator[Any]:
        """As Pool.map(), as an async iterator; `rows` may be async too. `aclose()` it when leaving early."""
        check_rows(rows)
        width = check_concurrency(concurrency, self._target * self.options.slots)
        self._prepare_row(program, {}, as_run)
        bar = Progress(len(rows) if isinstance(rows, Sized) else None, self.name, shown=progress)
        sorter = Sorter(ordered=ordered, with_index=with_index, return_exceptions=return_exceptions)

        async def run_row(row: Any) -> Any:
            _, resolved, steps = self._prepare_row(program, row, as_run)
            response, worker_id = await self._drive(steps)
            return self._finish(resolved, response, worker_id)

        return AsyncRows(rows, run_row, width, sorter, bar, self._start_task)

    def stream(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        fields: str | Iterable[str] | None = None,
        status: Any = True,
        **as_run: Any,
    ) -> AsyncStream:
        """As Pool.stream(), as an async iterator: `async for piece in pool.stream(...)`."""
        driver, resolved, steps = self._prepare_stream(program, inputs, fields, status, as_run)
        return AsyncStream(self, driver, resolved, steps)

    def wrap(self, program: Any, **as_run: Any) -> Any:
        """As Pool.wrap(), for `await module.acall(...)` and dspy.streamify in this pool's loop.

        Calling the module anywhere else is a PoolError. Cancelling the task that awaits it is cancelling run().
        """
        from dspool.pool.wrapped import Way, wrap

        return wrap(self, program, as_run, Way(None, lambda _, steps: self._drive(steps)))

    async def checkout(
        self,
        *,
        program: Any = None,
        session: str | None = None,
        affinity: Affinity | None = None,
        timeout_s: Timeout = ...,
        hold_s: float | None = None,
        priority: int = 0,
        require: str | Iterable[str] | None = None,
        **unknown: Never,
    ) -> AsyncLease:
        """As Pool.checkout(): `async with await pool.checkout() as lease`."""
        if unknown:
            raise unknown_argument("checkout", unknown, CHECKOUT_ARGUMENTS)
        driver, checkout, warm = self._prepare_checkout(
            program, session, affinity, timeout_s, hold_s, priority, require
        )
        record, pipe = await self._drive(path.checkout(driver, checkout, warm))
        return AsyncLease(self, driver, record, pipe)

    # --- programs and fleet -----------------------------------------------------------------------------------------

    async def create_program(
        self,
        program_id: str,
        definition: Any,
        *,
        replace: bool = False,
        check: bool | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """As Pool.create_program()."""
        candidate, steps = self._prepare_create(
            program_id, definition, replace=replace, check=check, allow_pickle=allow_pickle
        )
        try:
            self._register(candidate, replace, None if steps is None else await self._drive(steps))
        except BaseException:
            self._discard(candidate)
            raise

    async def set_session_lm(self, session: str, lm: Any) -> None:
        """As Pool.set_session_lm()."""
        self._set_session_lm(session, lm)

    async def list_programs(self) -> list[str]:
        """As Pool.list_programs()."""
        return self._opened.programs.names()

    async def program_info(self, program_id: str) -> dict[str, Any]:
        """As Pool.program_info()."""
        return self._program_info(program_id)

    async def delete_program(self, program_id: str) -> None:
        """As Pool.delete_program()."""
        self._opened.programs.delete(program_id)

    async def release(self, program: Any) -> bool:
        """As Pool.release()."""
        return self._release(program)

    async def refresh(self, program: Any) -> None:
        """As Pool.refresh()."""
        self._opened.programs.refresh(program)

    async def resize(self, workers: int, *, group: str | None = None) -> None:
        """As Pool.resize()."""
        self._resize(workers, group)

    async def reload(self) -> None:
        """As Pool.reload()."""
        self._driver.order(c.Reload())

    async def recycle(self, worker_id: int) -> None:
        """As Pool.recycle()."""
        self._known(worker_id).order(c.Recycle(worker_id))

    async def kill(self, worker_id: int) -> None:
        """As Pool.kill()."""
        self._kill(worker_id)

    async def pause(self) -> None:
        """As Pool.pause()."""
        self._driver.order(c.Pause())

    async def resume(self) -> None:
        """As Pool.resume()."""
        self._driver.order(c.Resume())

    async def stats(self) -> PoolStats:
        """As Pool.stats()."""
        return self._stats()

    async def health(self) -> PoolHealth:
        """As Pool.health()."""
        return self._health()

    async def workers(self) -> list[WorkerInfo]:
        """As Pool.workers()."""
        return self._workers()

    # --- the loop -------------------------------------------------------------------------------------------------

    @property
    def _driver(self) -> Driver:
        driver = super()._driver
        self._check_home()
        return driver

    @property
    def _opened(self) -> ControlPlane:
        try:
            control = super()._opened
        except PoolBroken:  # also of a pool whose loop has ended with it open: another loop is why, not the fault
            self._check_home()
            raise
        self._check_home()
        return control

    def _check_home(self) -> None:
        if _here() is not self._home:
            raise PoolError(
                f"async pool {self.name!r} belongs to the event loop that opened it; this is another loop or thread. "
                "Open one pool for each loop, or use dspool.Pool, which any thread may use"
            )

    async def _drive(self, steps: Steps[T]) -> T:
        assert self._waits is not None
        return await drive_async(steps, self._waits)

    def _start_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._driver.check_usable()
        start_soon(self._nursery[0], work)


async def _serve(control: ControlPlane, waits: AnyioWaits, nursery: list[anyio.abc.TaskGroup]) -> None:
    """The control plane's task. It doesn't know the pool, so that a pool nobody closed can be collected."""
    try:
        async with anyio.create_task_group() as tasks:
            nursery.append(tasks)
            await control.run(lambda steps: drive_async(steps, waits))
            tasks.cancel_scope.cancel()
    except Exception:
        return  # the control plane has said so; on trio it would take the application's whole run with it


@atexit.register
def _tell_of_open_pools() -> None:
    """The interpreter ends. A pool that is still referred to may never be collected, and told of, after this."""
    for pool in list(_open_pools):
        pool.__del__()


def _here() -> Any:
    """The running loop, or None where none runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    import sys

    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None
