"""Premises: where a scenario takes place. What is there is counted before, and what is left of it after.

Processes are found by a mark in the environment that everything started from here inherits. A worker whose template was
killed is nobody's child any more, and a search among descendants would miss it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

import psutil

from dspool.testing.pytest_plugin import Census

MARK = "DSPOOL_CHAOS_RUN"
SETTLE_S = 5.0


class Premises:
    """A folder, a mark on processes, and a count of what there is.

        with Premises() as premises:
            ...                                 # pools are opened, tried and closed
            left = premises.left()              # {"processes": 0, "descriptors": 0, ...}

    Leaving it ends every process that bears the mark, and removes the folder.

    Attributes:
        folder: for the scenario's own files.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._root = Path(tempfile.mkdtemp(prefix="dspool-chaos-"))
        self.folder = self._root / "own"
        self._temporary = self._root / "tmp"
        self._before: dict[str, int] = {}
        self._census: Census
        self._set_aside: dict[str, str | None] = {}

    def __enter__(self) -> Premises:
        self.folder.mkdir()
        self._temporary.mkdir()
        for name, value in ((MARK, self._mark), ("TMPDIR", str(self._temporary))):
            self._set_aside[name] = os.environ.get(name)
            os.environ[name] = value
        tempfile.tempdir = None  # it is found anew, from TMPDIR
        self._census = Census()
        self._before = self.count()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            self.send(pid, signal.SIGKILL)
        for name, value in self._set_aside.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        tempfile.tempdir = None
        shutil.rmtree(self._root, ignore_errors=True)

    def processes(self) -> list[int]:
        """The pids of what was started from here and lives, stopped ones too."""
        return [pid for pid in marked(MARK, self._mark) if pid != os.getpid()]

    def send(self, pid: int, signum: int) -> bool:
        """Send a signal to a process of these premises, and to no other that has its number by now. Whether it was."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not _bears(pid, MARK, self._mark):
                return False
            signal.pidfd_send_signal(fd, signum)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def templates(self) -> list[int]:
        """The pids of templates."""
        return templates_of(os.getpid())

    def count(self) -> dict[str, int]:
        """What there is now."""
        return {
            "processes": len(self.processes()),
            "zombies": sum(1 for pid in children(os.getpid()) if _state(pid) == "Z"),
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # without the one that lists them
            "threads": len(self._census.new_threads()),  # without those that libraries keep for the next user
            "files": sum(len(files) for _, _, files in os.walk(self._temporary)),
        }

    def left(self) -> dict[str, int]:
        """How much more there is than at first, after everything had its time to end."""
        deadline = time.monotonic() + SETTLE_S
        self._census.settled(SETTLE_S)
        while any(more := self._more()) and time.monotonic() < deadline:
            gc.collect()
            threading.Event().wait(0.01)  # nobody tells that a process of another parent has ended
        return dict(zip(self._before, more, strict=True))

    def _more(self) -> list[int]:
        return [max(0, now - self._before[name]) for name, now in self.count().items()]


def marked(name: str, value: str) -> list[int]:
    """The pids of those that began with this in their environment and live, stopped ones too."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if _bears(pid, name, value) and _state(pid) not in "ZX"]


def templates_of(manager: int) -> list[int]:
    """The pids of a manager's templates."""
    return [pid for pid in children(manager) if b"dspool.worker.template" in _read(pid, "cmdline")]


def children(pid: int) -> list[int]:
    """The pids of a process's children, zombies too."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(pid, f"task/{thread}/children").split())
    return found


def resident_bytes(pid: int | None = None) -> int:
    """The memory of a process that is its own: what would come free if it ended."""
    size: int = psutil.Process(pid).memory_full_info().uss
    return size


def _bears(pid: int, name: str, value: str) -> bool:
    return f"{name}={value}".encode() in _read(pid, "environ").split(b"\0")


def _state(pid: int) -> str:
    """The letter of its state; "X" where it is gone."""
    return _read(pid, "stat").rpartition(b")")[2].decode().strip()[:1] or "X"


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
