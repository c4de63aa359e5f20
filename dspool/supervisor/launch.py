"""Start methods: what it takes to get one worker process going.

Rules:
    1. A launcher hands over a process or raises, and then nothing is left of the attempt: no descriptor, no process.
    2. It runs on the control loop's thread. subprocess.Popen with a vfork takes a millisecond or two; a helper thread
       would cost more, and a process can be tied to the thread that started it.
    3. It doesn't talk to the process and doesn't wait for it. The handshake is the supervisor's.

A worker's command line is `python -P -m dspool.worker --control FD --lifeline FD --dump FD --slots FD,FD,...`; nothing
secret is ever in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from dspool.errors import WorkerStartError
from dspool.supervisor import forked
from dspool.supervisor.child import SpawnedChild
from dspool.supervisor.process import Launched

WORKER_COMMAND = ("-P", "-m", "dspool.worker")

DEFAULT_ENVIRONMENT: Mapping[str, str] = {
    # litellm would fetch its price table from the network when it is imported.
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    # N workers with a BLAS thread per core each are N times too many threads.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}
"""What a worker's environment has where neither the manager's nor `env=` says otherwise."""

_FDS_BESIDE_SLOTS = 6


class LaunchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher is asked for. `env` is the whole environment; as it holds keys, it isn't shown."""

    worker_id: int
    pool: str
    slots: int
    python: str
    env: dict[str, str]

    def __repr__(self) -> str:
        return f"LaunchRequest(worker_id={self.worker_id}, pool={self.pool!r}, slots={self.slots}, ...)"


class Launcher(Protocol):
    """A start method."""

    start_method: str

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start one process.

        Raises:
            WorkerStartError: it can't be started; the message says why and what to do.

        Cancellation: ends the attempt, and whatever process it had begun.
        """

    async def aclose(self) -> None:
        """Give back what the launcher itself holds. Processes it started are not its business."""


def worker_environment(*layers: Mapping[str, str | None]) -> dict[str, str]:
    """A worker's environment: the defaults, the manager's, then the layers; None as a value removes a variable."""
    merged: dict[str, str | None] = {**DEFAULT_ENVIRONMENT, **os.environ}
    for layer in layers:
        merged.update(layer)
    return {name: value for name, value in merged.items() if value is not None}


class SpawnLauncher:
    """Start method "spawn": a fresh interpreter for each worker.

    Args:
        command: the interpreter's arguments, before those that name the file descriptors.
    """

    start_method: str = "spawn"

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = tuple(command)

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start one interpreter; see Launcher.launch."""
        try:
            return self._launch_now(request)
        except OSError as error:
            raise WorkerStartError(_start_failure(error, request)) from error

    async def aclose(self) -> None:
        """Nothing is held."""

    def _launch_now(self, request: LaunchRequest) -> Launched:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            with forked.creating():
                control, control_fd = _socketpair(ours, theirs)
                slots, slot_fds = zip(*(_socketpair(ours, theirs) for _ in range(request.slots)), strict=True)
                lifeline_end, lifeline_fd = _pipe(theirs, ours)
                stdout_fd, stdout_end = _output_pipe(ours, theirs)
                stderr_fd, stderr_end = _output_pipe(ours, theirs)
                dump_fd = _dump_file(ours)
            arguments = ["--control", str(control_fd), "--lifeline", str(lifeline_end), "--dump", str(dump_fd)]
            arguments += ["--slots", ",".join(map(str, slot_fds))]
            popen = subprocess.Popen(
                [request.python, *self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout_end,
                stderr=stderr_end,
                env=request.env,
                pass_fds=(control_fd, lifeline_end, dump_fd, *slot_fds),
                start_new_session=True,
            )
            try:
                child = SpawnedChild(
                    popen.pid,
                    start_method=self.start_method,
                    control=control,
                    slots=list(slots),
                    lifeline_fd=lifeline_fd,
                    output_fds={"stdout": stdout_fd, "stderr": stderr_fd},
                    dump_fd=dump_fd,
                )
            except BaseException:
                popen.kill()
                popen.wait()
                raise
            # The process is collected by whoever holds the child, never by Popen: with a return code it is "over".
            popen.returncode = 0
            ours.pop_all()
            return child


def _socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, int]:
    """Our end, non-blocking, and the number of theirs."""
    mine, yours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
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


def _start_failure(error: OSError, request: LaunchRequest) -> str:
    """The error as a sentence that says what to do."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = request.slots + _FDS_BESIDE_SLOTS
        return (
            f"no file descriptor left ({error.strerror}): a worker with slots={request.slots} takes {needed}, and about"
            f" twice that while it starts; this process may have {soft}. Raise RLIMIT_NOFILE, or use fewer workers or"
            " slots"
        )
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return f"the system refuses another process ({error.strerror}); see RLIMIT_NPROC, the cgroup's pids.max, memory"
    if error.filename is not None and error.errno == errno.ENOENT:
        return f"Python executable not found: {request.python}"
    if error.filename is not None:
        return f"Python executable can't be run: {request.python} ({error.strerror})"
    return f"the process can't be started: {error}"
