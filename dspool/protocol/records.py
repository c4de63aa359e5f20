"""Records: what crosses a template's control socket, each with the file descriptors that belong to it.

    manager -> template    Prepare, once; then Fork for each worker
    template -> manager    Importing for each module, then Prepared or Unprepared, once; then Forked or Refused for each
                           Fork, and Exited for each worker that ended

The socket is SOCK_SEQPACKET: a record arrives whole or not at all, so there is no frame around it. Descriptors go
beside it by SCM_RIGHTS; this is the one module of this package that touches a socket, because a record and its
descriptors can only be taken from the kernel together.

Rules:
    1. A received descriptor is close-on-exec from the start, and belongs to whoever received it.
    2. Either all descriptors of a record arrive, or what did is closed and DescriptorsLost says whose they were.
    3. Both ends are the same version of dspool and trust each other, so a record that can't be read is a bug: neither
       end goes on after it.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Sequence

import msgspec

from dspool.errors import MalformedFrame
from dspool.options import MAX_SLOTS
from dspool.protocol.messages import ErrorInfo

MAX_RECORD_BYTES = 160 * 1024
"""Below what the kernel lets one record be by default (208 KiB), over a traceback's bound."""
FDS_BESIDE_SLOTS = 5
"""Of a Fork: control pipe, lifeline, stdout, stderr, dump; then the slots' pipes."""

_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_MAX_FDS = MAX_SLOTS + FDS_BESIDE_SLOTS


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """What a template imports before it forks. `dspy`: import and warm DSPy, if it is installed."""

    sys_path: list[str]
    preload: list[str]
    dspy: bool


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Fork a worker for the descriptors that come with this."""

    fork_id: int


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """It is ready to fork. `unsafe`: or it must not, since it breaks this rule."""

    unsafe: str = ""


class Importing(msgspec.Struct, frozen=True, tag=True):
    """It begins to import this module; empty: it has imported them all."""

    module: str


class Unprepared(msgspec.Struct, frozen=True, tag=True):
    """Something could not be imported; it exits."""

    error: ErrorInfo


class Forked(msgspec.Struct, frozen=True, tag=True):
    """A worker was forked; its pidfd comes with this."""

    fork_id: int
    pid: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """No worker was forked: it must not (`unsafe` names the rule that it breaks), or the system refused (`errno`)."""

    fork_id: int
    unsafe: str = ""
    errno: int = 0


class Exited(msgspec.Struct, frozen=True, tag=True):
    """A worker that was forked is dead and reaped."""

    fork_id: int
    code: int | None
    signal: int | None
    peak_rss_kib: int


Record = Prepare | Fork | Importing | Prepared | Unprepared | Forked | Refused | Exited

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class DescriptorsLost(OSError):
    """Raised when a record's descriptors did not all fit into this process's table; none of them is kept.

    Attributes:
        record: what they came with.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(errno.EMFILE, os.strerror(errno.EMFILE))
        self.record = record


def send_record(sock: socket.socket, record: Record, fds: Sequence[int] = ()) -> None:
    """Send a record. The descriptors stay open here.

    Raises:
        OSError: it can't be sent, or, on a non-blocking socket, not now (BlockingIOError).
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([_encoder.encode(record)], ancillary)


def receive_record(sock: socket.socket) -> tuple[Record, list[int]] | None:
    """The next record and its descriptors; None at the end.

    Raises:
        DescriptorsLost: see there.
        MalformedFrame: the record can't be read; its descriptors are closed.
        OSError: nothing can be received, or, on a non-blocking socket, not now (BlockingIOError).
    """
    space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_RECORD_BYTES, space, _CLOSE_ON_EXEC)
    fds = array.array("i")
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    if not data:
        return None
    try:
        record = _decode(data)
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLost(record)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return record, list(fds)


def _decode(data: bytes) -> Record:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedFrame(f"a record of {len(data):,} bytes can't be read: {error}") from None
