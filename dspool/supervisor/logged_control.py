"""A control pipe whose frames are logged; see frame_log.py."""

from __future__ import annotations

import socket

from dspool.supervisor.control import ControlPipe
from dspool.supervisor.frame_log import FrameLog, PipeLog


class LoggedControlPipe(ControlPipe):
    """As a ControlPipe.

    Args:
        sock: as its.
        max_frame_bytes: as its.
        log: where its frames are logged.
        worker_id: whose pipe it is.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int, log: FrameLog, worker_id: int) -> None:
        super().__init__(sock, max_frame_bytes)
        self._log = PipeLog(log, worker_id, "control")

    def _send(self, frame: bytearray) -> None:
        self._log.sent(frame)
        super()._send(frame)

    def _take(self, frame: memoryview) -> None:
        self._log.received(frame)
        super()._take(frame)


def control_pipe(sock: socket.socket, max_frame_bytes: int, log: FrameLog | None, worker_id: int) -> ControlPipe:
    """A worker's control pipe, logged or not."""
    if log is None:
        return ControlPipe(sock, max_frame_bytes)
    return LoggedControlPipe(sock, max_frame_bytes, log, worker_id)
