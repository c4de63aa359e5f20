"""Starts workers for a trial, loads programs in them, and ends them: the same launcher, supervisor and handshake as a
pool's, without a pool.

Rules:
    1. One worker at a time serves. A program that ends it gets another for those after it.
    2. Whatever ends try_start(), a cancellation too, nothing of it is left when it returns: the supervisor kills and
       reaps what there is.
    3. Every wait has the options' start_timeout_s, as in a pool.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import anyio.abc
import msgspec

from dspool.errors import DspoolError
from dspool.protocol.messages import NamedProgram, Response
from dspool.supervisor.control import ControlPipe
from dspool.supervisor.environment.asked import Asked, Kind, Program
from dspool.supervisor.life import WorkerProcess
from dspool.supervisor.starting import start, start_soon
from dspool.supervisor.supervisor import Supervisor
from dspool.types import ExitReason, ExitReport

_STOP_S, _END_S = 2.0, 5.0


class Loaded(NamedTuple):
    """What came of a program: why it doesn't load, with the traceback where there is one; both empty where it does."""

    label: str
    problem: str = ""
    traceback: str = ""


class Trial(msgspec.Struct, kw_only=True):
    """What came of it.

    Attributes:
        start_method: how workers were started in the end.
        fallback: why that is another method than the one asked for; empty where it is the same.
        took_s: until each worker was ready, the first one's template included.
        python: the workers' Python version.
        failure: the report of the start that failed, or None.
        programs: what came of each program.
    """

    start_method: str
    fallback: str = ""
    took_s: list[float] = []
    python: str = ""
    failure: ExitReport | None = None
    programs: list[Loaded] = []


async def try_start(asked: Asked, kind: Kind, programs: Sequence[Program]) -> Trial:
    """Start a worker of a kind, and another; load the programs in it.

    Cancellation: ends everything it started, then raises.
    """
    trial = Trial(start_method=str(asked.options.start_method), took_s=[], programs=[])
    async with _running(asked, trial) as nursery:
        worker = await nursery.start(kind)
        if worker is not None and worker.start_method != "spawn":
            worker = await nursery.start(kind) or worker  # the first one waited for its template
        for program in programs:
            if trial.failure is not None:
                break
            if program.program is None:
                trial.programs.append(Loaded(program.label, program.problem))
                continue
            if worker is None or worker.worker_id in nursery.ended:
                worker = await nursery.start(kind)
            if worker is not None:
                trial.programs.append(await nursery.load(worker, program.label, program.program))
        await nursery.stop()
    return trial


@asynccontextmanager
async def _running(asked: Asked, trial: Trial) -> AsyncIterator[_Nursery]:
    nursery = _Nursery(asked, trial)
    async with anyio.create_task_group() as tasks:
        await start(tasks, nursery.supervisor.run)
        try:
            yield nursery
        finally:
            with anyio.CancelScope(shield=True):
                nursery.close_slots()
                await nursery.supervisor.aclose(time.monotonic() + _END_S)


class _Nursery:
    """The workers of a trial; the supervisor's Listener.

    Attributes:
        supervisor: theirs.
        ended: worker_id -> its exit report.
    """

    def __init__(self, asked: Asked, trial: Trial) -> None:
        assert asked.make_launcher is not None
        assert asked.boot_config is not None
        self.ended: dict[int, ExitReport] = {}
        self._trial = trial
        self._timeout_s = asked.options.start_timeout_s
        self._max_frame_bytes = asked.options.max_frame_bytes
        self._ready: dict[int, WorkerProcess] = {}
        self._sockets: list[socket.socket] = []
        self._pipes: dict[int, ControlPipe] = {}
        self._news = anyio.Event()
        self._count = 0
        self.supervisor = Supervisor(asked.options, asked.make_launcher(), self, asked.boot_config)

    async def start(self, kind: Kind) -> WorkerProcess | None:
        """Start a worker and wait for it; None where it failed, and the trial says how."""
        worker_id, self._count = self._count, self._count + 1
        began = time.monotonic()
        self.supervisor.start(worker_id, kind.group)
        with anyio.move_on_after(self._timeout_s):
            await self._until(worker_id)
        if worker_id not in self._ready and worker_id not in self.ended:
            detail = f"it was not ready within start_timeout_s={self._timeout_s:g}"
            self.supervisor.kill(worker_id, "start_timeout", detail, dump=True)
            with anyio.move_on_after(_END_S):
                await self._until(worker_id)
        worker = self._ready.get(worker_id)
        if worker is None:
            self._trial.failure = self.ended.get(worker_id) or ExitReport(
                worker_id=worker_id, pid=None, reason="start_timeout", detail="it doesn't end", status_known=False
            )
            return None
        self._trial.took_s.append((worker.ready_at or began) - began)
        self._trial.python = worker.python_version
        if not self._trial.fallback:
            self._trial.start_method = worker.start_method
        return worker

    async def load(self, worker: WorkerProcess, label: str, program: NamedProgram) -> Loaded:
        """Have a worker load a program."""
        pipe = self._pipe(worker)
        answers: list[Response] = []
        try:
            question = pipe.ask("create_program", {"program_id": program.program_id, "spec": program.spec})
        except DspoolError as error:
            return Loaded(label, str(error))
        timeout_s = load_timeout_s(self._timeout_s)
        with anyio.move_on_after(timeout_s) as limit:
            async with anyio.create_task_group() as tasks:

                async def wait_for_answer() -> None:
                    answers.append(await question.answer())
                    tasks.cancel_scope.cancel()

                async def wait_for_end() -> None:
                    await self._until_ended(worker.worker_id)
                    pipe.read_rest()  # a complete answer wins over the exit that follows it
                    tasks.cancel_scope.cancel()

                start_soon(tasks, pipe.flush)
                start_soon(tasks, _read, pipe)
                start_soon(tasks, wait_for_answer)
                start_soon(tasks, wait_for_end)
        response = question.response
        if response is not None:
            return Loaded(label, "" if response.success else told_by(response), traceback_of(response))
        if limit.cancelled_caught:
            self.supervisor.kill(worker.worker_id, "timeout", "a program did not load in time", dump=True)
            with anyio.move_on_after(_END_S):
                await self._until_ended(worker.worker_id)
            stacks = self.ended[worker.worker_id].stack_dump if worker.worker_id in self.ended else ""
            return Loaded(label, f"it was not loaded within {timeout_s:g} s (start_timeout_s)", stacks)
        report = self.ended.get(worker.worker_id)
        if report is None:
            return Loaded(label, "the worker closed its pipe")
        return Loaded(label, f"loading it ended the worker: {end_of(report)}", report.stack_dump)

    async def stop(self) -> None:
        """Let the workers end by themselves; who doesn't is killed with the supervisor."""
        for worker_id in self._ready:
            self.supervisor.stop(worker_id, "stopped", time.monotonic() + _STOP_S)
        with anyio.move_on_after(_STOP_S):
            for worker_id in self._ready:
                await self._until_ended(worker_id)

    def close_slots(self) -> None:
        """Close what the workers handed over."""
        for sock in self._sockets:
            sock.close()

    def _pipe(self, worker: WorkerProcess) -> ControlPipe:
        if worker.worker_id not in self._pipes:
            self._pipes[worker.worker_id] = ControlPipe(worker.slots[0], self._max_frame_bytes)
        return self._pipes[worker.worker_id]

    async def _until(self, worker_id: int) -> None:
        while worker_id not in self._ready and worker_id not in self.ended:
            await self._news.wait()

    async def _until_ended(self, worker_id: int) -> None:
        while worker_id not in self.ended:
            await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    # The Listener's side

    def worker_ready(self, worker_id: int, worker: WorkerProcess) -> None:
        """See Listener."""
        self._ready[worker_id] = worker
        self._sockets += worker.slots
        self._tell()

    def worker_exited(self, worker_id: int, report: ExitReport) -> None:
        """See Listener."""
        self.ended[worker_id] = report
        self._tell()

    def worker_unwell(self, worker_id: int, reason: ExitReason, detail: str) -> None:
        """See Listener: it is of no more use."""
        self.supervisor.kill(worker_id, reason, detail)

    def probe_answered(self, worker_id: int, ok: bool) -> None:
        """See Listener; nobody is pinged."""

    def rss_sampled(self, worker_id: int, rss_bytes: int) -> None:
        """See Listener."""

    def worker_due(self, worker_id: int) -> None:
        """See Listener."""

    def start_method_changed(self, start_method: str, reason: str) -> None:
        """See Listener."""
        self._trial.start_method, self._trial.fallback = start_method, reason

    def start_method_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See Listener."""


def load_timeout_s(start_timeout_s: float) -> float:
    """How long a program may take to load: as long as a start, of which loading the programs of `warm=` is a part."""
    return start_timeout_s


async def _read(pipe: ControlPipe) -> None:
    """Take the answer; what is wrong with the pipe is seen by its worker's end, or by the time that is up."""
    try:
        await pipe.read()
    except DspoolError:
        return


def told_by(response: Response) -> str:
    """What an error answer says, in one line."""
    info = response.error_info
    message = response.error or (info.message if info else "") or "it gave no reason"
    kind = info.type.rpartition(".")[2] if info else ""
    return f"{kind}: {message}" if kind else message


def traceback_of(response: Response) -> str:
    """The traceback of an error answer."""
    return response.error_info.traceback if response.error_info is not None else ""


def end_of(report: ExitReport) -> str:
    """How a worker ended, in a few words."""
    if report.detail:
        return f"{report.reason}: {report.detail}"
    if report.signal:
        return f"{report.reason} ({report.signal})"
    return report.reason if report.exit_code is None else f"{report.reason} with exit code {report.exit_code}"
