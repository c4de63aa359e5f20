"""Start methods: what it takes to get one worker process going.

Rules:
    1. A launcher hands over a process or raises, and then nothing is left of the attempt: no descriptor, no process.
    2. It runs on the control loop's thread. subprocess.Popen with a vfork takes a millisecond or two; a helper thread
       would cost more, and a process can be tied to the thread that started it.
    3. It doesn't talk to the worker and doesn't wait for it. The handshake is the supervisor's.

A spawned worker's command line is `python -P -m dspool.worker --slots FD,FD,... --control FD --lifeline FD --dump FD`;
nothing secret is ever in it. The start method "template" is in templates.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from dspool.errors import WorkerStartError
from dspool.supervisor.child import SpawnedChild
from dspool.supervisor.ends import ManagerEnds, WorkerEnds, pipe_ends
from dspool.supervisor.listener import Listener
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
    # glibc raises the two thresholds to 32 and 64 MiB by itself as large blocks are freed, but for its main heap alone,
    # and slots run on other threads. Left to itself it asks the system for each large message anew, which takes longer
    # than sending it: 16 MB there and back 43 ms, with these 16 ms.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}
"""What a worker's environment has where neither the manager's nor `env=` says otherwise."""

_FDS_BESIDE_SLOTS = 6
"""Control pipe, lifeline, stdout, stderr, dump, pidfd."""


class LaunchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher is asked for.

    Attributes:
        worker_id: for which worker.
        pool: its pool's name.
        slots: how many slots' pipes it gets.
        python: the interpreter's path.
        env: how its environment differs from the manager's; as it may hold keys, it isn't shown.
        preload: modules that it will need.
    """

    worker_id: int
    pool: str
    slots: int
    python: str
    env: dict[str, str | None]
    preload: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LaunchRequest(worker_id={self.worker_id}, pool={self.pool!r}, slots={self.slots}, ...)"


class Launcher(Protocol):
    """A start method. What implements it may inherit what it doesn't need.

    Attributes:
        start_method: its name, for people.
    """

    start_method: str

    async def serve(self, listener: Listener, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """What has to go on while workers run; ended by aclose() or by cancelling it.

        Args:
            listener: is told what becomes of the start method itself.
            task_status: started once launch() may be called.
        """
        task_status.started()

    async def launch(self, request: LaunchRequest) -> Launched:
        """Start one process.

        Raises:
            WorkerStartError: it can't be started; the message says why and what to do.

        Cancellation: ends the attempt, and whatever process it had begun.
        """
        raise NotImplementedError

    def renew(self) -> None:
        """Let no worker that is launched from now on rest on what was imported before. Never blocks."""
        return

    async def aclose(self, deadline: float) -> None:
        """Give back what the launcher itself holds. Workers that it started are not its business.

        Args:
            deadline: monotonic; what resists is killed then.
        """
        return

    def end_without_loop(self) -> None:
        """In place of aclose(), where the event loop was closed while serve() ran. Any thread may call it."""
        return


def worker_environment(*layers: Mapping[str, str | None]) -> dict[str, str]:
    """A worker's environment: the defaults, the manager's, then the layers; None as a value removes a variable."""
    merged: dict[str, str | None] = {**DEFAULT_ENVIRONMENT, **os.environ}
    for layer in layers:
        merged.update(layer)
    return {name: value for name, value in merged.items() if value is not None}


class SpawnLauncher(Launcher):
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
            raise WorkerStartError(start_failure(error, request)) from error

    def _launch_now(self, request: LaunchRequest) -> Launched:
        with pipe_ends(request.slots) as (ours, theirs):
            command = [*self._command, "--slots", ",".join(map(str, theirs.slots))]
            env = worker_environment(request.env)
            return start_process(request.python, command, ours, theirs, env, self.start_method)


def start_process(
    python: str, command: Sequence[str], ours: ManagerEnds, theirs: WorkerEnds, env: dict[str, str], start_method: str
) -> SpawnedChild:
    """Start an interpreter in a session of its own, with the worker's ends and nothing else of ours open.

    Raises:
        OSError: it can't be started; there is no process then.
    """
    arguments = ["--control", str(theirs.control), "--lifeline", str(theirs.lifeline), "--dump", str(theirs.dump)]
    popen = subprocess.Popen(
        [python, *command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs.stdout,
        stderr=theirs.stderr,
        env=env,
        pass_fds=(theirs.control, theirs.lifeline, theirs.dump, *theirs.slots),
        start_new_session=True,
    )
    try:
        arm_lifeline(theirs.lifeline, popen.pid)
        child = SpawnedChild(popen.pid, ours, start_method=start_method)
    except BaseException:
        popen.kill()
        popen.wait()
        raise
    # The process is collected by whoever holds the child, never by Popen: with a return code it is "over".
    popen.returncode = 0
    return child


def arm_lifeline(lifeline: int, group: int) -> None:
    """Have the end of a lifeline kill the new process's group at once, and not only when its interpreter is up.

    A descriptor's signal belongs to what it refers to, which the process's copy shares. The process does the same for
    itself as soon as it can: this one may be killed before it comes to it. Where a preload module hangs, or what was
    started is no worker at all, nothing else would end it.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -group)
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def descriptors_needed(workers: int, slots: int) -> int:
    """How many file descriptors the manager holds for so many workers."""
    return workers * (slots + _FDS_BESIDE_SLOTS)


def start_failure(error: OSError, request: LaunchRequest) -> str:
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
