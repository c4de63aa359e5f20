"""Codecs: messages survive either notation, and nothing but our own errors comes out."""

from __future__ import annotations

import datetime
import json
import re
import threading
import tracemalloc
from typing import Any

import msgspec
import pytest
from msgspec.msgpack import Ext

from dspool.errors import EncodeError, FrameTooLarge, InvalidMessage
from dspool.protocol.codec import JSON, MSGPACK, Codec
from dspool.protocol.frames import HEADER_BYTES
from dspool.protocol.messages import (
    ErrorInfo,
    Event,
    FieldChunk,
    ItemChunk,
    LMChunk,
    Request,
    Response,
    Status,
    answered,
    refused,
)
from dspool.protocol.values import to_plain

pytestmark = pytest.mark.unit

both = pytest.mark.parametrize("codec", [pytest.param(MSGPACK, id="msgpack"), pytest.param(JSON, id="json")])


def body_of(frame: bytearray) -> bytes:
    """What stands behind the header, which must be right."""
    assert int.from_bytes(frame[:HEADER_BYTES], "big") == len(frame) - HEADER_BYTES
    return bytes(frame[HEADER_BYTES:])


def packed(body: Any) -> bytes:
    return msgspec.msgpack.encode(body)


@both
def test_a_request_comes_back_as_it_was(codec: Codec) -> None:
    request = Request(7, "execute_program", {"inputs": {"q": "é", "n": [1, None, 2.5, True]}}, "s", 1500, "00-1", "now")
    assert codec.decode_request(body_of(codec.encode(request))) == request


@both
def test_a_response_comes_back_as_it_was(codec: Codec) -> None:
    info = ErrorInfo("lm_error", "busy", "x.Busy", ["x.Busy", "Exception"], "trace", True, 429, 1.5, {"a": [1]})
    for response in (answered(1, {"value": 3}, {"m": {"n": 1}}), answered(None, None), refused(2, info)):
        assert codec.decode_response(body_of(codec.encode(response))) == response


@both
def test_an_event_comes_back_as_it_was_and_so_does_the_response_behind_it(codec: Codec) -> None:
    field = FieldChunk("qa.predict", "answer", " Paris", True)
    for event in (
        Event(1, "chunk", field),
        Event(2, "chunk", ItemChunk([1, {"a": None}])),
        Event(2, "chunk", LMChunk({"choices": [{"delta": {"content": "x"}}]}, 3)),
        Event(3, "status", Status("x")),
    ):
        assert codec.decode_streamed(body_of(codec.encode(event))) == event
    for response in (answered(1, {"value": 3}), refused(2, ErrorInfo("x", "y"))):
        assert codec.decode_streamed(body_of(codec.encode(response))) == response


@both
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"id": 1, "event": "chunk"}, "`data`"),
        ({"id": 1, "event": "noise", "data": {"of": "item", "value": 1}}, "noise"),
        ({"id": -1, "event": "chunk", "data": {"of": "item", "value": 1}}, "id"),
        ({"id": None, "event": "chunk", "data": {"of": "item", "value": 1}}, "id"),
        ({"id": 1, "event": "chunk", "data": {"of": "what", "value": 1}}, "what"),
        ({"id": 1, "event": "chunk", "data": {"of": "item"}}, "value"),
        ({"id": 1, "event": "chunk", "data": {"of": "field", "chunk": "x"}}, "predict_name"),
        ({"id": 1, "event": "chunk", "data": 3}, "object"),
        ({"id": 1, "event": "status", "data": {"of": "status", "message": 3}}, "message"),
        ({"id": 1, "event": "status", "data": {"of": "item", "value": 1}}, "with other data"),
        ({"id": 1, "event": "chunk", "data": {"of": "status", "message": "x"}}, "with other data"),
        ({"id": 1}, "success"),
    ],
)
def test_a_bad_event_is_refused(codec: Codec, body: Any, why: str) -> None:
    data = packed(body) if codec is MSGPACK else msgspec.json.encode(body)
    with pytest.raises(InvalidMessage, match=why) as caught:
        codec.decode_streamed(data)
    assert caught.value.code == "invalid_response"


@both
def test_messages_of_all_sizes_come_back(codec: Codec) -> None:
    for size in (0, 50, 100, 127, 128, 129, 500, 5000, 200_000):
        response = answered(1, "x" * size)
        assert codec.decode_response(body_of(codec.encode(response))) == response


@both
def test_a_body_may_be_any_kind_of_buffer(codec: Codec) -> None:
    body = body_of(codec.encode(Request(1, "ping", {})))
    assert codec.decode_request(memoryview(body)) == codec.decode_request(bytearray(body)) == Request(1, "ping", {})


@both
def test_what_is_over_the_cap_is_not_sent(codec: Codec) -> None:
    with pytest.raises(FrameTooLarge, match="max_frame_bytes=1,000"):
        codec.encode(answered(1, "x" * 1000), 1000)


@both
@pytest.mark.parametrize(
    "value",
    [threading.Lock(), {"a": [threading.Lock()]}, "\ud800", {"\ud800": 1}, object],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", ascii(value)),
)
def test_what_has_no_plain_form_is_an_encode_error(codec: Codec, value: Any) -> None:
    with pytest.raises(EncodeError):
        codec.encode(answered(1, value))
    with pytest.raises(EncodeError):
        codec.encode(Request(1, "run", {"inputs": value}))


@both
def test_what_holds_itself_is_an_encode_error(codec: Codec) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodeError):
        codec.encode(answered(1, loop))


@both
def test_plain_data_as_deep_as_to_plain_allows_gets_through(codec: Codec) -> None:
    deep: Any = "bottom"
    for level in range(200):
        deep = [deep] if level % 2 else {"a": deep}
    response = answered(1, to_plain(deep))
    assert codec.decode_response(body_of(codec.encode(response))) == response


def test_tuples_as_deep_as_to_plain_allows_get_through() -> None:
    deep: Any = "bottom"
    for _ in range(200):
        deep = (deep,)
    assert MSGPACK.decode_response(body_of(MSGPACK.encode(answered(1, to_plain(deep))))).result == deep


def test_msgpack_refuses_ints_that_nobody_made_plain() -> None:
    with pytest.raises(EncodeError, match="can't be sent as plain data"):
        MSGPACK.encode(answered(1, 2**64))


def test_msgpacks_safety_net_keeps_what_msgspec_does_not_know() -> None:
    assert MSGPACK.decode_response(body_of(MSGPACK.encode(answered(1, [1 + 2j])))).result == [1 + 2j]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_it_has_no_notation_for(number: float) -> None:
    with pytest.raises(EncodeError, match=r"result\['a'\]\[0\] is -?(nan|inf)"):
        JSON.encode(answered(1, {"a": [number]}))
    with pytest.raises(EncodeError, match="usage"):
        JSON.encode(answered(1, {}, {"m": number}))
    with pytest.raises(EncodeError, match="details"):
        JSON.encode(refused(1, ErrorInfo("x", details={"m": number})))
    with pytest.raises(EncodeError, match="args"):
        JSON.encode(Request(1, "run", {"a": number}))


def test_json_is_plain_json() -> None:
    day = datetime.date(2025, 1, 2)
    body = json.loads(body_of(JSON.encode(answered(4, {"tuple": (1, day), "set": {2}, "bytes": b"hi"}))))
    assert body["result"] == {"tuple": [1, "2025-01-02"], "set": [2], "bytes": "aGk="}
    assert {name: body[name] for name in ("id", "success")} == {"id": 4, "success": True}
    assert "error" not in body


@both
@pytest.mark.parametrize(
    ("body", "code", "request_id"),
    [
        ({"command": "x", "args": {}}, "missing_id", None),
        ({"id": "x", "command": "x", "args": {}}, "invalid_id", None),
        ({"id": 5, "args": {}}, "missing_command", 5),
        ({"id": 5, "command": "", "args": {}}, "invalid_command", 5),
        ({"id": 5, "command": "x"}, "missing_args", 5),
        ({"id": 5, "command": "x", "args": 3}, "invalid_args", 5),
        ({"id": 5, "command": "x", "args": {}, "deadline_ms": []}, "invalid_args", 5),
        ([], "missing_id", None),
    ],
)
def test_a_bad_request_is_refused_in_either_notation(
    codec: Codec, body: Any, code: str, request_id: int | None
) -> None:
    data = packed(body) if codec is MSGPACK else msgspec.json.encode(body)
    with pytest.raises(InvalidMessage) as caught:
        codec.decode_request(data)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)


@both
@pytest.mark.parametrize("body", [b"", b"\xc1", b"{", b"\xff\xff", b'{"id":1', b"nonsense"])
def test_a_body_that_cannot_be_decoded_is_invalid(codec: Codec, body: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        codec.decode_request(body)
    assert caught.value.request_id is None
    with pytest.raises(InvalidMessage) as caught:
        codec.decode_response(body)
    assert caught.value.code == "invalid_response"


def test_a_request_whose_values_lie_is_refused_under_its_own_id() -> None:
    body = packed({"id": 9, "command": "x", "args": {"a": Ext(99, b"")}})
    with pytest.raises(InvalidMessage, match="unknown ext code 99") as caught:
        MSGPACK.decode_request(body)
    assert (caught.value.code, caught.value.request_id) == ("invalid_args", 9)


@both
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"id": 1, "success": True}, "needs a result"),
        ({"id": 1, "success": False}, "needs an error"),
        ({"id": 1}, "success"),
        ({"id": -1, "success": True, "result": 1}, "id"),
        ({"id": 1, "success": "yes", "result": 1}, "success"),
        ({"id": 1, "success": False, "error": "x", "error_info": {}}, "code"),
        ([1], "object"),
    ],
)
def test_a_bad_response_is_refused(codec: Codec, body: Any, why: str) -> None:
    data = packed(body) if codec is MSGPACK else msgspec.json.encode(body)
    with pytest.raises(InvalidMessage, match=why) as caught:
        codec.decode_response(data)
    assert caught.value.code == "invalid_response"


@both
def test_fields_from_a_later_version_are_ignored(codec: Codec) -> None:
    body = {"id": 1, "success": True, "result": 2, "mood": {"a": [1]}}
    data = packed(body) if codec is MSGPACK else msgspec.json.encode(body)
    assert codec.decode_response(data) == Response(1, True, 2)


@pytest.mark.parametrize("depth", [50_000, 200_000])
def test_what_is_nested_without_end_is_invalid_and_no_crash(depth: int) -> None:
    for opening, closing in ((b"\x91", b""), (b"\x81\xa1a", b"")):
        with pytest.raises(InvalidMessage):
            MSGPACK.decode_request(b"\x83\xa2id\x01\xa7command\xa1x\xa4args\x81\xa1a" + opening * depth + closing)
        with pytest.raises(InvalidMessage):
            MSGPACK.decode_response(opening * depth)
    with pytest.raises(InvalidMessage):
        JSON.decode_request(b'{"id":1,"command":"x","args":{"a":' + b"[" * depth)
    with pytest.raises(InvalidMessage):
        JSON.decode_response(b'{"id":1,"success":true,"result":' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xdb", b"\xc6"])
def test_a_length_that_lies_takes_no_memory(header: bytes) -> None:
    body = b"\x83\xa2id\x01\xa7success\xc3\xa6result" + header + b"\xff\xff\xff\xff" + header + b"\x0f\xff\xff\xff"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage):
            MSGPACK.decode_response(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
