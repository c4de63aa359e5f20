"""Pool: threads in front of the core.

Any number of threads call; each writes to and reads from its worker's pipe itself, by polling with its own deadline
(polling.py). The control plane runs on a background thread and is not on a call's way.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Never, TypeVar

import anyio

from dspool.errors import PoolError
from dspool.option_values import seconds
from dspool.options import PoolOptions
from dspool.pool import data_path as path
from dspool.pool.control import ControlPlane
from dspool.pool.core import commands as c
from dspool.pool.front import (
    CHECKOUT_ARGUMENTS,
    RUN_ARGUMENTS,
    OnSessionLost,
    PoolFront,
    Timeout,
    unknown_argument,
)
from dspool.pool.interrupts import guard, guarded
from dspool.pool.lease import Lease
from dspool.pool.mapping import map_rows
from dspool.pool.polling import drive
from dspool.pool.streams import Stream
from dspool.pool.threads import start_thread
from dspool.pool.waits import AnyioWaits, drive_async
from dspool.supervisor.launch import Launcher
from dspool.types import KEEP, Affinity, PoolHealth, PoolStats, WorkerInfo

T = TypeVar("T")
_CLOSE_SLACK_S = 10.0
_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool(PoolFront):
    """A pool of worker processes for threads.

        with dspool.Pool(workers=4, lm="openai/gpt-4o-mini") as pool:
            pool.run("question -> answer", {"question": "..."}).answer

    Safe to use from any number of threads. A pool belongs to the process that opened it.

    Args:
        options: a PoolOptions; keywords override it.
        launcher: starts workers in place of the start method; for tests with fakes.
        overrides: options by keyword; see PoolOptions.

    Raises:
        OptionsError: an option is unknown or out of range. Nothing was started.
    """

    def __init__(
        self, options: PoolOptions | None = None, *, launcher: Launcher | None = None, **overrides: Any
    ) -> None:
        super().__init__(options, launcher=launcher, **overrides)
        self._thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------------------------

    def open(self) -> Pool:
        """Start the workers and wait until `min_ready` of them are ready. A lazy pool returns at once.

        Raises:
            WorkerStartError: a worker could not start; nothing is left running.
            PoolError: the pool was opened before; or the system refuses it a thread.
        """
        if self._control is not None:
            raise PoolError(f"pool {self.name!r} was opened before; make a new one")
        self._control = control = ControlPlane(self.options, self._launcher)
        control.driver.protect_from_interrupts(guarded, calls=False)
        thread = threading.Thread(target=_serve, args=(control,), name=f"dspool-control-{self.name}", daemon=True)
        start_thread(thread, self.name, otherwise=control.end_without_loop)
        self._thread = thread
        guard.install()
        _open_pools.add(self)
        try:
            if self._min_ready:
                self._wait_ready(self._min_ready, None, opening=True)
        except BaseException:
            self.close(0.0)
            raise
        return self

    def close(self, grace_s: float | None = None) -> None:
        """End the pool: refuse what is queued, give running calls `grace_s`, stop every worker. Idempotent.

        Callable from any thread and from a signal handler. Returns when nothing of the pool is left; inside a step of
        the pool (a signal handler on top of one) and in an on_event hook it returns at once and the pool closes behind
        it.

        Args:
            grace_s: seconds for running calls; None: the option's.
        """
        control = self._control
        if control is None or control.driver.over.is_set() or control.driver.pid != os.getpid():
            return
        grace_s = self.options.grace_s if grace_s is None else seconds("grace_s", grace_s)
        driver = control.driver
        held = guard.enter() if threading.get_ident() == guard.main else None
        try:
            driver.order(c.Close(time.monotonic() + grace_s))
            control.wake()
            if driver.in_step or control.events.here or threading.current_thread() is self._thread:
                return
            driver.over.wait(grace_s + self.options.grace_s + _CLOSE_SLACK_S)
            if self._thread is not None:
                self._thread.join(_CLOSE_SLACK_S)
        finally:
            _open_pools.discard(self)
            if not _open_pools:
                guard.uninstall()
            if held is not None:
                guard.depth -= 1
                guard.left(held)

    def __enter__(self) -> Pool:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        control = getattr(self, "_control", None)
        if control is None or control.driver.over.is_set() or control.driver.pid != os.getpid():
            return
        try:
            _warn(f"pool {self.name!r} was never closed; its workers are killed", ResourceWarning, source=self)
        finally:  # a warning may be an error
            control.driver.order(c.Close(time.monotonic()))
            control.wake()

    def wait_ready(self, workers: int | None = None, timeout_s: float | None = None) -> None:
        """Wait until so many workers are ready; those that reload() or recycle() replaces don't count.

        Args:
            workers: how many; None: as many as the pool should have now, after resize() too.
            timeout_s: seconds; None: no limit but the workers' own start_timeout_s.

        Raises:
            WorkerStartError: they never will be.
            QueueTimeout: they are not, after so long.
        """
        self._wait_ready(self._wanted(workers), timeout_s, opening=False)

    def _wait_ready(self, wanted: int, timeout_s: float | None, *, opening: bool) -> None:
        driver = self._driver
        deadline = time.monotonic() + seconds("timeout_s", timeout_s, none=True)
        while not driver.ready(wanted, opening=opening):
            changed = threading.Event()
            driver.changed.append(changed.set)
            if driver.ready(wanted, opening=opening):
                return
            if not changed.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic())):
                raise self._not_ready(wanted, timeout_s)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing new and wait until what was accepted is done. resume() undoes it.

        Returns:
            Whether everything was done within `timeout_s` seconds (None: no limit).
        """
        driver = self._driver
        deadline = time.monotonic() + seconds("timeout_s", timeout_s, none=True)
        driver.order(c.Drain())
        while driver.busy:
            self._driver.check_sound()
            done = threading.Event()
            driver.when_idle(done.set)
            if driver.busy and not done.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic())):
                return False
        return True

    # --- calls ----------------------------------------------------------------------------------------------------

    def run(
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
        """Run a program once, in one of the workers.

        Args:
            program: a dspy.Module, a signature string, a definition, a registered name, "package.module:attribute", or
                a callable that takes keyword inputs.
            inputs: field names to values; or a dspy.Example.
            session: calls with the same key go to the same worker.
            affinity: how strongly; None: the pool's.
            on_session_lost: "error": raise SessionLost once when the session's worker is gone; "rebind": go on with
                another.
            timeout_s: seconds for queue and run together; None: no limit; not given: the pool's.
            priority: among waiting calls the lowest goes first.
            require: labels that the worker's group must have.
            lm: the LM of this call, in place of the pool's.
            idempotent: the call may be sent again when its worker was lost.
            unknown: no other keyword is taken.

        Returns:
            A dspy.Prediction for a DSPy program; a callable's own return value, as plain data.

        Raises:
            EncodeError: program or inputs can't be sent. No worker was touched.
            OptionsError: an argument is unknown or out of range. No worker was touched.
            PoolError: no worker could be had (see its subclasses). Nothing was run.
            WorkerLost: the worker died with the call in it.
            CallTimeout: the deadline came after the call was sent; its worker was killed.
            ProgramError: the program failed; the worker is healthy.
            KeyboardInterrupt: Ctrl-C; a call that was sent is cancelled, its worker replaced.
        """
        if unknown:
            raise unknown_argument("run", unknown, RUN_ARGUMENTS)
        driver, resolved, steps = self._prepare(
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
        response, worker_id = drive(driver, steps)
        return self._finish(resolved, response, worker_id)

    def map(
        self,
        program: Any,
        rows: Iterable[Mapping[str, Any]],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        with_index: bool = False,
        return_exceptions: bool = False,
        progress: bool = False,
        **as_run: Any,
    ) -> Iterator[Any]:
        """Run a program over many rows, a bounded number at a time.

        Rows are taken from `rows` as results are handed out, so it may be endless. Nothing starts before the first
        result is asked for. Leaving early (break, an exception, Ctrl-C) cancels what runs.

        Args:
            program: as run().
            rows: the inputs of each call.
            concurrency: rows in flight; None: as many as the pool has slots.
            ordered: results in the order of the rows; False: as they come.
            with_index: give pairs of the row's number in `rows`, from 0, and its result.
            return_exceptions: give a failed row's exception in its place, instead of raising it.
            progress: show a bar on stderr; where stderr is no terminal or rich isn't installed, one line at the end.
            as_run: run()'s keywords, for every row.

        Returns:
            An iterator with one result for each row.

        Raises:
            OptionsError, EncodeError, PoolError: at once, where no row could run.
            DspoolError: from the iterator, what a row raised, as run(). The rows that still run are cancelled.
        """
        return map_rows(
            self,
            program,
            rows,
            concurrency=concurrency,
            ordered=ordered,
            with_index=with_index,
            return_exceptions=return_exceptions,
            progress=progress,
            as_run=as_run,
        )

    def stream(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        fields: str | Iterable[str] | None = None,
        status: Any = True,
        **as_run: Any,
    ) -> Stream:
        """Run a program once and hand out its result while it is made.

            for piece in pool.stream(qa, {"question": "..."}):
                print(piece)                            # dspy StreamResponses, and at last a dspy.Prediction

        Nothing is sent before the first piece is asked for. Leaving early (break, close(), an exception, Ctrl-C, or
        letting it go) cancels the call: its request to the LM is closed and its slot is lent again. What can't be
        cancelled, a module without an `aforward` of its own that waits for something else than a streamed predictor,
        costs its worker after `cancel_grace_s`. A caller that doesn't read holds the program up; the deadline covers
        that too.

        Args:
            program: as run(). A callable that returns a generator, async or not, gives its items.
            inputs: as run().
            fields: the output fields to give, "answer" or "predictor.answer"; None: every text field of every
                predictor. Those of other types come as the LM writes them.
            status: DSPy's status messages: True: its default ones, on tools; False: none; a StatusMessageProvider,
                something that makes one when called, or the import path of either, "package.module:attribute".
            as_run: run()'s keywords. An idempotent call is sent again only if no piece of it had come.

        Returns:
            An iterator: dspy.streaming.StreamResponse and StatusMessage as they come, then what run() gives. Of a
            generator its items as plain data, and last what it returned unless that is None. An answer from DSPy's
            cache has no pieces but the last.

        Raises:
            OptionsError, EncodeError, PoolError: at once, where it could not run.
            DspoolError: from the iterator, as run(), after the pieces that had come.
        """
        driver, resolved, steps = self._prepare_stream(program, inputs, fields, status, as_run)
        return Stream(self, driver, resolved, steps)

    def wrap(self, program: Any, **as_run: Any) -> Any:
        """The program as a dspy.Module that runs on this pool: one line in front of Evaluate, Parallel or an optimizer.

            evaluate(pool.wrap(program))

        The wrapper shares the program's attributes: what is done to one is done to both, and copies are independent.
        Calls go by the caller's DSPy settings as they would in this process: lm, adapter, track_usage, trace, history.
        The pool's LM and adapter fill in where the caller has none. Inside of dspy.streamify it is streamed.

        Args:
            program: a dspy.Module; or a signature, for dspy.Predict over it.
            as_run: run()'s keywords, for every call.

        Returns:
            A module of the program's own class. Calling it blocks; `acall` may be awaited on any event loop.

        Raises:
            OptionsError: it is no DSPy program; or a keyword is unknown.
        """
        from dspool.pool.wrapped import Way, drive_beside, wrap

        return wrap(self, program, as_run, Way(drive, drive_beside))

    def checkout(
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
    ) -> Lease:
        """Borrow a slot of a worker for several runs.

            with pool.checkout() as lease:
                lease.run(program, inputs)

        Args:
            program: prefer a worker that holds this program warm.
            session: the session's worker.
            affinity: how strongly; None: the pool's.
            timeout_s: seconds to wait for a worker; 0: now or QueueTimeout.
            hold_s: seconds, from when you have the lease, after which it is taken back and its worker replaced; None:
                no limit.
            priority: among waiting calls the lowest goes first.
            require: labels that the worker's group must have.
            unknown: no other keyword is taken.

        Raises:
            OptionsError: an argument is unknown or out of range. No worker was touched.
            PoolError: no worker could be had.
        """
        if unknown:
            raise unknown_argument("checkout", unknown, CHECKOUT_ARGUMENTS)
        driver, checkout, warm = self._prepare_checkout(
            program, session, affinity, timeout_s, hold_s, priority, require
        )
        lease: Lease | None = None
        held = guard.enter() if threading.get_ident() == guard.main else None
        try:
            record, pipe = drive(driver, path.checkout(driver, checkout, warm))
            try:
                lease = Lease(self, driver, record, pipe)
            except BaseException:  # a signal handler's: nobody else would ever close it
                path.end(driver, record, KEEP)
                pipe.let_go()
                raise
            return lease
        finally:
            if held is not None:
                guard.depth -= 1
                try:
                    guard.left(held)
                except KeyboardInterrupt:
                    if lease is not None:
                        lease.close()
                    raise

    def set_session_lm(self, session: str, lm: Any) -> None:
        """Say which LM a session's calls go to, before a program's own and the pool's; a call's own goes before it.

        Calls that are under way keep theirs. Forgotten with the session: `session_ttl_s` after its last call, counted
        from here where there was none, or when more than `max_sessions` have come since.

        Args:
            session: the key that calls give as `session=`. It need not have been used yet.
            lm: "provider/model", a dict of dspy.LM's arguments, or an LM object; None: undo it.

        Raises:
            OptionsError: the LM can't be used, or the session is no string. What was said before still holds.
        """
        self._set_session_lm(session, lm)

    # --- programs -------------------------------------------------------------------------------------------------

    def create_program(
        self,
        program_id: str,
        definition: Any,
        *,
        replace: bool = False,
        check: bool | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Register a program under a name that run() takes.

        Args:
            program_id: the name.
            definition: any program form but a registered name. A definition may have an "lm": "provider/model", a dict
                of dspy.LM's arguments, or a dspy.LM; and a "state": what `program.save("....json")` wrote, as a dict or
                a path.
            replace: put it in the place of one that is there, in one step; running calls end with the old one.
            check: whether a worker loads it before it is registered, as one call of the pool's. None: where only a
                worker can know whether it can be loaded, as with tools, demos, or an import path.
            allow_pickle: take a saved state that is a pickle. Its code runs in the workers.

        Raises:
            ProgramExists: the name is taken. As after all of these, what has the name keeps it.
            EncodeError: the definition is wrong, or can't be sent; the text says which part.
            OptionsError: its lm can't be used.
            ProgramError: a worker can't load it (code "load_error"); the text says why.
            PoolError, WorkerError: no worker could be had to check it, or it died of it; as run().
        """
        candidate, steps = self._prepare_create(
            program_id, definition, replace=replace, check=check, allow_pickle=allow_pickle
        )
        try:
            self._register(candidate, replace, None if steps is None else drive(self._driver, steps))
        except BaseException:
            self._discard(candidate)
            raise

    def list_programs(self) -> list[str]:
        """The registered names."""
        return self._opened.programs.names()

    def program_info(self, program_id: str) -> dict[str, Any]:
        """What is known of a registered program, as plain data.

        Returns:
            program_id (the name), id (the program's own, which stats() and events have), kind (of a definition: its
            program_type; else the form: signature, imported, pickled), label, signature (where it was given as one), lm
            (the model of its own LM, or None), bytes, created_at, execution_count (calls that ran to an answer since it
            was created or replaced), last_executed, quarantined, workers (ids of those that hold it warm).

        Raises:
            ProgramNotFound: there is none of that name.
        """
        return self._program_info(program_id)

    def delete_program(self, program_id: str) -> None:
        """Forget a registered program. Calls of it that run, or wait for a worker, go on.

        Raises:
            ProgramNotFound: there is none of that name.
        """
        self._opened.programs.delete(program_id)

    def release(self, program: Any) -> bool:
        """Let a quarantined program run again.

        Args:
            program: the program, its name, or the id that ProgramQuarantined names.

        Returns:
            Whether it was in quarantine. Where it was not, because its trial ended well meanwhile or it is another
            program than you mean, nothing happens.

        Raises:
            ProgramNotFound: a string that is no name, no id of a program that this pool has run, no signature and no
                import path.
        """
        return self._release(program)

    def refresh(self, program: Any) -> None:
        """Look at a program object again, after a change in place that its fingerprint can't see."""
        self._opened.programs.refresh(program)

    # --- fleet ----------------------------------------------------------------------------------------------------

    def resize(self, workers: int, *, group: str | None = None) -> None:
        """Change the number of workers; busy ones finish their calls first. Returns at once; see wait_ready()."""
        self._resize(workers, group)

    def reload(self) -> None:
        """Replace every worker, one at a time, each kept until its replacement is ready.

        Returns at once. Calls may run in old workers, with what these have imported, until wait_ready() returns. Each
        worker ends its calls before the next one is replaced.
        """
        self._driver.order(c.Reload())

    def recycle(self, worker_id: int) -> None:
        """Replace one worker in the same way."""
        self._known(worker_id).order(c.Recycle(worker_id))

    def kill(self, worker_id: int) -> None:
        """Kill one worker, at once; its calls raise WorkerLost. It is replaced."""
        self._kill(worker_id)

    def pause(self) -> None:
        """Lend no worker until resume(); calls wait."""
        self._driver.order(c.Pause())

    def resume(self) -> None:
        """Undo pause() or drain()."""
        self._driver.order(c.Resume())

    def stats(self) -> PoolStats:
        """Counters since open() and gauges of now; readable after close() too."""
        return self._stats()

    def health(self) -> PoolHealth:
        """Whether the pool can do its work, since when, and how it was before; readable after close() too."""
        return self._health()

    def workers(self) -> list[WorkerInfo]:
        """Every worker, oldest first."""
        return self._workers()


def _serve(control: ControlPlane) -> None:
    """The control thread. Whatever ends it, its callers are told."""
    try:
        waits = AnyioWaits(control.driver)
        anyio.run(control.run, lambda steps: drive_async(steps, waits))
    except BaseException as error:
        control.failed(error)
    finally:
        if not control.driver.over.is_set():
            control.driver.ended()


@atexit.register
def _close_open_pools() -> None:
    """The interpreter ends: pools left open end with it, their calls unfinished."""
    for pool in list(_open_pools):
        pool.close(0.0)
