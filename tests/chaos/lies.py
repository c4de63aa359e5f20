"""What a lying worker sends where an answer belongs, and the program that makes a worker such a liar.

A liar answers the call that made it one, as it should. What comes next on its slot is answered with the lie: that is
decided when it is made, so the same seed lies the same way.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import msgspec

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES, FrameDecoder, encode_frame
from dspool.protocol.messages import ErrorInfo, Request, Response, answered, refused
from tests.mutations import mutated

VALUE = "the truth"
LARGE = b"x" * 2_000_000
"""Inputs that don't fit into a pipe."""


class Lie(NamedTuple):
    """What is sent in answer to a request.

    Attributes:
        data: the bytes.
        outcome: what the caller is to see: "error" (the worker is removed), "value" or "either".
        split: written byte by byte.
        ends: the pipe is ended after them.
        early: sent when a part of the request is read.
        control: sent on the control pipe.
    """

    data: bytes
    outcome: str = "error"
    split: bool = False
    ends: bool = False
    early: bool = False
    control: bool = False


def true_answer(request_id: int | None) -> bytes:
    """What should have been sent."""
    return bytes(MSGPACK.encode(answered(request_id, {"value": VALUE})))


def _framed(body: Any) -> bytes:
    return bytes(encode_frame(body if isinstance(body, bytes) else msgspec.msgpack.encode(body)))


def _mutation(request_id: int, rng: random.Random) -> Lie:
    return Lie(_framed(mutated(true_answer(request_id)[HEADER_BYTES:], rng)), outcome="either")


def _truncation(request_id: int, rng: random.Random) -> Lie:
    good = true_answer(request_id)
    return Lie(good[: rng.randrange(1, len(good))], ends=True)


def _end(request_id: int, rng: random.Random) -> Lie:
    return Lie(b"", ends=True)


def _length_over_the_cap(request_id: int, rng: random.Random) -> Lie:
    return Lie(struct.pack(">I", rng.randrange(64 * 2**20 + 1, 2**32)) + true_answer(request_id))


def _length_too_large(request_id: int, rng: random.Random) -> Lie:
    return Lie(struct.pack(">I", rng.randrange(100, 64 * 2**20)) + true_answer(request_id)[HEADER_BYTES:], ends=True)


def _length_too_small(request_id: int, rng: random.Random) -> Lie:
    good = true_answer(request_id)
    return Lie(struct.pack(">I", rng.randrange(len(good) - HEADER_BYTES)) + good[HEADER_BYTES:])


def _split(request_id: int, rng: random.Random) -> Lie:
    return Lie(true_answer(request_id), outcome="value", split=True)


def _split_lie(request_id: int, rng: random.Random) -> Lie:
    return Lie(_framed(b"\xc1" * rng.randrange(1, 40)), split=True)


def _nesting(request_id: int, rng: random.Random) -> Lie:
    depth = rng.choice([2000, 100_000])
    opened = rng.choice([b"\x91", b"\x81\xa1a"]) * depth
    body = msgspec.msgpack.encode({"id": request_id, "success": True, "result": msgspec.Raw(opened + b"\xc0")})
    return Lie(_framed(body), outcome="error" if depth > 10_000 else "either")


def _wrong_types(request_id: int, rng: random.Random) -> Lie:
    good: dict[str, Any] = {"id": request_id, "success": True, "result": {"value": VALUE}, "timestamp": 1.0}
    wrong: dict[str, list[Any]] = {
        "id": ["1", 1.5, [1], {}, True],
        "success": [1, "true", None, []],
        "usage": [1, "x", []],
        "error": [1, {}],
        "timestamp": ["now", {}],
    }
    field = rng.choice(list(wrong))
    return Lie(_framed({**good, field: rng.choice(wrong[field])}))


def _no_response(request_id: int, rng: random.Random) -> Lie:
    bodies: list[Any] = [b"", None, [], {}, "text", 7, {"id": request_id}, {"id": request_id, "success": True}]
    bodies += [{"id": request_id, "success": False}, {"success": True, "result": 1}]
    bodies += [msgspec.to_builtins(Request(request_id, "ping", {}))]
    return Lie(_framed(rng.choice(bodies)))


def _foreign_id(request_id: int, rng: random.Random) -> Lie:
    near = [request_id - 1, request_id + 1, request_id + rng.randrange(2, 50), 0, 2**63 - 1]
    return Lie(true_answer(rng.choice(near)) if rng.random() < 0.8 else true_answer(None))


def _forged_id(request_id: int, rng: random.Random) -> Lie:
    body = {"id": rng.choice([-1, -request_id, 2**63, 2**64 - 1]), "success": True, "result": {"value": VALUE}}
    return Lie(_framed(body))


def _doubled(request_id: int, rng: random.Random) -> Lie:
    return Lie(true_answer(request_id) * 2, outcome="value")


def _early(request_id: int, rng: random.Random) -> Lie:
    return Lie(true_answer(request_id), early=True)


def _early_nonsense(request_id: int, rng: random.Random) -> Lie:
    return Lie(_framed(rng.randbytes(rng.randrange(40))), early=True)


def _noise(request_id: int, rng: random.Random) -> Lie:
    return Lie(b"\xff" + rng.randbytes(rng.randrange(3, 200)))


def _text(request_id: int, rng: random.Random) -> Lie:
    return Lie(rng.choice([b"HTTP/1.1 500 Internal Server Error\r\n", b"Traceback (most recent call last):\n"]))


def _false_error(request_id: int, rng: random.Random) -> Lie:
    info = ErrorInfo("program_error", "made up", "x.Y", ["x.Y"], "T" * rng.randrange(10_000))
    return Lie(bytes(MSGPACK.encode(refused(request_id, info))), outcome="either")


def _control_noise(request_id: int, rng: random.Random) -> Lie:
    bad = [b"\xff" * 8, _framed(b"\xc1"), true_answer(2**40), true_answer(None), _framed([1]), b"GET / HTTP/1.1\r\n"]
    return Lie(rng.choice(bad), control=True)


LIES: dict[str, Callable[[int, random.Random], Lie]] = {
    maker.__name__.lstrip("_"): maker
    for maker in (
        *(_mutation, _truncation, _end, _length_over_the_cap, _length_too_large, _length_too_small, _split),
        *(_split_lie, _nesting, _wrong_types, _no_response, _foreign_id, _forged_id, _doubled, _early),
        *(_early_nonsense, _noise, _text, _false_error, _control_noise),
    )
}


def lie(name: str, seed: int, request_id: int) -> Lie:
    """The lie of that name, seed and request."""
    return LIES[name](request_id, random.Random(seed))


# --- in the worker ----------------------------------------------------------------------------------------------------


def become_liar(name: str, seed: int) -> NoReturn:
    """Answer this call, answer the next one with the lie, then wait for the end."""
    slot, control = (socket.socket(fileno=os.dup(_descriptor(option))) for option in ("--slots", "--control"))
    slot.sendall(MSGPACK.encode(answered(_request_id(), {"value": None})))
    told = lie(name, seed, 0)
    request_id = _read(slot, whole=not told.early)
    if request_id is not None:
        told = lie(name, seed, request_id)
    out = control if told.control else slot
    for piece in [bytes([byte]) for byte in told.data] if told.split else [told.data]:
        out.sendall(piece)
    if told.ends:
        out.shutdown(socket.SHUT_WR)
    while True:
        time.sleep(3600)


def _read(slot: socket.socket, *, whole: bool) -> int | None:
    """Read a request: its id; None where a part of it is enough."""
    decoder = FrameDecoder()
    while (frame := decoder.next_frame()) is None:
        if not whole and decoder.buffered:
            return None
        count = slot.recv_into(decoder.space(), 4096)
        if not count:
            os._exit(0)
        decoder.received(count)
    return MSGPACK.decode_request(frame).id


def _request_id() -> int:
    """The id of the call that this is."""
    frame = sys._getframe()
    while not isinstance(request := frame.f_locals.get("request"), Request):
        assert frame.f_back is not None
        frame = frame.f_back
    return request.id


def _descriptor(option: str) -> int:
    return int(sys.argv[sys.argv.index(option) + 1])


def responses() -> list[Response]:
    """Good answers to start from."""
    info = ErrorInfo("lm_error", "busy", "x.Busy", ["x.Busy"], "trace", True, 429, 0.5, {"a": [1]})
    values: list[Any] = [None, VALUE, [1, 2.5, "a"], {"a": {"b": [None, True]}}, b"raw" * 20]
    return [answered(1, {"value": value}, {"m": {"tokens": 3}}) for value in values] + [refused(1, info)]


def requests() -> list[Request]:
    """Good requests to start from; none of them carries a pickle, which a worker believes."""
    echo = {"program_id": "p", "inputs": {"value": [1, "a", None, 2.5]}}
    return [
        Request(1, "ping", {}),
        Request(2, "get_stats", {}),
        Request(3, "execute_program", echo, "session", 1000, "00-ab", "now"),
        Request(4, "execute_program", {**echo, "program_id": "unknown"}),
        Request(5, "create_program", {"program_id": "q", "spec": {"type": "imported", "path": "builtins:dict"}}),
    ]
