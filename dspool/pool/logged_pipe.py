"""A slot's pipe whose frames are logged; see supervisor/frame_log.py."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from dspool.errors import ProtocolError
from dspool.pool.slot_pipe import PipeEnded, SlotPipe
from dspool.supervisor.frame_log import FrameLog, PipeLog


class LoggedSlotPipe(SlotPipe):
    """As a SlotPipe.

    Args:
        sock: as its.
        max_frame_bytes: as its.
        log: the log of its frames.
    """

    __slots__ = ("_log",)

    def __init__(self, sock: socket.socket, max_frame_bytes: int, log: PipeLog) -> None:
        super().__init__(sock, max_frame_bytes)
        self._log = log

    def send(self, frame: bytearray) -> bool:
        """As SlotPipe.send()."""
        self._log.sent(frame)
        return super().send(frame)

    def receive(self) -> memoryview | None:
        """As SlotPipe.receive()."""
        try:
            body = super().receive()
        except (PipeEnded, ProtocolError) as error:
            self._log.failed(error)
            raise
        if body is not None:
            self._log.received(body)
        return body


def slot_pipes(
    socks: Sequence[socket.socket], max_frame_bytes: int, log: FrameLog | None, worker_id: int
) -> list[SlotPipe]:
    """A worker's slot pipes, logged or not."""
    if log is None:
        return [SlotPipe(sock, max_frame_bytes) for sock in socks]
    return [LoggedSlotPipe(sock, max_frame_bytes, PipeLog(log, worker_id, slot)) for slot, sock in enumerate(socks)]
