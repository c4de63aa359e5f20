"""Real workers by hand: forked from a real template, driven over their pipes without a manager."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder
from dspool.protocol.messages import HANDSHAKE_ID, BootConfig, Request, Response
from dspool.supervisor import boot
from dspool.supervisor.launch import LaunchRequest
from dspool.supervisor.process import ExitStatus, Launched, ProcessHandle
from dspool.supervisor.template import TEMPLATE_COMMAND, Template
from dspool.supervisor.templates import TemplateLauncher
from tests.chaos.witness import PATIENCE_S


class Nobody:
    """A Listener that isn't interested."""

    def worker_ready(self, *_: object) -> None: ...
    def worker_exited(self, *_: object) -> None: ...
    def worker_unwell(self, *_: object) -> None: ...
    def probe_answered(self, *_: object) -> None: ...
    def rss_sampled(self, *_: object) -> None: ...
    def worker_due(self, *_: object) -> None: ...
    def start_method_changed(self, *_: object) -> None: ...
    def start_method_event(self, event: str, fields: Mapping[str, Any]) -> None: ...


class Wire:
    """The manager's end of one pipe."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = FrameDecoder()

    def exchange(self, data: bytes, last_id: int) -> list[Response]:
        """Send all of it while taking answers, until that with the last id came; all of them.

        Raises:
            TimeoutError: it doesn't come.
            EOFError: the pipe ends before.
        """
        unsent, found, until = memoryview(data), list[Response](), time.monotonic() + PATIENCE_S
        while True:
            readable, writable, _ = select.select([self.sock], [self.sock] if unsent else [], [], PATIENCE_S)
            if (not readable and not writable) or time.monotonic() > until:
                raise TimeoutError
            if writable:
                unsent = unsent[self.sock.send(unsent) :]
            if readable:
                found += self._take()
                if found and found[-1].id == last_id:
                    return found

    def ask(self, request: Request) -> Response:
        """One request, one answer."""
        return self.exchange(bytes(MSGPACK.encode(request)), request.id)[-1]

    def _take(self) -> list[Response]:
        count = self.sock.recv_into(self._decoder.space())
        if not count:
            raise EOFError
        self._decoder.received(count)
        found = []
        while (frame := self._decoder.next_frame()) is not None:
            found.append(MSGPACK.decode_response(frame))
        return found


class Hatched:
    """One worker that answered its handshake."""

    def __init__(self, launched: Launched, portal: BlockingPortal) -> None:
        self._handle = ProcessHandle(launched)
        self._portal = portal
        self.control, self.slot = Wire(launched.control), Wire(launched.slots[0])
        config = BootConfig(worker_id=1, pool="fuzz", sys_path=sys.path)
        answer = self.control.ask(Request(HANDSHAKE_ID, boot.COMMAND, boot.handshake_args(config)))
        assert answer.success, answer

    def ended(self) -> ExitStatus | None:
        """How it ended, waited for; None where it lives on."""
        if not self._handle.is_dead(int(PATIENCE_S * 1000)):
            return None
        self._portal.call(self._handle.launched.settle)
        return self._handle.launched.reap()

    def close(self) -> None:
        """Kill it."""
        self._handle.end_now()
        self.control.sock.close()
        self._handle.close(slots=True)


class Hatchery:
    """Where workers are forked.

    Args:
        portal: the loop that the launcher runs on.
        launcher: the start method.
    """

    def __init__(self, portal: BlockingPortal, launcher: TemplateLauncher) -> None:
        self._portal = portal
        self._launcher = launcher

    def launch(self) -> Launched:
        """Start a process."""
        request = LaunchRequest(worker_id=1, pool="fuzz", slots=1, python=sys.executable, env={})
        return self._portal.call(self._launcher.launch, request)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Hatched]:
        """A worker for the length of the block."""
        hatched = Hatched(self.launch(), self._portal)
        try:
            yield hatched
        finally:
            hatched.close()

    def template(self) -> Template:
        """The template that workers are forked from now."""
        (kind,) = self._launcher._kinds.values()
        assert kind.template is not None
        return kind.template

    def disturb(self, data: bytes) -> bool:
        """Send bytes to the template as if they were a record. Whether it ends of them, as it should."""
        template = self.template()
        assert template._handle is not None
        fd = os.dup(template._handle.exit_fd)
        try:
            self._portal.call(template._control.send, data)
            return bool(select.select([fd], [], [], PATIENCE_S)[0])
        finally:
            os.close(fd)


@contextlib.contextmanager
def hatchery(*command: str) -> Iterator[Hatchery]:
    """A hatchery, over templates of that command; without one over real ones."""
    launcher = TemplateLauncher(
        start_timeout_s=PATIENCE_S, needs_dspy=lambda: False, command=command or TEMPLATE_COMMAND
    )
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_serving(launcher)) as found,
    ):
        yield Hatchery(portal, found)


@contextlib.asynccontextmanager
async def _serving(launcher: TemplateLauncher) -> AsyncIterator[TemplateLauncher]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(launcher.serve, Nobody())
        try:
            yield launcher
        finally:
            await launcher.aclose(time.monotonic() + PATIENCE_S)
