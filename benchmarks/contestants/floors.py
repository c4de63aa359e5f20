"""The floors: what a call costs when nothing but the pipe is left.

* raw: bytes to a process and back over a socket pair. Nothing is encoded.
* framed: a request and an answer of dspool's own shape, in MessagePack behind a 4-byte length, with a poll before the
  answer is read, because whoever has a deadline has to. There is one caller and one worker: no choice, no bookkeeping.

Sockets keep the system's buffer sizes, as dspool's do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from benchmarks.contestants.contestant import Blocking, Contestant, Program

DEADLINE_MS = 120_000
_LENGTH = struct.Struct(">I")


def _read(sock: socket.socket, count: int) -> bytes | bytearray:
    """Exactly so many bytes; large ones straight into a buffer of their size."""
    if count <= 65536:
        data = sock.recv(count)
        if len(data) == count:
            return data
    else:
        data = b""
    buffer = bytearray(count)
    buffer[: len(data)] = data
    view, have = memoryview(buffer), len(data)
    while have < count:
        received = sock.recv_into(view[have:])
        if received == 0:
            raise EOFError
        have += received
    return buffer


def _serve_raw(sock: socket.socket) -> None:
    while True:
        header = _read(sock, 4)
        sock.sendall(header)
        sock.sendall(_read(sock, _LENGTH.unpack(header)[0]))


def _serve_small_raw(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def _serve_framed(sock: socket.socket) -> None:
    decoder, encoder = msgspec.msgpack.Decoder(), msgspec.msgpack.Encoder()
    while True:
        (length,) = _LENGTH.unpack(_read(sock, 4))
        message = decoder.decode(_read(sock, length))
        _send(sock, encoder, {"id": message["id"], "success": True, "result": message["args"]["inputs"]["value"]})


def _send(sock: socket.socket, encoder: msgspec.msgpack.Encoder, message: Any) -> None:
    frame = bytearray(4)
    encoder.encode_into(message, frame, 4)
    _LENGTH.pack_into(frame, 0, len(frame) - 4)
    sock.sendall(frame)


@contextmanager
def _child(serve: Callable[[socket.socket], None]) -> Iterator[tuple[socket.socket, int]]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        with suppress(BaseException):
            serve(theirs)
        os._exit(0)
    theirs.close()
    try:
        yield ours, pid
    finally:
        ours.close()
        os.waitpid(pid, 0)


@contextmanager
def small_raw() -> Iterator[Contestant]:
    """A message that one recv takes whole; the value is encoded once, beforehand."""
    with _child(_serve_small_raw) as (sock, pid):
        encoded: dict[int, bytes] = {}

        def call(_: Program, value: Any) -> bytes:
            data = encoded.get(id(value))
            if data is None:
                data = encoded[id(value)] = msgspec.msgpack.encode(value)
            sock.sendall(data)
            return sock.recv(65536)

        contestant = Blocking("raw socketpair", "floor", call)
        contestant.pids = {pid}
        yield contestant


@contextmanager
def raw() -> Iterator[Contestant]:
    """Bytes of any length. Anything else is encoded once, beforehand."""
    with _child(_serve_raw) as (sock, pid):
        encoded: dict[int, bytes] = {}

        def call(_: Program, value: Any) -> bytes | bytearray:
            data = encoded.get(id(value))
            if data is None:
                encoded.clear()
                data = encoded[id(value)] = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
            sock.sendall(_LENGTH.pack(len(data)))
            sock.sendall(data)
            return _read(sock, _LENGTH.unpack(_read(sock, 4))[0])

        contestant = Blocking("raw socketpair", "floor", call)
        contestant.pids = {pid}
        yield contestant


FRAMED = "framed socketpair"


@contextmanager
def framed() -> Iterator[Contestant]:
    """The floor that everything is divided by."""
    with _child(_serve_framed) as (sock, pid):
        decoder, encoder = msgspec.msgpack.Decoder(), msgspec.msgpack.Encoder()
        poll = select.poll()
        poll.register(sock, select.POLLIN)

        def call(_: Program, value: Any) -> Any:
            request = {
                "id": 1,
                "command": "execute_program",
                "args": {"program_id": "echo", "inputs": {"value": value}},
            }
            _send(sock, encoder, request)
            poll.poll(DEADLINE_MS)
            (length,) = _LENGTH.unpack(_read(sock, 4))
            return decoder.decode(_read(sock, length))["result"]

        contestant = Blocking(FRAMED, "floor", call)
        contestant.pids = {pid}
        yield contestant
