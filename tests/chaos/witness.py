"""What scenarios see of processes from outside: a door where programs say who they are, and their ends.

A process is a pidfd here from the moment it is known, so a number that is used again deceives nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PATIENCE_S = 30.0


class Witness:
    """The processes of one accident, watched until they are dead."""

    def __init__(self) -> None:
        self._pidfds: list[int] = []

    def watch(self, pid: int) -> None:
        """Watch a process that lives, or did so a moment ago."""
        with contextlib.suppress(ProcessLookupError):
            self._pidfds.append(os.pidfd_open(pid))

    def alive(self, until: float) -> int:
        """How many are alive at that time (monotonic); returns as soon as none is."""
        alive = _unready(self._pidfds, 0.0)
        while alive and (left_s := until - time.monotonic()) > 0:
            select.select(alive, [], [], left_s)
            alive = _unready(alive, 0.0)
        return len(alive)

    def close(self) -> None:
        """Kill what is left."""
        for fd in self._pidfds:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self._pidfds.clear()


def _unready(fds: Iterable[int], wait_s: float) -> list[int]:
    ready, _, _ = select.select(list(fds), [], [], wait_s)
    return [fd for fd in fds if fd not in ready]


class Door:
    """Where programs say their processes' numbers.

    Attributes:
        path: what programs are told.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "door")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen(1024)

    def arrivals(self, count: int, within_s: float = PATIENCE_S) -> list[int]:
        """The numbers of so many processes that come, as they come; fewer where the time is over before."""
        until, pids = time.monotonic() + within_s, list[int]()
        while len(pids) < count:
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                visitor, _ = self._socket.accept()
            except TimeoutError:
                break
            with visitor:
                visitor.settimeout(PATIENCE_S)
                if said := visitor.recv(32):  # nothing, where it was killed before it could speak
                    pids.append(int(said))
        return pids

    def empty(self) -> None:
        """Forget who came and was not asked for."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()

    def close(self) -> None:
        """Nobody comes any more."""
        self._socket.close()


@contextlib.contextmanager
def door() -> Iterator[Door]:
    """A door in a folder of its own, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="dspool-chaos-") as folder:
        found = Door(Path(folder))
        try:
            yield found
        finally:
            found.close()
