"""A supervisor with scripted workers, and what a test needs to wait for instead of sleeping."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

import dspool
from dspool.options import PoolOptions, WorkerGroup
from dspool.protocol.messages import BootConfig
from dspool.supervisor.launch import Launcher, SpawnLauncher
from dspool.supervisor.supervisor import Supervisor, WorkerProcess
from dspool.types import ExitReason, ExitReport

HERE = Path(__file__).parent
ROOT = Path(dspool.__file__).parent.parent
SCRIPTED_COMMAND = ("-P", str(HERE / "scripted_worker.py"))
PATIENCE_S = 20.0

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}

one_backend = pytest.mark.parametrize("anyio_backend", [pytest.param(BACKENDS["asyncio"], id="asyncio")])
"""For what doesn't depend on the loop."""


@dataclass
class Event:
    """What the supervisor told."""

    kind: str
    worker_id: int
    value: Any
    at: float = field(default_factory=time.monotonic)


class Recorder:
    """A Listener that keeps everything. Like a pool's driver it owns the slots of ready workers, and closes them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.workers: dict[int, WorkerProcess] = {}
        self._news = anyio.Event()

    def worker_ready(self, worker_id: int, worker: WorkerProcess) -> None:
        self.workers[worker_id] = worker
        self._add("ready", worker_id, worker)

    def worker_exited(self, worker_id: int, report: ExitReport) -> None:
        if worker_id in self.workers:
            for slot in self.workers[worker_id].slots:
                slot.close()
        self._add("exited", worker_id, report)

    def worker_unwell(self, worker_id: int, reason: ExitReason, detail: str) -> None:
        self._add("unwell", worker_id, (reason, detail))

    def probe_answered(self, worker_id: int, ok: bool) -> None:
        self._add("probe", worker_id, ok)

    def rss_sampled(self, worker_id: int, rss_bytes: int) -> None:
        self._add("rss", worker_id, rss_bytes)

    def of(self, kind: str, worker_id: int | None = None) -> list[Event]:
        """What was told so far of that kind."""
        return [event for event in self.events if event.kind == kind and worker_id in (None, event.worker_id)]

    async def wait(self, kind: str, worker_id: int, number: int = 1) -> Event:
        """The event of that kind and worker, the first by default."""
        with anyio.fail_after(PATIENCE_S):
            while len(found := self.of(kind, worker_id)) < number:
                await self._news.wait()
        return found[number - 1]

    def worker_due(self, worker_id: int) -> None:
        self._add("due", worker_id, None)

    def start_method_changed(self, start_method: str, reason: str) -> None:
        self._add("start_method", 0, (start_method, reason))

    def start_method_event(self, event: str, fields: Mapping[str, Any]) -> None:
        self._add(event, 0, dict(fields))

    def _add(self, kind: str, worker_id: int, value: Any) -> None:
        self.events.append(Event(kind, worker_id, value))
        news, self._news = self._news, anyio.Event()
        news.set()


class Lab:
    """A running supervisor, its listener, and orders to its workers."""

    def __init__(self, supervisor: Supervisor, recorder: Recorder) -> None:
        self.supervisor = supervisor
        self.recorder = recorder
        self._ids = 0

    def start(self, script: str = "", **env: str | None) -> int:
        """Start a worker with that script; its id."""
        self._ids += 1
        group = WorkerGroup(name="tests", workers=1, env={"SCRIPT": script, **env})
        self.supervisor.start(self._ids, group)
        return self._ids

    async def ready(self, script: str = "", **env: str | None) -> WorkerProcess:
        """A worker that is ready; fails at once where it exits instead."""
        worker_id = self.start(script, **env)
        with anyio.fail_after(PATIENCE_S):
            while not self.recorder.of("ready", worker_id):
                assert not self.recorder.of("exited", worker_id), self.recorder.of("exited", worker_id)
                await self.recorder._news.wait()
        return self.recorder.workers[worker_id]

    async def exited(self, worker: int | WorkerProcess) -> ExitReport:
        """Its exit report, once it comes."""
        worker_id = worker if isinstance(worker, int) else worker.worker_id
        event = await self.recorder.wait("exited", worker_id)
        assert isinstance(event.value, ExitReport)
        return event.value

    async def order(self, worker: WorkerProcess, text: str) -> str:
        """Have the worker do something; the line it answers."""
        tell(worker, text)
        return await line(worker.slots[0])


def tell(worker: WorkerProcess, text: str) -> None:
    """Have the worker do something that it doesn't answer."""
    worker.slots[0].sendall(text.encode() + b"\n")


async def line(sock: socket.socket) -> str:
    """The next line that a worker writes to its slot."""
    found = b""
    with anyio.fail_after(PATIENCE_S):
        while not found.endswith(b"\n"):
            await anyio.wait_readable(sock)
            data = sock.recv(1)
            assert data, f"the slot ended after {found!r}"
            found += data
    return found.decode().strip()


def freeze(worker: WorkerProcess) -> None:
    """Stop the process and wait, blocking the loop, until it is."""
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)


def thaw(worker: WorkerProcess) -> None:
    """Let it go on."""
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGCONT)


def wait_dead(worker: WorkerProcess) -> None:
    """Wait, blocking the loop, until the process is dead; it stays a zombie and the supervisor hasn't seen it yet."""
    assert worker.pid is not None
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def collect(pid: int) -> int:
    """Collect a child, blocking the loop; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def dead(pid: int) -> None:
    """Wait until a process that isn't our child is dead."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(PATIENCE_S):
            await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def boot_config(worker_id: int, group: str) -> BootConfig:
    return BootConfig(worker_id=worker_id, pool="lab", sys_path=sys.path)


def options(**more: Any) -> PoolOptions:
    """Options whose workers find this dspool."""
    env = {"PYTHONPATH": str(ROOT), **more.pop("env", {})}
    return PoolOptions(**{"workers": 4, "name": "lab", "env": env, **more})


@asynccontextmanager
async def lab(launcher: Launcher | None = None, *, rss_interval_s: float = 60.0, **more: Any) -> AsyncIterator[Lab]:
    """A supervisor that runs while the block does."""
    recorder = Recorder()
    launcher = launcher or SpawnLauncher(SCRIPTED_COMMAND)
    supervisor = Supervisor(options(**more), launcher, recorder, boot_config, rss_interval_s=rss_interval_s)
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        try:
            yield Lab(supervisor, recorder)
        finally:
            with anyio.CancelScope(shield=True):
                await supervisor.aclose(time.monotonic() + 5.0)
