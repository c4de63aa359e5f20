"""One started process as file descriptors, whoever started it and however.

Rules:
    1. No pid decides anything here: death is `exit_fd` becoming readable, a kill is the lifeline closing.
    2. The descriptors of a Launched belong to its ProcessHandle from the moment it is made; only the slots' sockets are
       handed on, once the worker is ready.
    3. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Protocol

import anyio
import msgspec

from dspool.supervisor import forked

DUMP_BYTES = 256 * 1024
"""How much of a dump is read; the newest where there is more."""
END_WAIT_MS = 200


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended.

    Attributes:
        known: False where somebody else collected its status.
        orphaned: whether the process that it was forked from had died before it.
    """

    code: int | None = None
    signal: int | None = None
    known: bool = False
    orphaned: bool = False
    peak_rss_bytes: int | None = None


UNKNOWN_STATUS = ExitStatus()


class Launched(Protocol):
    """What a launcher hands over: one started process, or a fake of one.

    Attributes:
        pid: for people to read; None where there is no process on this machine.
        start_method: how it was started.
        exit_fd: readable once the process is dead.
        control: the manager's end of the control pipe, non-blocking.
        slots: the manager's ends of the slots' pipes, non-blocking.
        lifeline_fd: closing it kills the process and its group.
        output_fds: "stdout" and "stderr", non-blocking; empty where they are not drained.
        dump_fd: what the process writes its stacks to, or None.
    """

    pid: int | None
    start_method: str
    exit_fd: int
    control: socket.socket
    slots: list[socket.socket]
    lifeline_fd: int
    output_fds: dict[str, int]
    dump_fd: int | None

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process; nothing happens where it is dead."""

    async def settle(self) -> None:
        """Awaited when `exit_fd` is readable, for a short time: returns when its exit status is known, or never will
        be."""

    def reap(self) -> ExitStatus:
        """Called once, when `exit_fd` is readable: kill what is left of the group, collect the status. Never blocks."""


def tell_loop(fd: int | socket.socket) -> None:
    """Wake whoever waits for a descriptor that is about to be closed; nobody does where no event loop runs."""
    with contextlib.suppress(RuntimeError):
        anyio.notify_closing(fd)


class ProcessHandle:
    """Owns what a launcher handed over, and closes it.

    Attributes:
        signals: the signals that were sent to it.
    """

    def __init__(self, launched: Launched) -> None:
        self.signals: set[int] = set()
        self.launched = launched
        self._lifeline_fd: int | None = launched.lifeline_fd

    @property
    def exit_fd(self) -> int:
        """Readable once the process is dead."""
        return self.launched.exit_fd

    def is_dead(self, wait_ms: int = 0) -> bool:
        """Whether the process is dead. Waits only where asked to, blocking the loop."""
        poller = select.poll()
        poller.register(self.launched.exit_fd, select.POLLIN)
        return bool(poller.poll(wait_ms))

    def cut_lifeline(self) -> bool:
        """Kill the process and its group; False where that was done before."""
        if self._lifeline_fd is None:
            return False
        fd, self._lifeline_fd = self._lifeline_fd, None
        forked.close_fd(fd)
        return True

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process; `signals` remembers it."""
        self.signals.add(signum)
        self.launched.send_signal(signum)

    def end_now(self) -> bool:
        """Kill it without a loop to wait on, blocking shortly; whether it is dead then."""
        self.cut_lifeline()
        self.send_signal(signal.SIGKILL)
        return self.is_dead(END_WAIT_MS)

    def dump_size(self) -> int:
        """Bytes of stacks written so far."""
        return 0 if self.launched.dump_fd is None else os.fstat(self.launched.dump_fd).st_size

    def read_dump(self) -> str:
        """The stacks it wrote."""
        if self.launched.dump_fd is None:
            return ""
        start = max(0, self.dump_size() - DUMP_BYTES)
        return os.pread(self.launched.dump_fd, DUMP_BYTES, start).decode("utf-8", "replace")

    def close(self, *, slots: bool) -> None:
        """Close everything but the control pipe (its ControlPipe does that), and the slots only if asked to."""
        self.cut_lifeline()
        launched = self.launched
        for fd in (launched.exit_fd, *launched.output_fds.values()):
            tell_loop(fd)
            forked.close_fd(fd)
        if launched.dump_fd is not None:
            forked.close_fd(launched.dump_fd)
        for sock in launched.slots if slots else ():
            with contextlib.suppress(OSError):
                sock.close()
