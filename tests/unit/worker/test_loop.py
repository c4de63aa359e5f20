"""The loop over a pipe in memory, in both notations and any chunking."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspool.errors import FrameTooLarge, MalformedFrame
from dspool.protocol.codec import JSON, MSGPACK, Codec
from dspool.protocol.frames import FrameDecoder, encode_frame
from dspool.protocol.messages import ErrorInfo, Request, Response, answered, refused
from dspool.worker.loop import Pipe, serve

pytestmark = pytest.mark.unit


class Peer:
    """The other side: gives its bytes in pieces of `chunk` and collects what it is sent."""

    def __init__(self, data: bytes, codec: Codec = MSGPACK, chunk: int = 2**16, cap: int = 2**20) -> None:
        self.codec = codec
        self.left = data
        self.chunk = chunk
        self.sent = bytearray()
        self.pipe = Pipe(self.receive_into, self.sent.extend, codec, cap)

    def receive_into(self, room: memoryview) -> int:
        piece = self.left[: min(self.chunk, len(room))]
        room[: len(piece)] = piece
        self.left = self.left[len(piece) :]
        return len(piece)

    def responses(self) -> list[Response]:
        decoder = FrameDecoder()
        decoder.feed(self.sent)
        found = []
        while (body := decoder.next_frame()) is not None:
            found.append(self.codec.decode_response(body))
        return found


def echo(request: Request) -> Response:
    return answered(request.id, request.args)


def requests(codec: Codec, *args: dict[str, Any]) -> bytes:
    return b"".join(bytes(codec.encode(Request(number, "echo", each))) for number, each in enumerate(args))


@pytest.mark.parametrize("codec", [MSGPACK, JSON])
@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_requests_are_answered_in_order_and_the_end_is_the_end(codec: Codec, chunk: int) -> None:
    peer = Peer(requests(codec, {"a": 1}, {"b": "x" * 5000}, {}), codec, chunk)
    counted: list[int] = []
    serve(peer.pipe, echo, lambda: counted.append(len(peer.sent)))
    assert [(response.id, response.result) for response in peer.responses()] == [
        (0, {"a": 1}),
        (1, {"b": "x" * 5000}),
        (2, {}),
    ]
    assert counted == sorted(set(counted))


def test_a_bad_body_is_answered_and_the_next_one_too() -> None:
    data = bytes(encode_frame(b"{]")) + requests(JSON, {"a": 1})
    peer = Peer(data, JSON)
    serve(peer.pipe, echo)
    first, second = peer.responses()
    assert first.id is None
    assert first.error_info is not None
    assert first.error_info.code == "invalid_json"
    assert second.result == {"a": 1}


@pytest.mark.parametrize(
    ("data", "error"), [(b"\0\0\0\x09half", MalformedFrame), (b"\0", MalformedFrame), (b"\x7f\0\0\0", FrameTooLarge)]
)
def test_a_broken_frame_is_raised_after_the_whole_ones_are_answered(data: bytes, error: type[Exception]) -> None:
    peer = Peer(requests(MSGPACK, {"a": 1}) + data)
    with pytest.raises(error):
        serve(peer.pipe, echo)
    assert len(peer.responses()) == 1


def test_a_peer_that_went_away_with_answers_unread_is_the_end() -> None:
    def reset(room: memoryview) -> int:
        raise ConnectionResetError

    serve(Pipe(reset, lambda data: None, MSGPACK), echo)


def test_a_peer_that_reads_no_more_is_the_end() -> None:
    peer = Peer(requests(MSGPACK, {}, {}))

    def refuse(data: bytearray) -> None:
        raise BrokenPipeError

    serve(Pipe(peer.receive_into, refuse, MSGPACK), echo)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (answered(1, "x" * 5000), "result_too_large"),
        (answered(1, object()), "encode_error"),
        (refused(1, ErrorInfo("program_error", "y" * 5000, traceback="z" * 5000)), "program_error"),
        (refused(1, ErrorInfo("lm_error", "short", details={"lm_response": "z" * 5000})), "lm_error"),
    ],
)
def test_what_cannot_be_sent_is_answered_with_the_reason(response: Response, code: str) -> None:
    peer = Peer(b"", cap=1024)
    peer.pipe.send(response)
    (sent,) = peer.responses()
    assert sent.id == 1
    assert sent.error_info is not None
    assert sent.error_info.code == code
    assert sent.error == sent.error_info.message != ""


def test_the_json_carrier_writes_json() -> None:
    peer = Peer(requests(JSON, {"n": 1}), JSON)
    serve(peer.pipe, echo)
    assert json.loads(peer.sent[4:])["result"] == {"n": 1}
