"""Real workers, driven by hand over their pipes with nothing but `protocol/`. No manager, no supervisor."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder
from dspool.protocol.messages import (
    PROTOCOL_VERSION,
    BootConfig,
    CreateArgs,
    ErrorInfo,
    ExecuteArgs,
    LMSpec,
    PickledProgram,
    ProgramSpec,
    Request,
    Response,
)
from dspool.supervisor.launch import worker_environment

PATIENCE_S = 30.0
"""How long anything is waited for; only a failing test waits that long."""


class Channel:
    """The manager's end of one pipe."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)
        self._decoder = FrameDecoder()
        self._last_id = 0

    def send(self, command: str, args: Any, **fields: Any) -> int:
        """Send a request; returns its id."""
        self._last_id += 1
        self.sock.sendall(MSGPACK.encode(Request(self._last_id, command, args, **fields)))
        return self._last_id

    def receive(self) -> Response:
        """The next response; EOFError at the pipe's end."""
        return MSGPACK.decode_response(self.receive_body())

    def receive_body(self) -> memoryview:
        """The next message, whatever it is."""
        while (body := self._decoder.next_frame()) is None:
            count = self.sock.recv_into(self._decoder.space())
            if not count:
                raise EOFError
            self._decoder.received(count)
        return body

    def ask(self, command: str, args: Any = None, **fields: Any) -> Response:
        """Send a request and wait for its response."""
        request_id = self.send(command, args or {}, **fields)
        response = self.receive()
        assert response.id == request_id
        return response

    def create(self, program: object, program_id: str = "p", **lms: LMSpec) -> Response:
        """Ship a program: a spec, or anything that can be pickled."""
        if not isinstance(program, ProgramSpec):
            program = PickledProgram(cloudpickle.dumps(program), lms=lms)
        return self.ask("create_program", CreateArgs(program_id, program))

    def execute(
        self, inputs: dict[str, Any] | None = None, program_id: str = "p", lm: LMSpec | None = None, **fields: Any
    ) -> Response:
        """Run a program that was shipped."""
        return self.ask("execute_program", ExecuteArgs(program_id, inputs or {}, lm), **fields)

    def start(self, inputs: dict[str, Any] | None = None, program_id: str = "p") -> int:
        """Send a call and don't wait for its answer."""
        return self.send("execute_program", ExecuteArgs(program_id, inputs or {}))

    def run(self, program: object, inputs: dict[str, Any] | None = None, **fields: Any) -> Response:
        """Ship a program and run it."""
        created = self.create(program)
        assert created.success, created.error_info
        return self.execute(inputs, **fields)

    def run_badly(self, program: object, inputs: dict[str, Any] | None = None, **fields: Any) -> ErrorInfo:
        """Ship a program and run it; the call must fail."""
        return self.error_of(self.run(program, inputs, **fields))

    @staticmethod
    def error_of(response: Response) -> ErrorInfo:
        """The error in a response, which must hold one."""
        assert not response.success
        assert response.error_info is not None
        assert response.error == response.error_info.message
        return response.error_info


class Driven:
    """A worker process and the manager's ends of everything it has."""

    def __init__(self, slots: int, env: Mapping[str, str], folder: Path) -> None:
        control, self._control_end = socket.socketpair()
        pairs = [socket.socketpair() for _ in range(slots)]
        lifeline_end, self.lifeline = os.pipe()
        self.dump = os.memfd_create("dump")
        self.output, output_end = os.pipe()
        self._stderr = folder / f"stderr-{id(self)}"
        ends = [end.fileno() for _, end in pairs]
        fds = ["--control", self._control_end.fileno(), "--lifeline", lifeline_end, "--dump", self.dump]
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dspool.worker", *map(str, fds), "--slots", ",".join(map(str, ends))],
                pass_fds=[self._control_end.fileno(), lifeline_end, self.dump, *ends],
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=stderr,
                start_new_session=True,
                env=worker_environment(env),
            )
        for end in (self._control_end, *(end for _, end in pairs)):
            end.close()
        os.close(lifeline_end)
        os.close(output_end)
        self.control = Channel(control)
        self.slots = [Channel(sock) for sock, _ in pairs]
        self.slot = self.slots[0]
        self.ready: Response

    def handshake(self, config: BootConfig, /, **changes: Any) -> Response:
        """Boot it; returns the answer, whatever it is."""
        args: dict[str, Any] = {"initialization": True, "worker_id": config.worker_id, "config": config}
        args |= {"protocol_version": PROTOCOL_VERSION, **changes}
        self.control.sock.sendall(MSGPACK.encode(Request(0, "ping", args)))
        self.ready = self.control.receive()
        return self.ready

    def read_output(self, count: int) -> bytes:
        """Exactly so many bytes of what it wrote to fd 1."""
        data = b""
        deadline = time.monotonic() + PATIENCE_S
        while len(data) < count:
            readable, _, _ = select.select([self.output], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"only {len(data):,} of {count:,} bytes came"
            piece = os.read(self.output, count - len(data))
            assert piece, f"only {len(data):,} of {count:,} bytes came before its end"
            data += piece
        return data

    def errors(self) -> str:
        """What it has written to fd 2 so far."""
        return self._stderr.read_text()

    def stacks(self) -> str:
        """What is in its dump file."""
        return os.pread(self.dump, 2**20, 0).decode()

    def exit_code(self) -> int:
        """Wait for its exit."""
        return self.process.wait(PATIENCE_S)

    def close_lifeline(self) -> None:
        """What a manager does to kill it."""
        os.close(self.lifeline)
        self.lifeline = -1

    def dispose(self) -> None:
        """End it as a manager would that closes; it must then exit 0, and leave nobody behind."""
        lived = self.process.poll() is None
        self.control.sock.close()
        try:
            if lived:
                assert self.exit_code() == 0, self.errors()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_S)
            for channel in self.slots:
                channel.sock.close()
            for fd in {self.lifeline, self.dump, self.output} - {-1}:
                os.close(fd)


Launch = Callable[..., Driven]
Spawn = Callable[..., Driven]


def open_fds() -> set[str]:
    """This process's file descriptors and what they are."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


@pytest.fixture(autouse=True)
def _by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test module defines travels by value, as what `__main__` defines."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@contextmanager
def launching(folder: Path) -> Iterator[Launch]:
    """Starts workers and ends them; a leaked process or fd is an AssertionError."""
    before = open_fds()
    started: list[Driven] = []

    def start(slots: int = 1, **env: str) -> Driven:
        started.append(Driven(slots, env, folder))
        return started[-1]

    yield start
    for worker in started:
        worker.dispose()
    assert open_fds() == before


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """launch(slots=1, **environment): a worker that waits for its handshake. A leaked process or fd fails the test."""
    with launching(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def dspy_slot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """The slot of a worker with DSPy and without an LM, shared by a module's tests: each takes a second to start."""
    with launching(tmp_path_factory.mktemp("shared")) as start:
        worker = start()
        assert worker.handshake(BootConfig(7, "test", sys_path=sys.path, preload=["dspy"])).success
        yield worker.slot


@pytest.fixture
def spawn(launch: Launch) -> Spawn:
    """spawn(slots=1, env=None, **config): a worker that is ready."""

    def start(slots: int = 1, env: Mapping[str, str] | None = None, **config: Any) -> Driven:
        worker = launch(slots, **(env or {}))
        config.setdefault("sys_path", sys.path)
        ready = worker.handshake(BootConfig(worker_id=7, pool="test", **config))
        assert ready.success, ready.error_info
        return worker

    return start
