"""Lease and AsyncLease: a slot of one worker, borrowed for several runs."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Never

from dspool.errors import OptionsError, PoolError
from dspool.pool import data_path as path
from dspool.pool.call_errors import lease_over
from dspool.pool.core import commands as c
from dspool.pool.core.records import Lease as Record
from dspool.pool.core.states import LeaseState
from dspool.pool.data_path import Driven
from dspool.pool.driver import Driver
from dspool.pool.front import LEASE_RUN_ARGUMENTS, LEASE_STREAM_ARGUMENTS, PoolFront, Timeout, unknown_argument
from dspool.pool.interrupts import guarded
from dspool.pool.polling import drive
from dspool.pool.programs import Program
from dspool.pool.slot_pipe import SlotPipe
from dspool.pool.steps import Steps
from dspool.pool.streams import AsyncStream, Stream, stream_args
from dspool.protocol.messages import StreamArgs
from dspool.types import KEEP, Remove, Verdict, WorkerInfo

if TYPE_CHECKING:
    from dspool.pool.aio import AsyncPool


class _HeldSlot:
    """What both leases have in common. One run at a time; after a lost worker or a timeout the lease is over."""

    def __init__(self, front: PoolFront, driver: Driver, record: Record, pipe: SlotPipe) -> None:
        self._front = front
        self._driver = driver
        self._record = record
        self._pipe = pipe
        self._pipes = [pipe]
        """The pipe, while it is held."""
        self._verdict: Verdict = KEEP
        self._over = False
        self._running = threading.Lock()

    @property
    def worker(self) -> WorkerInfo | None:
        """The worker as it is now; None when it is gone."""
        return None if self._record.worker_id is None else self._driver.worker_info(self._record.worker_id)

    @property
    def session_restarted(self) -> bool:
        """Whether the session lost the state that it kept in the worker it had before."""
        return self._record.session_restarted

    def remove(self, reason: str) -> None:
        """The worker is suspect: it is killed and replaced when the lease ends."""
        if not isinstance(reason, str):
            raise OptionsError(f"reason must be a text; it is {reason!r}")
        self._verdict = Remove(reason)

    @guarded
    def _end(self) -> None:
        if self._over or self._driver.pid != os.getpid():
            return
        self._over = True
        if self._running.acquire(blocking=False):
            path.end(self._driver, self._record, self._verdict)
            self._free_pipe()
            self._running.release()
        else:
            path.interrupt(self._driver, self._record)

    def _free_pipe(self) -> None:
        """Let go of the pipe, once, whoever comes first: the run that ends, or who closes the lease."""
        try:
            pipe = self._pipes.pop()
        except IndexError:
            return
        pipe.let_go()

    def _steps(
        self, program: Any, inputs: Mapping[str, Any], timeout_s: Timeout, lm: Any, stream: StreamArgs | None = None
    ) -> tuple[Program, Steps[Driven]]:
        front = self._front
        control = front._opened
        resolved: Program = control.programs.resolve(program)
        deadline = front._deadline(timeout_s, time.monotonic())
        timed = deadline != c.INFINITY
        frame = front._encode(control, resolved, inputs, lm, self._record.session, timed=timed, stream=stream)
        if self._over or self._record.state is LeaseState.CLOSED:
            raise lease_over(self._driver, self._record)
        return resolved, self._guarded(resolved, frame, deadline, streamed=stream is not None)

    def _guarded(self, program: Program, frame: bytearray, deadline: float, *, streamed: bool) -> Steps[Driven]:
        if not self._running.acquire(blocking=False):
            raise PoolError(f"lease {self._record.lease_id} runs a call already; a lease runs one at a time")
        try:
            response = yield from path.run_in(
                self._driver,
                self._record,
                self._pipe,
                program,
                frame,
                deadline,
                cancellable=streamed or self._front._cancellable,
                exchange=path.exchange_pieces if streamed else path.exchange,
            )
        finally:
            self._running.release()
            # Looked at after the release: whoever closes the lease meanwhile either finds the run over, and frees the
            # pipe, or has closed the record by now.
            if self._record.state is LeaseState.CLOSED:
                self._over = True
                self._free_pipe()
        assert self._record.worker_id is not None
        return response, self._record.worker_id

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_over", True):
            return
        ended = self._record.state is LeaseState.CLOSED
        self._verdict = Remove("its lease was dropped without being closed")
        self._end()
        if ended or self._driver.over.is_set():
            return
        _warn(
            f"lease {self._record.lease_id} of pool {self._driver.name!r} was dropped without being closed; worker "
            f"{self._record.worker_id} is replaced. Use `with pool.checkout() as lease`",
            ResourceWarning,
            source=self,
        )


class Lease(_HeldSlot):
    """A borrowed slot, for threads; from Pool.checkout(). Use it with `with`."""

    def run(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        timeout_s: Timeout = ...,
        lm: Any = None,
        **unknown: Never,
    ) -> Any:
        """Run a program in the lease's worker; arguments, value and errors as Pool.run().

        Raises:
            PoolError: the lease is over, or runs another call.
            QueueTimeout: `timeout_s` was over before the program could be sent. The lease goes on, as does its worker.
        """
        if unknown:
            raise unknown_argument("lease.run", unknown, LEASE_RUN_ARGUMENTS)
        resolved, steps = self._steps(program, inputs, timeout_s, lm)
        return self._front._finish(resolved, *drive(self._driver, steps))

    def stream(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        fields: str | Iterable[str] | None = None,
        status: Any = True,
        timeout_s: Timeout = ...,
        lm: Any = None,
        **unknown: Never,
    ) -> Stream:
        """Run a program in the lease's worker and hand out its result while it is made; as Pool.stream().

        After the last piece the lease goes on. Leaving early ends the lease with the call: its slot is lent again
        when the call has been cancelled. Closing the lease while a stream of it is held costs the worker.

        Raises:
            PoolError: the lease is over; or, from the iterator, it runs another call.
            QueueTimeout: from the iterator: `timeout_s` was over before the first piece was asked for.
        """
        if unknown:
            raise unknown_argument("lease.stream", unknown, LEASE_STREAM_ARGUMENTS)
        resolved, steps = self._steps(program, inputs, timeout_s, lm, stream_args(fields, status))
        return Stream(self._front, self._driver, resolved, steps)

    def close(self) -> None:
        """Give the slot back. Idempotent."""
        self._end()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncLease(_HeldSlot):
    """A borrowed slot, for tasks; from AsyncPool.checkout(). Use it with `async with`."""

    _front: AsyncPool

    async def run(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        timeout_s: Timeout = ...,
        lm: Any = None,
        **unknown: Never,
    ) -> Any:
        """Run a program in the lease's worker; arguments, value and errors as AsyncPool.run().

        Raises:
            PoolError: the lease is over, or runs another call.
            QueueTimeout: `timeout_s` was over before the program could be sent. The lease goes on, as does its worker.
        """
        if unknown:
            raise unknown_argument("lease.run", unknown, LEASE_RUN_ARGUMENTS)
        resolved, steps = self._steps(program, inputs, timeout_s, lm)
        return self._front._finish(resolved, *await self._front._drive(steps))

    def stream(
        self,
        program: Any,
        inputs: Mapping[str, Any],
        *,
        fields: str | Iterable[str] | None = None,
        status: Any = True,
        timeout_s: Timeout = ...,
        lm: Any = None,
        **unknown: Never,
    ) -> AsyncStream:
        """As Lease.stream(), as an async iterator."""
        if unknown:
            raise unknown_argument("lease.stream", unknown, LEASE_STREAM_ARGUMENTS)
        resolved, steps = self._steps(program, inputs, timeout_s, lm, stream_args(fields, status))
        return AsyncStream(self._front, self._driver, resolved, steps)

    async def close(self) -> None:
        """Give the slot back. Idempotent."""
        self._end()

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._end()
