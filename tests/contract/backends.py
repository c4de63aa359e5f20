"""The three kinds of workers, made to do the same things: `behave(do=...)` is a program in each of them.

A token says where a call ran: a process's pid, or, for a fake, its worker_id.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

import anyio
import psutil

from dspool.protocol.messages import answered
from dspool.supervisor.launch import Launcher, SpawnLauncher
from dspool.supervisor.templates import TemplateLauncher
from dspool.testing.fake import CloseSlot, Die, FakeCall, FakeLauncher, ForeignId, Garbage, Late, Then, frame_of
from dspool.testing.scripted import ScriptedLauncher
from dspool.types import WorkerInfo

DEADLINE_S = 20.0
"""How long a test waits for anything that is bound to happen."""
SHORT_S = 0.25
"""A deadline that is to pass, long enough for a call to begin before it does."""


class Visitor:
    """A call that has begun (`behave(do="meet")`) and waits to be let go."""

    def __init__(self, sock: socket.socket, token: int) -> None:
        self.token = token
        self._sock = sock
        sock.setblocking(False)

    def let_go(self) -> None:
        """Let it return its value."""
        self._sock.send(b"x")

    async def gone(self) -> None:
        """Wait until it has returned, or its worker is dead."""
        with anyio.fail_after(DEADLINE_S):
            await anyio.wait_readable(self._sock)

    def close(self) -> None:
        """Nobody looks at it any more."""
        self._sock.close()


class Gate:
    """Where calls say that they have begun, at `path`."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/{len(os.listdir(folder))}"
        self.visitors: list[Visitor] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.setblocking(False)
        self._sock.bind(self.path)
        self._sock.listen(100)

    async def arrival(self) -> Visitor:
        """Wait for the next call to begin."""
        with anyio.fail_after(DEADLINE_S):
            await anyio.wait_readable(self._sock)
            sock, _ = self._sock.accept()
            await anyio.wait_readable(sock)
            visitor = Visitor(sock, int(sock.recv(64).split()[0]))
        self.visitors.append(visitor)
        return visitor

    async def arrivals(self, count: int) -> list[Visitor]:
        """Wait for so many."""
        return [await self.arrival() for _ in range(count)]

    def nobody(self) -> bool:
        """Whether no call has begun that wasn't met."""
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        """Close all of it."""
        for visitor in self.visitors:
            visitor.close()
        self._sock.close()


class Backend:
    """One kind of workers. A context manager: what it made for the test is gone after it."""

    name: str
    start_method: str

    def __init__(self) -> None:
        self.gates: list[Gate] = []
        self._folder = ""

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="dsp")
        return self

    def __exit__(self, *error: object) -> None:
        for gate in self.gates:
            gate.close()
        shutil.rmtree(self._folder)

    def gate(self) -> Gate:
        """A new gate."""
        self.gates.append(Gate(self._folder))
        return self.gates[-1]

    def launcher(self, faults: tuple[str | None, ...] = ()) -> Launcher:
        """A launcher for one pool; its first starts go wrong as `faults` says."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Options that these workers want."""
        return {}

    def token_of(self, worker: WorkerInfo) -> int:
        """The token of a worker."""
        assert worker.pid is not None
        return worker.pid

    def kill(self, token: int) -> None:
        """Let a worker die by itself, by SIGKILL."""
        os.kill(token, signal.SIGKILL)

    def end(self, token: int) -> None:
        """The same, and wait until it is dead."""
        process = psutil.Process(token)
        self.kill(token)
        _, alive = psutil.wait_procs([process], timeout=DEADLINE_S)
        assert not alive

    def freeze(self, token: int) -> None:
        """Let a worker read nothing from now on."""
        os.kill(token, signal.SIGSTOP)

    def folder(self) -> Path:
        """A folder for the test."""
        return Path(self._folder)


class ScriptedBackend(Backend):
    """Processes of dspool.testing."""

    name = start_method = "scripted"

    def launcher(self, faults: tuple[str | None, ...] = ()) -> Launcher:
        """See Backend."""
        return ScriptedLauncher(faults)


class RealBackend(Backend):
    """Real workers, forked from a template."""

    name = "real"
    start_method = "template"

    def launcher(self, faults: tuple[str | None, ...] = ()) -> Launcher:
        """See Backend."""
        assert not faults
        return TemplateLauncher(needs_dspy=lambda: False)


class SpawnedBackend(RealBackend):
    """Real workers, spawned."""

    name = "spawned"
    start_method = "spawn"

    def launcher(self, faults: tuple[str | None, ...] = ()) -> Launcher:
        """See Backend."""
        assert not faults
        return SpawnLauncher()


class FakeBackend(Backend):
    """Workers in memory, one launcher for the test."""

    name = start_method = "fake"

    def __init__(self) -> None:
        super().__init__()
        self.fakes = FakeLauncher(self._behave)
        self._counts: dict[int, int] = {}

    def launcher(self, faults: tuple[str | None, ...] = ()) -> Launcher:
        """See Backend."""
        left = list(faults)

        def boot(worker_id: int) -> Any:
            return _FAULTS[left.pop(0)] if left else None

        self.fakes = FakeLauncher(self._behave, boot=boot)
        return self.fakes

    def token_of(self, worker: WorkerInfo) -> int:
        """See Backend."""
        return worker.worker_id

    def kill(self, token: int) -> None:
        """See Backend."""
        self.fakes.kill(token)

    def end(self, token: int) -> None:
        """See Backend."""
        self.fakes.kill(token)

    def freeze(self, token: int) -> None:
        """See Backend."""
        self.fakes.freeze(token)

    def _behave(self, call: FakeCall) -> Any:
        inputs = dict(call.inputs)
        return getattr(self, f"_do_{inputs.pop('do', 'echo')}")(call, **inputs)

    def _do_echo(self, call: FakeCall, value: Any = None) -> Any:
        return value

    def _do_pid(self, call: FakeCall) -> int:
        return call.worker_id

    def _do_count(self, call: FakeCall) -> list[int]:
        self._counts[call.worker_id] = self._counts.get(call.worker_id, 0) + 1
        return [call.worker_id, self._counts[call.worker_id]]

    def _do_environment(self, call: FakeCall, name: str) -> str | None:
        return self.fakes.workers[call.worker_id].request.env.get(name)

    def _do_meet(self, call: FakeCall, path: str, value: Any = None) -> Any:
        return Late(_arrive(path, call.worker_id), value)

    def _do_babble(self, call: FakeCall, path: str) -> Any:
        unasked = Garbage(frame_of(answered(2**40, {"value": "nobody asked"})))
        return Then([None, Late(_arrive(path, call.worker_id), unasked)])

    def _do_fail(self, call: FakeCall, message: str = "no luck") -> Any:
        return ValueError(message)

    def _do_leave(self, call: FakeCall, code: int = 1) -> Any:
        return Die(code=code)

    def _do_crash(self, call: FakeCall, signum: int = signal.SIGSEGV) -> Any:
        return Die(signal=signum)

    def _do_big(self, call: FakeCall, size: int) -> bytes:
        return b"b" * size

    def _do_length(self, call: FakeCall, data: bytes | str) -> int:
        return len(data)

    def _do_unencodable(self, call: FakeCall) -> object:
        return object()

    def _do_garbage(self, call: FakeCall, data: bytes = Garbage().data) -> Any:
        return Garbage(data)

    def _do_foreign_id(self, call: FakeCall, value: Any = None) -> Any:
        return ForeignId(value=value)

    def _do_end_slot(self, call: FakeCall) -> Any:
        return CloseSlot()


_FAULTS: dict[str | None, Any] = {
    None: None,
    "boot_error": ImportError("no luck"),
    "exit": Die(code=3),
    "crash": Die(signal=signal.SIGKILL),
    "garbage": Garbage(b"GET / HTTP/1.1\r\n\r\n"),
}


def _arrive(path: str, token: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(f"{token}\n".encode())
    return sock
