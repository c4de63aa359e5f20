"""A worker that a template forked, from the request for it to its end: the manager's side."""

from __future__ import annotations

import contextlib
import os
import signal

import anyio
import msgspec

from dspool.supervisor import forked
from dspool.supervisor.ends import ManagerEnds
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus


class AskedFork:
    """A fork that was asked for, and what becomes of the worker.

    Attributes:
        worker_id: whose it is to be.
        answer: pid and pidfd, or why there is none; None as long as there is no answer.
        answered: set with it.
        status: how the worker ended.
        ended: set with it, or when nobody will ever know.
        given_up: whether nobody wants the worker any more.
    """

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.answer: tuple[int, int] | Exception | None = None
        self.answered = anyio.Event()
        self.status = UNKNOWN_STATUS
        self.ended = anyio.Event()
        self.given_up = False

    def resolve(self, answer: tuple[int, int] | Exception) -> None:
        """The answer came."""
        if not self.given_up:
            self.answer = answer
            self.answered.set()
        elif isinstance(answer, tuple):
            forked.close_fd(answer[1])

    def give_up(self) -> None:
        """Nobody wants the worker any more: its pidfd is closed, now or when it comes."""
        self.given_up = True
        if isinstance(self.answer, tuple):
            forked.close_fd(self.answer[1])


class ForkedChild:
    """A worker that a template forked; a Launched. The template collects it."""

    start_method: str = "template"

    def __init__(self, pid: int, pidfd: int, ends: ManagerEnds, asked: AskedFork) -> None:
        self.pid: int | None = pid
        self.exit_fd = pidfd
        self.control, self.slots, self.lifeline_fd, self.output_fds, dump_fd = ends
        self.dump_fd: int | None = dump_fd
        self._asked = asked

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process; nothing happens where it is dead."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.exit_fd, signum)

    async def settle(self) -> None:
        """Wait for the template's word."""
        await self._asked.ended.wait()

    def reap(self) -> ExitStatus:
        """What the template said; where it can't say any more, do its work as far as that is possible from here.

        1. The template died, or is stopped. 2. The worker dies by itself, and nobody has killed its group: what it had
        started would live on. The number is safe to signal while the worker is a zombie, or else while no process has
        it: then the group itself holds it, or there is none.
        """
        status = self._asked.status
        if status.known or self.pid is None:
            return status
        if self._holds_its_number():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return msgspec.structs.replace(self._collect(self.pid), orphaned=self._asked.ended.is_set())

    def _holds_its_number(self) -> bool:
        """Whether a group of the worker's number can only be the worker's."""
        try:
            signal.pidfd_send_signal(self.exit_fd, 0)
        except OSError:
            try:
                os.kill(self.pid or 0, 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False
            return False
        return True

    def _collect(self, pid: int) -> ExitStatus:
        """Its status, where the template's death made it this process's child: as process 1 of a container, say."""
        try:
            if os.waitid(os.P_PIDFD, self.exit_fd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                return UNKNOWN_STATUS
            _, status, usage = os.wait4(pid, os.WNOHANG)
        except OSError:
            return UNKNOWN_STATUS
        code = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * 1024
        if code < 0:
            return ExitStatus(signal=-code, known=True, peak_rss_bytes=peak)
        return ExitStatus(code=code, known=True, peak_rss_bytes=peak)
