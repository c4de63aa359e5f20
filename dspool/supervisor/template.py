"""One template process, from its start to its end: it is prepared, asked for workers, and says how those ended.

    STARTING ──▶ READY ──▶ GONE         a start that fails goes from STARTING to GONE

It is `usable`, may be asked for workers, while it is READY and none of these holds:

    unsafe          it must not be forked
    _retired        another one has taken its place; it ends with its last worker
    _expected       its end was ordered
    _unreachable    it doesn't answer, or nothing can be sent to it; its death is about to be seen

Rules:
    1. live() is the template's one task, and ends when the process is dead, or abandon() was called. Nothing of it is
       open then; whoever waits for an answer of it has been told, and each of its workers that lives is due.
    2. Requests are pipelined: each is answered by its number, in whatever order.
    3. A fork that was given up costs its worker: its lifeline is cut here, whether it was forked by then or not.

Races, and what is done about them:
    * A worker is forked and dies at once: (1) both records are there together, (2) the launch that asked goes on only
      after both were read. So an exit is kept by the fork's number from the moment that number is sent.
    * The template dies with answers unread: they are read before anybody is told that it is gone.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from dspool.errors import ProtocolError
from dspool.logs import get_logger
from dspool.protocol.limits import DUMP_SIGNAL
from dspool.protocol.records import (
    DescriptorsLost,
    Exited,
    Fork,
    Forked,
    Importing,
    Prepare,
    Prepared,
    Record,
    Refused,
    Unprepared,
    receive_record,
    send_record,
)
from dspool.supervisor import forked
from dspool.supervisor.boot import BootFailure, failure_of
from dspool.supervisor.ends import pipe_ends
from dspool.supervisor.exits import describe
from dspool.supervisor.faults import faults_logged, log_fault
from dspool.supervisor.forked_child import AskedFork, ForkedChild
from dspool.supervisor.launch import LaunchRequest, start_failure, start_process, worker_environment
from dspool.supervisor.listener import Listener
from dspool.supervisor.output import WorkerOutput
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus, ProcessHandle, tell_loop
from dspool.supervisor.starting import start_soon

TEMPLATE_COMMAND = ("-P", "-m", "dspool.worker.template")
START_SHARE = 0.9
"""Of start_timeout_s, for the template itself: so its stacks are told before the workers that wait for it time out."""
DUMP_WAIT_S = 0.1


class TemplateGone(Exception):
    """Raised when the template died before it answered; another one may be asked."""


class Unsafe(Exception):
    """Raised when the template must not be forked; the text names the rule and what breaks it."""


class Phase(enum.Enum):
    """See the module's docstring."""

    STARTING = enum.auto()
    READY = enum.auto()
    GONE = enum.auto()


class Template:
    """One template process.

    Args:
        request: the launch that it is started for; it serves others that differ only in worker and slots.
        prepare: what it imports.
        command: the interpreter's arguments, before those that name the file descriptors.
        start_timeout_s: how long it has to be ready.
        listener: is told which workers are due when it dies.
        mask: takes keys out of what it writes.

    Attributes:
        settled: set when it is ready, or has failed.
        failure: why it can't be started, or None.
        was_killed: whether that is because somebody killed it by SIGKILL, and not this object.
        unsafe: which rule keeps it from being forked; empty where it may be.
        gone: set when nothing of it is left.
    """

    def __init__(
        self,
        request: LaunchRequest,
        prepare: Prepare,
        *,
        command: tuple[str, ...],
        start_timeout_s: float,
        listener: Listener,
        mask: Callable[[str], str] = str,
    ) -> None:
        self.settled = anyio.Event()
        self.failure: BootFailure | None = None
        self.was_killed = False
        self.unsafe = ""
        self.gone = anyio.Event()
        self._request = request
        self._prepare = prepare
        self._command = command
        self._start_timeout_s = start_timeout_s
        self._created_at = time.monotonic()
        self._listener = listener
        self._mask = mask
        self._phase = Phase.STARTING
        self._expected = False
        self._retired = False
        self._unreachable = False
        self._handle: ProcessHandle | None = None
        self._control: socket.socket
        self._output: WorkerOutput
        self._scope = anyio.CancelScope(shield=True)
        self._importing = ""
        self._sending = anyio.Lock()
        self._fork_ids = itertools.count(1)
        self._asked: dict[int, AskedFork] = {}
        self._log = get_logger("dspool.supervisor", pool=request.pool)

    @property
    def usable(self) -> bool:
        """Whether it may be asked for workers."""
        return self._phase is Phase.READY and not (self.unsafe or self._retired or self._expected or self._unreachable)

    # --- its life

    async def live(self) -> None:
        """Start it and serve it until it is dead. Cancelling it from outside does nothing; abandon() ends it."""
        with self._scope:
            try:
                if not self._expected:
                    self._start()
                    await self._attend()
            except OSError as error:
                self.failure = self.failure or BootFailure(start_failure(error, self._request))
            except Exception as error:
                log_fault(self._log, "a template's task failed", error)
                self.failure = self.failure or BootFailure(f"{type(error).__name__}: {error}")
            finally:
                self._bury()

    def retire(self) -> None:
        """End it as soon as it has no worker left."""
        self._retired = True
        self._end_if_childless()

    def end(self) -> None:
        """Let it end: it reads the end of its socket, kills what escaped from dead workers, and exits.

        One that isn't ready yet may never read, and has no workers: that is killed.
        """
        self._expected = True
        if self._phase is Phase.STARTING:
            self.kill()
        elif self._phase is Phase.READY:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it now."""
        self._expected = True
        self._cut()

    def abandon(self) -> None:
        """End live() now: the process is killed, waited for very shortly, and closed."""
        self._expected = True
        self._scope.cancel()

    def end_without_loop(self) -> None:
        """In place of the rest of live(), where its event loop was closed in the middle: kill it, blocking shortly."""
        self._expected = True
        with contextlib.suppress(RuntimeError):  # whoever waits can't be woken: their loop is closed
            self._bury()

    def _start(self) -> None:
        request = self._request
        with pipe_ends(0, socket.SOCK_SEQPACKET) as (ours, theirs):
            env = worker_environment(request.env)
            child = start_process(request.python, self._command, ours, theirs, env, "template")
        self._handle, self._control = ProcessHandle(child), child.control
        self._log = self._log.bind(template_pid=child.pid)
        self._output = WorkerOutput(child.output_fds, {"pool": request.pool, "template_pid": child.pid}, self._mask)

    async def _attend(self) -> None:
        assert self._handle is not None
        async with anyio.create_task_group() as tasks:
            for stream in self._output.streams:
                start_soon(tasks, self._guard, self._output.drain, stream)
            start_soon(tasks, self._guard, self._converse)
            start_soon(tasks, self._guard, self._limit_start)
            await anyio.wait_readable(self._handle.exit_fd)
            tasks.cancel_scope.cancel()

    async def _guard(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """A task's fault is the end of this template alone."""
        try:
            await work(*args)
        except Exception as error:
            log_fault(self._log, "a template's task failed", error)
            self.failure = self.failure or BootFailure(f"{type(error).__name__}: {error}")
            self._cut()

    async def _limit_start(self) -> None:
        within_s = self._start_timeout_s * START_SHARE
        with anyio.move_on_after(self._created_at + within_s - DUMP_WAIT_S - time.monotonic()):
            await self.settled.wait()
        if self.settled.is_set():  # also where it was ready just as the wait ended
            return
        assert self._handle is not None
        self._handle.send_signal(DUMP_SIGNAL)
        with anyio.move_on_after(DUMP_WAIT_S):
            await self.settled.wait()
        if self.settled.is_set():
            return
        where = f"; it imports {self._importing!r}" if self._importing else ""
        self.failure = BootFailure(
            f"the template that it is forked from is not ready within {within_s:g} s"
            f" (start_timeout_s={self._start_timeout_s:g}){where}",
            stack_dump=self._handle.read_dump(),
            reason="start_timeout",
        )
        self._cut()

    def _cut(self) -> None:
        """Kill it. The end of its lifeline alone says that its manager is dead, and that nobody waits for it."""
        if self._handle is not None:
            self._handle.send_signal(signal.SIGKILL)
            self._handle.cut_lifeline()

    # --- asking

    async def fork(self, request: LaunchRequest) -> ForkedChild:
        """Have a worker forked.

        Raises:
            TemplateGone, Unsafe: see there.
            OSError: the system refuses another process, or descriptors.

        Cancellation: ends the worker, if there is one by then.
        """
        fork_id = next(self._fork_ids)
        with pipe_ends(request.slots) as (ours, theirs):
            asked = self._asked[fork_id] = AskedFork(request.worker_id)
            try:
                await self._send(Fork(fork_id), (*theirs[:-1], *theirs.slots))
            except BaseException:
                self._forget(fork_id)
                raise
            try:
                await self._answered(asked)
            except BaseException:
                asked.give_up()
                raise
            if isinstance(asked.answer, Exception):
                raise asked.answer
            assert asked.answer is not None
            pid, pidfd = asked.answer
            return ForkedChild(pid, pidfd, ours, asked)

    async def _answered(self, asked: AskedFork) -> None:
        with anyio.move_on_after(self._start_timeout_s * START_SHARE):
            await asked.answered.wait()
        if asked.answered.is_set():  # also where the answer and the end of the wait came together
            return
        self._log.error("a template doesn't answer; it is killed", waited_s=self._start_timeout_s * START_SHARE)
        self._unreachable = True
        self._cut()
        raise TemplateGone

    async def _send(self, record: Record, fds: tuple[int, ...] = ()) -> None:
        async with self._sending:
            while self._phase is not Phase.GONE:
                try:
                    return send_record(self._control, record, fds)
                except BlockingIOError:
                    await anyio.wait_writable(self._control)
                except (BrokenPipeError, ConnectionResetError):
                    self._unreachable = True
                    break
        raise TemplateGone

    # --- its answers

    async def _converse(self) -> None:
        with contextlib.suppress(TemplateGone):  # its exit is about to be seen
            await self._send(self._prepare)
            while self._receive():
                await anyio.wait_readable(self._control)
        self._cut()  # its socket has ended: it is of no use, if it isn't dead already

    def _receive(self) -> bool:
        """Take what answers there are; False at the socket's end."""
        while True:
            try:
                with forked.creating():
                    received = receive_record(self._control)
                    for fd in received[1] if received is not None else ():
                        forked.guard_fd(fd)
            except DescriptorsLost as error:
                if isinstance(error.record, Forked):
                    self._answer(error.record.fork_id, error)
                continue
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if received is None:
                return False
            record, fds = received
            try:
                self._take(record, fds)
            except BaseException:
                for fd in fds:
                    forked.close_fd(fd)
                raise

    def _take(self, record: Record, fds: list[int]) -> None:
        """Take one record. One that can't be true raises ProtocolError: that is the end of this template."""
        if len(fds) != isinstance(record, Forked):
            raise ProtocolError(f"a template sent {type(record).__name__} with {len(fds)} descriptors")
        match record:
            case Forked(fork_id, pid):
                self._answer(fork_id, (pid, fds[0]))
            case Refused(fork_id, unsafe, error):
                self._answer(fork_id, Unsafe(unsafe) if unsafe else OSError(error, os.strerror(error)))
            case Exited(fork_id, code, died_of, peak_rss_kib):
                if asked := self._asked.get(fork_id):
                    if asked.answer is None and not asked.given_up:
                        raise ProtocolError(f"a template says how worker {asked.worker_id} ended before it forked it")
                    asked.status = ExitStatus(code=code, signal=died_of, known=True, peak_rss_bytes=peak_rss_kib * 1024)
                    asked.ended.set()
                self._forget(fork_id)
            case Prepared(unsafe):
                if self._phase is Phase.STARTING:  # one that is being buried stays dead, whatever it has said last
                    self._phase, self.unsafe = Phase.READY, unsafe
                    self.settled.set()
            case Importing(module):
                self._importing = module
            case Unprepared(error):
                self.failure = failure_of(error)
            case _:
                raise ProtocolError(f"a template doesn't send {type(record).__name__}")

    def _answer(self, fork_id: int, answer: tuple[int, int] | Exception) -> None:
        """A fork was answered. Only workers that were forked are kept in the table."""
        asked = self._asked.get(fork_id)
        if asked is None or asked.answered.is_set():
            raise ProtocolError(f"a template answers fork {fork_id}, which is not open")
        asked.resolve(answer)
        if not isinstance(answer, tuple):
            self._forget(fork_id)

    def _forget(self, fork_id: int) -> None:
        """There is no worker of this fork, or none any more. Who retired it may have waited for just that."""
        self._asked.pop(fork_id, None)
        self._end_if_childless()

    def _end_if_childless(self) -> None:
        if self._retired and not self._asked:
            self.end()

    # --- its end

    def _bury(self) -> None:
        """Take what is left of it, close everything, tell whoever waits. Nothing happens the second time."""
        if self._phase is Phase.GONE:
            return
        was_ready, self._phase = self._phase is Phase.READY, Phase.GONE
        how, status, last_words = "it could not be started", UNKNOWN_STATUS, ""
        if self._handle is not None:
            with faults_logged(self._log, "what is left of a template could not be collected"):
                status, last_words = self._collect(self._handle)
                how = describe(status)
        if not was_ready and self.failure is None:
            self.was_killed = status.signal == signal.SIGKILL and not self._expected
            last = next((line.strip() for line in reversed(last_words.splitlines()) if line.strip()), "")
            detail = f"the template that it is forked from ended before it was ready: {how}{': ' if last else ''}{last}"
            self.failure = BootFailure(detail, last_words)
        orphans = [asked for asked in self._asked.values() if isinstance(asked.answer, tuple)]
        if was_ready and not self._expected:
            pid = None if self._handle is None else self._handle.launched.pid
            with faults_logged(self._log, "the listener failed"):
                fields = {"pid": pid, "how": how, "workers": len(orphans)}
                self._listener.start_method_event("template.lost", fields)
            for asked in orphans:
                with faults_logged(self._log, "the listener failed"):
                    self._listener.worker_due(asked.worker_id)
        for asked in self._asked.values():
            asked.ended.set()
            if asked.answer is None:
                asked.resolve(TemplateGone())
        self._asked.clear()
        self.settled.set()
        self.gone.set()

    def _collect(self, handle: ProcessHandle) -> tuple[ExitStatus, str]:
        """How it ended, and the last that it wrote: its stacks, if it wrote any, else its output."""
        dead = handle.is_dead() or handle.end_now()
        with faults_logged(self._log, "a template's last records could not be read"):
            self._receive()
        self._output.drain_rest()
        last_words = handle.read_dump() or self._output.tail()
        status = handle.launched.reap() if dead else UNKNOWN_STATUS
        tell_loop(self._control)
        self._control.close()
        handle.close(slots=True)
        return status, last_words
