"""Whatever the bytes are: frames and codecs give our messages or ProtocolError, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from msgspec.msgpack import Ext

from dspool.errors import InvalidMessage, ProtocolError
from dspool.protocol import extensions
from dspool.protocol.codec import JSON, MSGPACK, Codec
from dspool.protocol.frames import FrameDecoder, encode_frame
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
    validate_request,
)
from dspool.protocol.values import from_ext, to_json, to_plain
from tests.mutations import chunked, mutated

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CAP = 5000
fuzzed = settings(
    max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
codecs = pytest.mark.parametrize("codec", [pytest.param(MSGPACK, id="msgpack"), pytest.param(JSON, id="json")])
seeds = pytest.mark.parametrize("seed", range(4))

hashable: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.integers(-(2**200), 2**200)
        | st.decimals(allow_nan=False)
        | st.datetimes(timezones=st.just(UTC) | st.none())
        | st.dates()
        | st.times()
        | st.timedeltas()
        | st.uuids()
        | st.complex_numbers(allow_nan=False)
        | st.tuples(hashable)
        | st.frozensets(hashable, max_size=2)
    )
)
any_value = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=20,
)
json_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

MESSAGES: list[Request | Response | Event] = [
    Request(1, "ping", {}),
    Request(2**63 - 1, "execute_program", {"inputs": {"q": ["a", 1, None, 2.5]}}, "s", 100, "00-ab", "now"),
    answered(3, {"outputs": {"answer": "Paris", "scores": [0.5] * 20}}, {"m": {"tokens": 3}}),
    refused(None, ErrorInfo("lm_error", "busy", "x.Busy", ["x.Busy"], "trace", True, 429, 0.5, {"a": [1]})),
    Event(5, "chunk", FieldChunk("qa.predict", "answer", " Paris", False)),
    Event(6, "chunk", ItemChunk({"row": [1, None]})),
    Event(6, "chunk", LMChunk({"choices": [{"delta": {"content": "x"}}]}, 3)),
    Event(7, "status", Status("Calling tool look...")),
]
TYPED = answered(
    4,
    to_plain(
        [
            (1, {2}),
            frozenset({3}),
            {(1,): 2},
            2**99,
            Decimal("1.5"),
            datetime(2025, 1, 1),
            datetime(2025, 1, 1, tzinfo=UTC),
            [date(2025, 1, 1), time(1), timedelta(1), UUID(int=1), 1j, b"raw"],
        ]
    ),
)


def bodies(codec: Codec) -> list[bytes]:
    """Good bodies to start from."""
    typed = [TYPED] if codec is MSGPACK else []
    return [bytes(codec.encode(message)[4:]) for message in [*MESSAGES, *typed]]


def check(error: InvalidMessage) -> None:
    """A refusal has a code, and an id only if it is one."""
    assert error.code
    assert error.request_id is None or error.request_id >= 0


def decode_all(codec: Codec, body: bytes) -> None:
    """Each decoder gives its message or InvalidMessage."""
    decoders: list[tuple[Callable[[bytes], Any], tuple[type, ...]]] = [
        (codec.decode_request, (Request,)),
        (codec.decode_response, (Response,)),
        (codec.decode_streamed, (Event, Response)),
    ]
    for decode, kinds in decoders:
        try:
            assert type(decode(body)) in kinds
        except InvalidMessage as error:
            check(error)


def read_all(data: list[bytes]) -> tuple[list[bytes], str | None]:
    """The frames in the chunks, and the name of the error that ended them."""
    decoder, frames = FrameDecoder(CAP), []
    try:
        for chunk in data:
            decoder.feed(chunk)
            while (body := decoder.next_frame()) is not None:
                frames.append(bytes(body))
        decoder.finish()
    except ProtocolError as error:
        return frames, type(error).__name__
    return frames, None


@fuzzed
@given(st.lists(st.binary(max_size=300), max_size=6), st.randoms(use_true_random=False))
def test_good_frames_come_out_of_any_chunks(frames: list[bytes], rng: random.Random) -> None:
    stream = b"".join(encode_frame(frame) for frame in frames)
    assert read_all(chunked(stream, rng)) == (frames, None)


@fuzzed
@given(st.binary(max_size=600), st.randoms(use_true_random=False))
def test_any_bytes_give_the_same_frames_and_the_same_end_in_any_chunks(data: bytes, rng: random.Random) -> None:
    frames, end = read_all([data])
    broken_while_fed, end_in_chunks = read_all(chunked(data, rng))
    assert end_in_chunks == end
    assert broken_while_fed == frames


@pytest.mark.parametrize("size", [1, 1000, 65_536])
def test_frames_mutated_byte_by_byte_never_raise_anything_else(size: int) -> None:
    rng = random.Random(size)
    stream = b"".join(encode_frame(rng.randbytes(rng.randrange(size))) for _ in range(3))
    for _ in range(200):
        data = mutated(stream, rng)
        assert read_all(chunked(data, rng)) == read_all([data])


@codecs
def test_a_body_cut_at_any_byte_is_invalid(codec: Codec) -> None:
    for body in bodies(codec):
        for cut in range(len(body)):
            with pytest.raises(InvalidMessage):
                codec.decode_request(body[:cut])
            with pytest.raises(InvalidMessage):
                codec.decode_response(body[:cut])
            with pytest.raises(InvalidMessage):
                codec.decode_streamed(body[:cut])


@codecs
def test_a_body_with_any_one_byte_changed_is_a_message_or_invalid(codec: Codec) -> None:
    for body in bodies(codec):
        for at in range(len(body)):
            for byte in (0x00, 0x7F, 0x80, 0xC1, 0xC7, 0xD4, 0xDD, 0xFF, body[at] ^ 1):
                decode_all(codec, body[:at] + bytes([byte]) + body[at + 1 :])


@codecs
@seeds
def test_a_mutated_body_is_a_message_or_invalid(codec: Codec, seed: int) -> None:
    rng = random.Random(seed)
    good = bodies(codec)
    for _ in range(1000):
        decode_all(codec, mutated(rng.choice(good), rng))


@codecs
@fuzzed
@given(data=st.binary(max_size=200))
@example(data=b"\xdd\xff\xff\xff\xff")
@example(data=b"\x81\x81\x01\x02\x03")
@example(data=b"[" * 5000)
def test_any_bytes_are_a_message_or_invalid(codec: Codec, data: bytes) -> None:
    decode_all(codec, data)


@codecs
@fuzzed
@given(
    body=st.dictionaries(
        st.sampled_from(
            ["id", "command", "args", "session_id", "deadline_ms", "success", "result", "error", "error_info", "event"]
        ),
        json_value,
    )
)
def test_forged_ids_and_fields_of_wrong_types_are_a_message_or_invalid(codec: Codec, body: dict[str, Any]) -> None:
    decode_all(codec, msgspec.msgpack.encode(body) if codec is MSGPACK else msgspec.json.encode(body))


@fuzzed
@given(any_value)
def test_validate_request_takes_any_object_whatever(body: Any) -> None:
    for wrong in (body, {"id": body, "command": "x", "args": {}}, {"id": 1, "command": body, "args": body}):
        try:
            assert isinstance(validate_request(wrong), Request)
        except InvalidMessage as error:
            check(error)


@fuzzed
@given(st.integers(-128, 127), st.binary(max_size=60))
def test_any_ext_payload_is_a_value_or_invalid(code: int, data: bytes) -> None:
    for chosen in (code, code % 13):
        try:
            from_ext(chosen, memoryview(data))
        except InvalidMessage:
            continue
        assert chosen in range(1, 13)


@seeds
def test_mutated_exts_within_exts_are_a_value_or_invalid(seed: int) -> None:
    rng = random.Random(seed)
    good = msgspec.msgpack.encode(TYPED.result)
    for _ in range(300):
        inner = Ext(rng.randrange(1, 13), mutated(good, rng))
        outer = msgspec.msgpack.encode([Ext(extensions.TUPLE, msgspec.msgpack.encode([inner] * 2))])
        decode_all(MSGPACK, msgspec.msgpack.encode({"id": 1, "success": True, "result": msgspec.Raw(outer)}))


@fuzzed
@given(any_value)
def test_every_supported_value_comes_back_equal(value: Any) -> None:
    frame = MSGPACK.encode(answered(1, to_plain(value)))
    back = MSGPACK.decode_response(memoryview(frame)[4:]).result
    assert back == value
    assert repr(type(back)) == repr(type(value))


@fuzzed
@given(any_value)
def test_to_plain_of_what_is_plain_is_itself(value: Any) -> None:
    plain = to_plain(value)
    assert to_plain(plain) is plain


@fuzzed
@given(json_value)
def test_json_is_left_as_it_is(value: Any) -> None:
    assert to_json(value) == value
    assert JSON.decode_response(memoryview(JSON.encode(answered(1, value)))[4:]).result == value


@codecs
@fuzzed
@given(event=st.sampled_from(["chunk", "status"]) | json_value, data=json_value, of=json_value)
def test_forged_events_are_an_event_or_invalid(codec: Codec, event: Any, data: Any, of: Any) -> None:
    chosen = of if not isinstance(of, str) else "item"
    for body in (
        data,
        {"of": chosen, "value": data},
        {"of": "status", "message": data},
        {"of": "field", "chunk": data},
    ):
        message = {"id": 1, "event": event, "data": body}
        decode_all(codec, msgspec.msgpack.encode(message) if codec is MSGPACK else msgspec.json.encode(message))
