"""The control plane of processes: the table of workers and the task group they live in.

Rules:
    1. Everything happens on one loop. The orders are synchronous, never block, and do nothing for a worker that is
       unknown or gone.
    2. Every start() gives exactly one worker_exited, whatever happens: no process, a boot error, a kill, the
       supervisor's own end.
    3. run() ends only when the last worker is dead and reaped, or its time is up; then no descriptor, process or task
       of it is left. Cancelling it is the same as closing it.
    4. A fault in one worker's tasks ends that worker, never another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import anyio.abc
import anyio.lowlevel

from dspool.logs import get_logger
from dspool.options import PoolOptions, WorkerGroup
from dspool.protocol.messages import BootConfig
from dspool.protocol.secrets import Secrets
from dspool.supervisor.faults import log_fault
from dspool.supervisor.frame_log import FrameLog
from dspool.supervisor.health import RSS_INTERVAL_S, sample_rss
from dspool.supervisor.launch import Launcher
from dspool.supervisor.life import WorkerProcess
from dspool.supervisor.listener import Listener
from dspool.supervisor.memory import OomCounter
from dspool.supervisor.starting import start, start_soon
from dspool.types import ExitReason, ExitReport

__all__ = ["Listener", "Supervisor", "WorkerProcess"]

CLOSE_WAIT_S = 5.0
"""How long a cancelled run() waits for killed workers to be dead. A kill takes milliseconds."""
ABANDON_WAIT_S = 1.0


class Supervisor:
    """Starts, watches and ends workers; tells a listener.

    Args:
        options: the pool's.
        launcher: the start method; closed when run() ends.
        listener: who is told.
        boot_config: (worker_id, group name) -> what the handshake tells that worker. Called at its start.
        rss_interval_s: seconds between two samples of the workers' memory.
        frame_log: where the control pipes' frames are logged, or None.
        secrets: what is masked in the workers' output.
    """

    def __init__(
        self,
        options: PoolOptions,
        launcher: Launcher,
        listener: Listener,
        boot_config: Callable[[int, str], BootConfig],
        *,
        rss_interval_s: float = RSS_INTERVAL_S,
        frame_log: FrameLog | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        self._options = options
        self._launcher = launcher
        self._listener = listener
        self._boot_config = boot_config
        self._rss_interval_s = rss_interval_s
        self._frame_log = frame_log
        self._secrets = secrets or Secrets()
        self._workers: dict[int, WorkerProcess] = {}
        self._oom = OomCounter()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._deadline: float | None = None
        self._closing: anyio.Event
        self._empty: anyio.Event
        self._over: anyio.Event

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until aclose().

        Cancellation: every worker is killed; raises once the last one is reaped and reported.
        """
        # Made here, they are of this loop: a task of trio may open a blocking pool, which serves on asyncio.
        self._closing, self._empty, self._over = anyio.Event(), anyio.Event(), anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                await start(tasks, self._launcher.serve, self._listener)
                self._tasks = tasks
                start_soon(tasks, self._sample_rss)
                task_status.started()
                try:
                    await self._closing.wait()
                finally:
                    self._closing.set()
                    with anyio.CancelScope(shield=True):
                        await self._end_workers()
                    self._tasks = None
                    tasks.cancel_scope.cancel()
        finally:
            self._over.set()

    async def aclose(self, deadline: float) -> None:
        """Kill what is left and end run(); returns when it has ended. Legal more than once.

        Args:
            deadline: monotonic; a worker that isn't dead by then is reported as it is.
        """
        if self._tasks is None:
            return
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        self._closing.set()
        await self._over.wait()

    def end_without_loop(self) -> None:
        """In place of aclose(), where the event loop was closed while run() ran. Any thread may call it."""
        for worker in list(self._workers.values()):
            worker.end_without_loop()
        self._workers.clear()
        self._launcher.end_without_loop()

    def start(self, worker_id: int, group: WorkerGroup) -> None:
        """Start a worker: worker_ready or worker_exited will follow. Only while run() runs.

        Once the supervisor is closing, worker_exited is called before this returns.
        """
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} was started before; an id is never used again")
        if self._tasks is None or self._closing.is_set():
            report = ExitReport(
                worker_id=worker_id, pid=None, reason="stopped", detail="the supervisor is closed", status_known=False
            )
            self._listener.worker_exited(worker_id, report)
            return
        worker = WorkerProcess(
            worker_id, group, self._options, self._listener, self._oom, self._secrets, self._frame_log
        )
        self._workers[worker_id] = worker
        start_soon(self._tasks, self._live, worker)

    def stop(self, worker_id: int, reason: ExitReason, deadline: float) -> None:
        """Ask a worker to end: shutdown, then EOF, then SIGTERM, then a kill at the deadline (monotonic)."""
        if worker := self._workers.get(worker_id):
            worker.stop(reason, deadline)

    def kill(self, worker_id: int, reason: ExitReason | None, detail: str, *, dump: bool = False) -> None:
        """Kill a worker and its process group.

        Args:
            worker_id: which.
            reason: for its exit report. None: it seems to be dead already, so it gets 20 ms to be it, and its exit
                report says what it died of.
            detail: for its exit report.
            dump: ask it for its threads' stacks before; waits 10 ms at most.
        """
        if worker := self._workers.get(worker_id):
            worker.kill(reason, detail, dump=dump)

    def probe(self, worker_id: int) -> None:
        """Ping a worker; probe_answered follows within ping_timeout_s, unless it exits first."""
        if worker := self._workers.get(worker_id):
            worker.probe()

    def cancel(self, worker_id: int, request_id: int) -> None:
        """Ask a worker to cancel the call of this request; its slot's pipe tells when it has ended."""
        if worker := self._workers.get(worker_id):
            worker.cancel(request_id)

    def renew(self) -> None:
        """Let workers that are started from now on rest on nothing that was imported before."""
        self._launcher.renew()

    async def _live(self, worker: WorkerProcess) -> None:
        try:
            await worker.live(self._launcher, self._boot_config)
        finally:
            self._left(worker)

    def _left(self, worker: WorkerProcess) -> None:
        self._workers.pop(worker.worker_id, None)
        if self._closing.is_set() and not self._workers:
            self._empty.set()

    async def _sample_rss(self) -> None:
        while True:
            try:
                await sample_rss(self._workers.values, self._listener.rss_sampled, self._rss_interval_s)
            except Exception as error:
                log = get_logger("dspool.supervisor", pool=self._options.name)
                log_fault(log, "sampling the workers' memory failed", error)

    async def _end_workers(self) -> None:
        deadline = time.monotonic() + CLOSE_WAIT_S if self._deadline is None else self._deadline
        if not self._workers:
            self._empty.set()
        for _ in range(2):  # every task that will ever begin has begun after this
            await anyio.lowlevel.cancel_shielded_checkpoint()
        for worker in list(self._workers.values()):
            worker.kill("stopped", "the pool closed")
            if not worker.begun:
                worker.never_lived()
                self._left(worker)
        with anyio.move_on_after(deadline - time.monotonic()):
            await self._empty.wait()
        for worker in list(self._workers.values()):
            worker.abandon()
        with anyio.move_on_after(ABANDON_WAIT_S):
            await self._empty.wait()
        for worker in list(self._workers.values()):
            worker.never_lived()
        self._workers.clear()
        await self._launcher.aclose(deadline)
