"""A streamed call seen from the pipes: its events, its answer, and what `cancel` on the control pipe does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import CancelArgs, Event, ExecuteArgs, ItemChunk, Response, StreamArgs

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Channel, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def count(end: int) -> Iterator[int]:
    yield from range(end)


async def wait_forever() -> AsyncIterator[str]:
    yield "x"
    await asyncio.Event().wait()


async def go_on_when_cancelled() -> AsyncIterator[str]:
    yield "x"
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        yield "y"


def start(slot: Channel, inputs: dict[str, Any], stream: Any = StreamArgs()) -> int:  # noqa: B008  it is frozen
    return slot.send("execute_program", ExecuteArgs("p", inputs, stream=stream))


def message(slot: Channel) -> Event | Response:
    return MSGPACK.decode_streamed(slot.receive_body())


def test_events_come_before_the_answer_and_bear_its_id(spawn: Spawn) -> None:
    slot = spawn().slot
    assert slot.create(count).success
    request_id = start(slot, {"end": 2})
    assert [message(slot) for _ in range(2)] == [
        Event(request_id, "chunk", ItemChunk(0)),
        Event(request_id, "chunk", ItemChunk(1)),
    ]
    response = message(slot)
    assert isinstance(response, Response)
    assert (response.id, response.result) == (request_id, {"returned": None})


def test_a_call_is_cancelled_while_it_runs_or_before_it_was_read(spawn: Spawn) -> None:
    worker = spawn()
    slot = worker.slot
    assert slot.create(wait_forever).success
    request_id = start(slot, {})
    assert isinstance(message(slot), Event)
    assert worker.control.ask("cancel", CancelArgs(request_id)).result == {}
    assert slot.error_of(slot.receive()).code == "cancelled"
    assert worker.control.ask("cancel", CancelArgs(request_id + 1)).success
    assert start(slot, {}) == request_id + 1
    assert slot.error_of(slot.receive()).code == "cancelled"
    start(slot, {})
    assert isinstance(message(slot), Event)  # only those that were meant


def test_nothing_is_answered_while_the_call_still_runs(spawn: Spawn) -> None:
    worker = spawn()
    slot = worker.slot
    assert slot.create(go_on_when_cancelled).success
    request_id = start(slot, {})
    assert isinstance(message(slot), Event)
    assert worker.control.ask("cancel", CancelArgs(request_id)).success
    assert slot.error_of(slot.receive()).code == "cancelled"  # its last piece is nobody's


def test_bad_arguments_are_answered(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.slot.create(count).success
    for stream in ({"fields": 3}, {"fields": [1]}, 7):
        start(worker.slot, {"end": 1}, stream)
        assert worker.slot.error_of(worker.slot.receive()).code == "invalid_args"
    for args in ({}, {"id": "x"}, {"id": -1}):
        assert worker.control.error_of(worker.control.ask("cancel", args)).code == "invalid_args"
    assert worker.slot.execute({"end": 1}).error_info is not None  # a generator has no plain form
