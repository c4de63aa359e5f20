"""A process that this one started itself: how its exit is seen, how it gets signals, how it is reaped.

Where the kernel has pidfds (Linux), the pidfd says that it is dead and carries the signals. Elsewhere a thread waits
for it, without collecting it, and writes to a pipe.

Reaping, and why in this order:
    1. waitid(WNOWAIT) makes sure that it is a zombie of ours. The zombie holds the number: no other process or group
       can have it.
    2. killpg() ends what is left of its group. One step later that number could be somebody else's.
    3. wait4() collects it.
Whoever else collects children in this process (a SIGCHLD handler with waitpid(-1), SIG_IGN) makes step 1 fail: then
nothing is signalled and the status is unknown, which is never the same as "exited with 0".
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
import threading

from dspool.supervisor import forked
from dspool.supervisor.ends import ManagerEnds
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class SpawnedChild:
    """A child process, leader of a group of its own; a Launched.

    Raises:
        OSError: its exit can't be watched; it is for the caller to end it then.
    """

    def __init__(self, pid: int, ends: ManagerEnds, *, start_method: str) -> None:
        self.pid: int | None = pid
        self._pid = pid
        self.start_method = start_method
        self.control, self.slots, self.lifeline_fd, self.output_fds, dump_fd = ends
        self.dump_fd: int | None = dump_fd
        self._has_pidfd = True
        self._waited: tuple[int, resource.struct_rusage] | None = None
        self._peak_floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.exit_fd = self._watch_exit()

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process; nothing happens where it is dead."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._has_pidfd:
                signal.pidfd_send_signal(self.exit_fd, signum)
            elif self._waited is None:
                os.kill(self._pid, signum)

    async def settle(self) -> None:
        """Its status is there with its death."""

    def reap(self) -> ExitStatus:
        """Kill what is left of the group and collect the status. Never blocks."""
        if self._waited is not None:
            return self._status(*self._waited)
        try:
            zombie = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if zombie is None:
                return UNKNOWN_STATUS
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
        except ChildProcessError:
            return UNKNOWN_STATUS
        return self._status(status, usage) if pid == self._pid else UNKNOWN_STATUS

    def _status(self, status: int, usage: resource.struct_rusage) -> ExitStatus:
        code = os.waitstatus_to_exitcode(status)
        # exec hands the peak of the memory it replaces, which is the manager's own, on to the new program: a figure
        # that is not over the manager's peak says nothing about the worker.
        peak = usage.ru_maxrss * _MAXRSS_UNIT if usage.ru_maxrss > self._peak_floor else None
        if code < 0:
            return ExitStatus(signal=-code, known=True, peak_rss_bytes=peak)
        return ExitStatus(code=code, known=True, peak_rss_bytes=peak)

    def _watch_exit(self) -> int:
        if hasattr(os, "pidfd_open"):
            try:
                return forked.guard_fd(os.pidfd_open(self._pid))
            except OSError as error:
                # An old kernel, or a container whose seccomp filter doesn't know the call.
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
        self._has_pidfd = False
        read_fd, write_fd = os.pipe()
        forked.guard_fd(read_fd)
        forked.guard_fd(write_fd)
        name = f"dspool-exit-{self._pid}"
        threading.Thread(target=self._wait_in_thread, args=(write_fd,), name=name, daemon=True).start()
        return read_fd

    def _wait_in_thread(self, write_fd: int) -> None:
        try:
            with contextlib.suppress(ChildProcessError):
                if hasattr(os, "waitid"):
                    os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
                else:
                    _, status, usage = os.wait4(self._pid, 0)
                    self._waited = (status, usage)
            with contextlib.suppress(BrokenPipeError):
                os.write(write_fd, b"x")
        finally:
            forked.close_fd(write_fd)
