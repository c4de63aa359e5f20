"""Broken frames end a worker, bad bodies don't."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from dspool.protocol.frames import encode_frame
from dspool.protocol.limits import EXIT_BROKEN_FRAME

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BROKEN = {
    "over the cap": (b"\xff\xff\xff\xff", "max_frame_bytes=67,108,864"),
    "text": (b"GET / HTTP/1.1\r\n", "'GET ': the length header seems to be missing"),
    "ends inside": (b"\0\0\0\x09half", "the pipe ended after 8 of 13 bytes"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize(
    ("pipe", "slots", "name"), [("control", 1, "control pipe"), ("slot", 1, "slot 0"), ("slot", 2, "slot 0")]
)
def test_a_broken_frame_ends_the_worker_with_one_line(
    spawn: Spawn, broken: str, pipe: str, slots: int, name: str
) -> None:
    data, text = BROKEN[broken]
    worker = spawn(slots=slots)
    sock = getattr(worker, pipe).sock
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    assert worker.exit_code() == EXIT_BROKEN_FRAME
    (line,) = worker.errors().splitlines()
    assert line.startswith("dspool worker 7: broken frame on the ")
    assert name in line
    assert text in line


@pytest.mark.parametrize("pipe", ["control", "slot"])
def test_a_bad_body_is_answered_and_the_worker_lives(spawn: Spawn, pipe: str) -> None:
    bodies: list[tuple[bytes, str, int | None]] = [
        (b"\xc1", "invalid_json", None),
        (b"", "invalid_json", None),
        (msgspec.msgpack.encode([1]), "missing_id", None),
        (msgspec.msgpack.encode({"command": "ping", "args": {}}), "missing_id", None),
        (msgspec.msgpack.encode({"id": -1, "command": "ping", "args": {}}), "invalid_id", None),
        (msgspec.msgpack.encode({"id": 3, "args": {}}), "missing_command", 3),
        (msgspec.msgpack.encode({"id": 3, "command": "", "args": {}}), "invalid_command", 3),
        (msgspec.msgpack.encode({"id": 3, "command": "ping"}), "missing_args", 3),
        (msgspec.msgpack.encode({"id": 3, "command": "ping", "args": []}), "invalid_args", 3),
    ]
    channel = getattr(spawn(), pipe)
    channel.sock.sendall(b"".join(bytes(encode_frame(body)) for body, _, _ in bodies))
    for _, code, request_id in bodies:
        response = channel.receive()
        assert (channel.error_of(response).code, response.id) == (code, request_id)
    assert channel.error_of(channel.ask("dance")).code == "unknown_command"
