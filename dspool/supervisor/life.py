"""One worker, from its launch to its exit report.

    LAUNCHING ──▶ BOOTING ──▶ READY ──▶ STOPPING        each of them may go to DYING (killed, or its boot failed)
                                                        and to GONE (the process is dead)

Rules:
    1. live() is the worker's one task; whatever else runs for it (readers, ladders, pings) is a child of that task, and
       ends before anything is closed.
    2. It ends only when the process is dead, or abandon() was called; it ends with exactly one report, in any case.
    3. Orders (stop, kill, probe) are synchronous; each is legal at any time and does nothing for a worker that is GONE.
    4. The slots belong to the listener from worker_ready on. Everything else is closed here.

Races, and what is done about them:
    * The worker says that it can't boot, and exits: (1) its answer and its exit are there together, (2) the exit is
      seen first, (3) it would be "exited before it was ready", without the traceback. So the control pipe is read once
      more before the exit is believed.
    * A kill meets a death: (1) the worker crashes, (2) before that is seen it is killed for a timeout, (3) the crash
      would be reported as a timeout. So each order notes whether the process was alive, and exits.py compares.
    * A dying process closes its pipes before its exit can be seen: (1) the driver finds a slot's end, (2) it asks for a
      kill, (3) the worker's own death would be reported as our kill. So "it seems to be dead" gets DEATH_WAIT_S.
"""

from __future__ import annotations

import enum
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import anyio.abc

from dspool.errors import DspoolError, ProtocolError, WorkerStartError
from dspool.logs import get_logger
from dspool.options import PoolOptions, WorkerGroup
from dspool.protocol.limits import DUMP_SIGNAL
from dspool.protocol.messages import BootConfig
from dspool.protocol.secrets import Secrets
from dspool.supervisor import boot, health
from dspool.supervisor.boot import BootFailure, LaunchFailed
from dspool.supervisor.control import ControlPipe, Question
from dspool.supervisor.exits import Ending, Order, build_report, fitting_order
from dspool.supervisor.faults import faults_logged, log_fault
from dspool.supervisor.frame_log import FrameLog
from dspool.supervisor.launch import Launcher, LaunchRequest
from dspool.supervisor.listener import Listener
from dspool.supervisor.logged_control import control_pipe
from dspool.supervisor.memory import OomCounter, RssGauge
from dspool.supervisor.output import WorkerOutput
from dspool.supervisor.process import ProcessHandle
from dspool.supervisor.starting import start_soon
from dspool.types import ExitReason

DEATH_WAIT_S = 0.02
DUMP_WAIT_S, DUMP_QUIET_MS = 0.010, 3
BOOT_DUMP_WAIT_S = 0.2
"""The same for a worker that was never ready: no call's deadline is kept waiting for it."""
LIFELINE_WAIT_S = 1.0
"""After this a worker whose lifeline was cut gets a SIGKILL besides: it left its group, or disarmed the lifeline."""
BOOT_EXIT_WAIT_S = 0.5
"""How long a worker that said it can't boot may take to exit."""
STATUS_WAIT_S = 0.05
"""How long a dead worker's exit status is waited for, where another process collects it."""
CONTROL_END_WAIT_S = 0.1
"""How long a worker may live after its control pipe ended."""
STOP_EOF_SHARE, STOP_TERM_SHARE = 0.6, 0.8
"""Shares of the time until a stop's deadline after which the worker gets EOF, and SIGTERM."""


class Phase(enum.Enum):
    """See the module's docstring."""

    LAUNCHING = enum.auto()
    BOOTING = enum.auto()
    READY = enum.auto()
    STOPPING = enum.auto()
    DYING = enum.auto()
    GONE = enum.auto()


class WorkerProcess:
    """One worker process. The attributes are for the listener to read; the orders are the supervisor's to give.

    Attributes:
        worker_id: the pool's number for it.
        group: its worker group.
        pid: for people to read; None before it is launched.
        start_method: how it was started.
        slots: the manager's ends of its slots' pipes.
        started_at: when start() was called, monotonic.
        ready_at: when its handshake was answered, or None.
        python_version: its interpreter's.
        phase: where it is in its life.
        begun: live() has taken its first step.
    """

    def __init__(
        self,
        worker_id: int,
        group: WorkerGroup,
        options: PoolOptions,
        listener: Listener,
        oom: OomCounter,
        secrets: Secrets,
        frame_log: FrameLog | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.group = group
        self.pid: int | None = None
        self.start_method = str(options.start_method)
        self.slots: list[socket.socket] = []
        self.started_at = time.monotonic()
        self.ready_at: float | None = None
        self.python_version = ""
        self.phase = Phase.LAUNCHING
        self.begun = False
        self._options = options
        self._listener = listener
        self._oom = oom
        self._oom_kills_before = oom.count()
        self._frame_log = frame_log
        self._secrets = secrets
        self._handle: ProcessHandle
        self._control: ControlPipe
        self._output: WorkerOutput
        self._rss: RssGauge | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._scope = anyio.CancelScope(shield=True)
        self._launch_scope = anyio.CancelScope()
        self._handshake: Question | None = None
        self._boot_failure: BootFailure | None = None
        self._orders: list[Order] = []
        self._probing = False
        self._unwell = self._reported = False
        self._dump_asked_at: int | None = None
        self._log = get_logger("dspool.supervisor", pool=options.name, worker_id=worker_id)

    @property
    def rss_bytes(self) -> int | None:
        """Resident memory when it was last sampled, or None."""
        return None if self._rss is None else self._rss.rss_bytes

    # --- its life

    async def live(self, launcher: Launcher, boot_config: Callable[[int, str], BootConfig]) -> None:
        """Launch it, serve it until it is dead, report. Cancelling it from outside does nothing; abandon() ends it."""
        self.begun = True
        with self._scope:
            launched = False
            try:
                config = boot_config(self.worker_id, self.group.name)
                launched = await self._launch(launcher)
                if launched:
                    await self._attend(config)
            except LaunchFailed as error:
                self._boot_failure = error.failure
            except DspoolError as error:
                trace = error.remote_traceback if isinstance(error, WorkerStartError) else None
                self._boot_failure = BootFailure(str(error), trace or "")
            except Exception as error:
                log_fault(self._log, "a worker's task failed", error)
                self._boot_failure = self._boot_failure or BootFailure(f"{type(error).__name__}: {error}")
            finally:
                self.phase, self._tasks = Phase.GONE, None
                self._report(self._collect() if launched else self._ending())

    def abandon(self) -> None:
        """End live() now: whatever is left is killed, waited for very shortly, closed and reported."""
        self._scope.cancel()

    def never_lived(self) -> None:
        """In place of live(), where asyncio ended the task before its first step, as it does when a loop ends."""
        self.phase = Phase.GONE
        self._report(self._ending())

    def end_without_loop(self) -> None:
        """In place of the rest of live(), where its event loop was closed in the middle: kill it, blocking shortly."""
        self.phase, self._tasks = Phase.GONE, None
        self._report(self._collect() if hasattr(self, "_handle") else self._ending())

    async def _launch(self, launcher: Launcher) -> bool:
        """Start the process; False where a kill came first."""
        request = LaunchRequest(
            worker_id=self.worker_id,
            pool=self._options.name,
            slots=self._options.slots,
            python=self._options.executable,
            env={**self._options.env, **self.group.env},
            preload=(*self._options.preload, *self.group.preload),
        )
        launched = None
        with self._launch_scope:
            if self.phase is Phase.LAUNCHING:
                launched = await launcher.launch(request)
        if launched is None:
            return False
        self._handle = ProcessHandle(launched)
        self.pid, self.start_method, self.slots = launched.pid, launched.start_method, launched.slots
        self._rss = None if self.pid is None else RssGauge(self.pid)
        self._log = self._log.bind(pid=self.pid)
        self._control = control_pipe(launched.control, self._options.max_frame_bytes, self._frame_log, self.worker_id)
        fields = {"pool": self._options.name, "worker_id": self.worker_id, "pid": self.pid}
        self._output = WorkerOutput(launched.output_fds, fields, self._secrets.mask)
        return True

    async def _attend(self, config: BootConfig) -> None:
        """Serve the process until it is dead."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._do(self._read_control)
            for stream in self._output.streams:
                self._do(self._output.drain, stream)
            if self.phase is Phase.LAUNCHING:
                self.phase = Phase.BOOTING
                self._do(self._boot, config)
            else:
                self._cut()
            await anyio.wait_readable(self._handle.exit_fd)
            self.phase, self._tasks = Phase.GONE, None
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(STATUS_WAIT_S):
            await self._handle.launched.settle()

    async def _boot(self, config: BootConfig) -> None:
        try:
            self._handshake = self._ask(boot.COMMAND, boot.handshake_args(config))
        except DspoolError as error:
            await self._fail_boot(BootFailure(f"its configuration can't be sent: {error}"))
            return
        response = await self._handshake.answer()
        failure = boot.judge(response, self._options.executable)
        if failure is not None:
            await self._fail_boot(failure)
        elif self.phase is Phase.BOOTING:
            self.python_version = str(response.result.get("python_version", ""))
            self.phase, self.ready_at = Phase.READY, time.monotonic()
            self._listener.worker_ready(self.worker_id, self)

    async def _fail_boot(self, failure: BootFailure) -> None:
        """It can't serve: give it a moment to exit by itself, then kill it."""
        if self.phase is Phase.BOOTING:
            self.phase, self._boot_failure = Phase.DYING, failure
            await anyio.sleep(BOOT_EXIT_WAIT_S)
            self._cut()

    async def _read_control(self) -> None:
        try:
            await self._control.read()
        except ProtocolError as error:
            self._distrust(f"control pipe: {error}")
            return
        await anyio.sleep(CONTROL_END_WAIT_S)
        if self.phase is not Phase.STOPPING:
            self._distrust("its control pipe ended while the process lives")

    def _distrust(self, detail: str) -> None:
        """What to do about a worker that can't be talked to: before it is ready here, afterwards the listener's."""
        if self.phase is Phase.BOOTING:
            self._do(self._fail_boot, BootFailure(detail))
        elif self.phase in (Phase.READY, Phase.STOPPING) and not self._unwell:
            self._unwell = True
            self._log.error("a worker is unwell", detail=detail)
            self._listener.worker_unwell(self.worker_id, "protocol_error", detail)

    # --- orders

    def stop(self, reason: ExitReason, deadline: float) -> None:
        """Ask it to end, more and more firmly; kill it at the deadline. One that isn't ready is killed now."""
        if self.phase in (Phase.LAUNCHING, Phase.BOOTING):
            self.kill(reason, "")
        elif self.phase is Phase.READY:
            self._order("stop", reason, "")
            self.phase = Phase.STOPPING
            self._do(self._descend, deadline)

    def kill(self, reason: ExitReason | None, detail: str, *, dump: bool = False) -> None:
        """Cut its lifeline. A second kill only ends the first one's wait for a dump or a death."""
        if self.phase is Phase.GONE or (self.phase is Phase.STOPPING and reason is None):
            return  # A worker that is stopping closes its pipes: that it seems to be dead is no news.
        if self.phase is Phase.DYING:
            if reason is not None and not dump:
                self._cut(None if self._orders else (reason, detail))
            return
        was, self.phase = self.phase, Phase.DYING
        if was is Phase.LAUNCHING:
            self._order("kill", reason or "killed", detail)
            self._launch_scope.cancel()
        elif reason is None:
            self._do(self._cut_unless_dead, detail)
        elif dump:
            self._order("kill", reason, detail)
            self._do(self._dump_and_cut)
        else:
            self._cut((reason, detail))

    def probe(self) -> None:
        """Ping it; the listener is told. Nothing happens while it isn't ready or a ping is open."""
        if self.phase is Phase.READY and not self._probing:
            self._probing = True
            self._do(self._ping)

    def cancel(self, request_id: int) -> None:
        """Ask it to cancel a call. Whether it could is seen on the call's slot, so the answer is not waited for."""
        if self.phase is Phase.READY:
            self._control.give_up(self._ask("cancel", {"id": request_id}))

    def sample_rss(self) -> int | None:
        """Its resident memory now; None where it isn't ready, or is gone."""
        if self._rss is None or self.phase is not Phase.READY:
            return None
        # Dead, it may have been reaped by its template meanwhile, and its number be another's.
        rss_bytes = self._rss.sample()
        return None if self._handle.is_dead() else rss_bytes

    def _order(self, kind: Literal["stop", "kill"], reason: ExitReason, detail: str) -> None:
        in_time = self._tasks is None or not self._handle.is_dead()
        self._orders.append(Order(kind=kind, reason=reason, detail=detail, in_time=in_time))

    async def _descend(self, deadline: float) -> None:
        """The stop ladder. It is left on any rung when the process is dead: this task is cancelled then."""
        left = max(0.0, deadline - time.monotonic())
        self._ask("shutdown", {})
        await anyio.sleep(left * STOP_EOF_SHARE)
        self._control.end()
        await anyio.sleep(left * (STOP_TERM_SHARE - STOP_EOF_SHARE))
        self._handle.send_signal(signal.SIGTERM)
        await anyio.sleep(max(0.0, deadline - time.monotonic()))
        self._cut()

    async def _cut_unless_dead(self, detail: str) -> None:
        await anyio.sleep(DEATH_WAIT_S)
        self._cut(("protocol_error", detail or "a slot's pipe ended while the process lives"))

    async def _dump_and_cut(self) -> None:
        """Ask for the stacks, wait until they stop growing, kill."""
        if self._rss is not None:
            self._rss.sample()  # of a spawned worker nobody may know it afterwards: see child.py
        give_up_at = time.monotonic() + self._dump_wait_s
        self._dump_asked_at = size = self._handle.dump_size()
        self._handle.send_signal(DUMP_SIGNAL)
        quiet = 0
        while time.monotonic() < give_up_at and quiet < DUMP_QUIET_MS:
            await anyio.sleep(0.001)
            last, size = size, self._handle.dump_size()
            quiet = quiet + 1 if self._dump_asked_at < last == size else 0
        self._cut()

    @property
    def _dump_wait_s(self) -> float:
        return BOOT_DUMP_WAIT_S if self.ready_at is None else DUMP_WAIT_S

    def _cut(self, order: tuple[ExitReason, str] | None = None) -> None:
        """Kill it now, for that reason, and make sure. One that is being launched is killed by _attend()."""
        if self._tasks is None:
            return
        if order is not None:
            self._order("kill", *order)
        self.phase = Phase.DYING
        if self._handle.cut_lifeline():
            if self.ready_at is None:
                self._handle.send_signal(signal.SIGKILL)
            else:
                self._do(self._insist)

    async def _insist(self) -> None:
        await anyio.sleep(LIFELINE_WAIT_S)
        self._handle.send_signal(signal.SIGKILL)

    async def _ping(self) -> None:
        ok = await health.ping(self._control, self._ask, self._options.ping_timeout_s)
        self._probing = False
        self._listener.probe_answered(self.worker_id, ok)

    def _ask(self, command: str, args: dict[str, Any]) -> Question:
        flushing = self._control.blocked
        question = self._control.ask(command, args)
        if self._control.blocked and not flushing:
            self._do(self._control.flush)
        return question

    def _do(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task that ends with the process, and whose fault is the end of this worker alone."""
        if self._tasks is not None:
            start_soon(self._tasks, self._guard, work, args)

    async def _guard(self, work: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await work(*args)
        except Exception as error:
            log_fault(self._log, "a worker's task failed", error)
            detail = f"{type(error).__name__} in the supervisor: {error}"
            self._distrust(detail)
            self.kill("protocol_error", detail)

    # --- its end

    def _collect(self) -> Ending:
        """Take what is left of it and close everything. Never waits for a worker that is dead."""
        ending = self._ending()
        with faults_logged(self._log, "what is left of a worker could not be collected"):
            ending.signals = self._handle.signals
            dead = self._handle.is_dead() or self._handle.end_now()
            self._output.drain_rest()
            self._control.read_rest()
            if ending.failure is None and self._handshake is not None and self._handshake.response is not None:
                ending.failure = boot.judge(self._handshake.response, self._options.executable)
            ending.stack_dump = dump = self._handle.read_dump()
            if self._dump_asked_at is not None and self._handle.dump_size() == self._dump_asked_at:
                ending.missing = f"no stack dump: none was written within {self._dump_wait_s * 1000:.0f} ms"
            elif self._dump_asked_at is not None and not dump.endswith("\n"):
                ending.missing = f"part of a stack dump: no more was written within {self._dump_wait_s * 1000:.0f} ms"
            ending.output_tail = self._output.tail()
            if dead:
                ending.status = self._handle.launched.reap()
        with faults_logged(self._log, "a worker's pipes could not be closed"):
            self._control.close()
            self._handle.close(slots=self.ready_at is None)
        return ending

    def _ending(self) -> Ending:
        """What is known of it without its pipes and its process."""
        return Ending(
            worker_id=self.worker_id,
            pid=self.pid,
            start_method=self.start_method,
            was_ready=self.ready_at is not None,
            age_s=time.monotonic() - self.started_at,
            orders=self._orders,
            failure=self._boot_failure if self.ready_at is None else None,
            peak_rss_bytes=self._rss.peak_bytes if self._rss is not None else None,
        )

    def _report(self, ending: Ending) -> None:
        if self._reported:
            return
        self._reported = True
        if ending.status.signal == signal.SIGKILL and ending.failure is None and fitting_order(ending) is None:
            ending.out_of_memory = self._oom.suspected(ending.status.peak_rss_bytes or ending.peak_rss_bytes)
        if self._oom_kills_before is not None and (now := self._oom.count()) is not None:
            ending.oom_kills = now - self._oom_kills_before
        with faults_logged(self._log, "the listener failed"):
            self._listener.worker_exited(self.worker_id, build_report(ending))
