"""File descriptors 0, 1 and 2 of a worker: programs may use them as they like, frames never go there.

Rules:
    1. 0 is /dev/null: nothing that a program reads can be meant for it.
    2. 1 and 2 are what the parent made them. Python's streams on them write line by line, so that the output that
       led to a crash is out, and a reader who is gone is no error of the program that prints.
    3. Where the frames themselves come through 0 and 1 (the bridge), they move to numbers of their own first, and
       1 then is what 2 is.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys


class _Outlet(io.FileIO):
    """A file descriptor that takes everything, also when nobody reads it any more."""

    def write(self, data: object) -> int:
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except BrokenPipeError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def own_stdio() -> None:
    """Put 0, 1 and 2 and the three streams of `sys` in order."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = sys.__stdout__ = open_outlet(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open_outlet(2)  # type: ignore[misc]


def take_stdio() -> tuple[int, int]:
    """Move what 0 and 1 are to numbers that no program and no child of it has; 0, 1 and 2 are then as own_stdio says.

    Where 2 is the very pipe that 1 is (Erlang's `:stderr_to_stdout`, a shell's `2>&1`), whatever a program prints would
    stand between the frames, so then both become /dev/null.

    Returns:
        the descriptors to read frames from and to write them to.

    Raises:
        OSError: 0 or 1 is closed.
    """
    frames = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
    fill_stdio()
    if _are_one_pipe(1, 2):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
    os.dup2(2, 1)
    own_stdio()
    for fd in frames:
        os.set_blocking(fd, True)
    return frames[0], frames[1]


def _are_one_pipe(one: int, other: int) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    is_pipe = stat.S_ISFIFO(first.st_mode) or stat.S_ISSOCK(first.st_mode)
    return is_pipe and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def fill_stdio() -> None:
    """Open what is closed of 0, 1 and 2, else the next descriptors would get these numbers: a worker's own pipes."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def open_outlet(fd: int) -> io.TextIOWrapper:
    """A text stream on `fd` for programs to print to."""
    raw = io.BufferedWriter(_Outlet(fd, "wb", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def flush_stdio() -> None:
    """Write out what the streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # a program may have put anything in their place
            continue
