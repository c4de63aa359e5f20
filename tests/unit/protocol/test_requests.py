"""Requests encoded ahead: once stamped they are what the codec would have written."""

from __future__ import annotations

import itertools
import threading

import pytest

from dspool.errors import EncodeError
from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import CreateArgs, ExecuteArgs, ImportedProgram, Request
from dspool.protocol.requests import encode_request, stamp

pytestmark = pytest.mark.unit

CAP = 100_000
ARGS = ExecuteArgs("p", {"q": "é" * 50})
PLAIN = {"program_id": "p", "inputs": {"q": "é" * 50}}


@pytest.mark.parametrize(("deadline", "session"), list(itertools.product([False, True], [None, "s"])))
@pytest.mark.parametrize("request_id", [0, 1, 2**63 - 1])
def test_a_stamped_request_reads_as_any_other(deadline: bool, session: str | None, request_id: int) -> None:
    frame = encode_request("execute_program", ARGS, CAP, deadline=deadline, session=session)
    stamp(frame, request_id, 1.5 if deadline else None)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    expected = Request(request_id, "execute_program", PLAIN, session, 1500 if deadline else None)
    assert MSGPACK.decode_request(memoryview(frame)[4:]) == expected


@pytest.mark.parametrize(("left_s", "deadline_ms"), [(0.0, 0), (-3.0, 0), (1e9, 2**32 - 1), (0.0019, 1)])
def test_what_is_left_is_cut_to_what_the_field_holds(left_s: float, deadline_ms: int) -> None:
    frame = encode_request("create_program", CreateArgs("p", ImportedProgram("m:f")), CAP, deadline=True)
    stamp(frame, 1, left_s)
    assert MSGPACK.decode_request(memoryview(frame)[4:]).deadline_ms == deadline_ms


def test_a_frame_can_be_stamped_again_for_another_worker() -> None:
    frame = encode_request("execute_program", ARGS, CAP, deadline=True)
    stamp(frame, 1, 2.0)
    stamp(frame, 2, 1.0)
    request = MSGPACK.decode_request(memoryview(frame)[4:])
    assert (request.id, request.deadline_ms) == (2, 1000)


def test_inputs_that_cannot_be_sent_are_an_encode_error() -> None:
    with pytest.raises(EncodeError, match="the inputs are too large"):
        encode_request("execute_program", ARGS, 50)
    with pytest.raises(EncodeError, match="the inputs can't be sent"):
        encode_request("execute_program", ExecuteArgs("p", {"q": threading.Lock()}), CAP)
