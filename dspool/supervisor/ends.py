"""Both ends of everything that joins a worker to its manager: control pipe, slots, lifeline, outputs, dump file.

Rules:
    1. All of it is made at once or not at all.
    2. The worker's ends are closed here as soon as the worker has them, else the manager would never see a pipe end.
    3. The manager's ends are registered in forked.py while they are open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from dspool.supervisor import forked


class ManagerEnds(NamedTuple):
    """What the manager keeps."""

    control: socket.socket
    slots: list[socket.socket]
    lifeline_fd: int
    output_fds: dict[str, int]
    dump_fd: int


class WorkerEnds(NamedTuple):
    """What the worker gets, as descriptors. The dump file is the manager's own too."""

    control: int
    lifeline: int
    stdout: int
    stderr: int
    dump: int
    slots: tuple[int, ...]


@contextlib.contextmanager
def pipe_ends(slots: int, control_type: int = socket.SOCK_STREAM) -> Iterator[tuple[ManagerEnds, WorkerEnds]]:
    """Both ends for one process. The worker's are closed after the block; the manager's too, where the block raises.

    Args:
        slots: how many slots' pipes.
        control_type: the control pipe's kind of socket.

    Raises:
        OSError: they can't be made; nothing is left open.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        with forked.creating():
            control, control_end = _socketpair(ours, theirs, control_type)
            pairs = [_socketpair(ours, theirs, socket.SOCK_STREAM) for _ in range(slots)]
            lifeline_end, lifeline_fd = _pipe(theirs, ours)
            stdout_fd, stdout_end = _output_pipe(ours, theirs)
            stderr_fd, stderr_end = _output_pipe(ours, theirs)
            dump_fd = _dump_file(ours)
        slot_ends = tuple(end for _, end in pairs)
        yield (
            ManagerEnds(
                control, [mine for mine, _ in pairs], lifeline_fd, {"stdout": stdout_fd, "stderr": stderr_fd}, dump_fd
            ),
            WorkerEnds(control_end, lifeline_end, stdout_end, stderr_end, dump_fd, slot_ends),
        )
        ours.pop_all()


def _socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack, kind: int) -> tuple[socket.socket, int]:
    """Our end, non-blocking, and the number of theirs."""
    mine, yours = socket.socketpair(socket.AF_UNIX, kind)
    ours.callback(forked.guard_socket(mine).close)
    theirs.callback(forked.guard_socket(yours).close)
    mine.setblocking(False)
    return mine, yours.fileno()


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    readers.callback(forked.close_fd, forked.guard_fd(read_fd))
    writers.callback(forked.close_fd, forked.guard_fd(write_fd))
    return read_fd, write_fd


def _output_pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    read_fd, write_fd = _pipe(ours, theirs)
    os.set_blocking(read_fd, False)
    return read_fd, write_fd


def _dump_file(ours: contextlib.ExitStack) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("dspool-dump")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    ours.callback(forked.close_fd, forked.guard_fd(fd))
    return fd
