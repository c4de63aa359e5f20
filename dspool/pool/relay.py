"""A wrapped call inside of dspy.streamify: what its worker sends goes into the stream of the caller's DSPy.

    LM in the worker --RelayStream--> slot pipe --relayed()--> settings.send_stream --> streamify and its listeners

Rules:
    1. The listeners are the caller's own objects, and read what they would in one process. A worker is told which
       predictors they listen to, by their places, for DSPy asks an LM for pieces only where somebody listens.
    2. The caller's pace is the worker's: the next piece is read when the stream has taken the one before.
    3. However the stream ends, the call does too: it is cancelled where it still runs.

dspy is imported here only inside of a stream of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import anyio.from_thread

from dspool.pool.interrupts import guarded
from dspool.pool.steps import Steps, until_piece
from dspool.pool.streams import LET_IT_MAKE_THEM, PROVIDER_NOT_SENT, piece_of
from dspool.pool.unsendable import pickled_or_named
from dspool.protocol.messages import Event, LMChunk, Relay
from dspool.protocol.modules import modules_in

T = TypeVar("T")


class Listening(NamedTuple):
    """A stream of the caller's DSPy, and by which id it knows each predictor of a program."""

    stream: Any
    predict_ids: list[int]
    relay: Relay


def listening(wrapper: Any) -> Listening | None:
    """The stream that a call of this module is to send to, now; None: there is none.

    Raises:
        EncodeError: what makes the status messages can't be sent.
    """
    settings = sys.modules["dspy"].settings
    if settings.send_stream is None:
        return None
    from dspy.streaming.messages import StatusStreamingCallback

    modules = modules_in(wrapper)
    # A wrapper and its program share their attributes, and either may be what a listener was given.
    places = {id(vars(module)): place for place, module in enumerate(modules)}
    predict_ids = [id(module) for module in modules]
    relay = Relay([] if settings.stream_listeners else None)
    for listener in settings.stream_listeners or ():
        place = places.get(id(getattr(listener.predict, "__dict__", None)))
        if place is not None and relay.predictors is not None:
            relay.predictors.append(place)
            predict_ids[place] = id(listener.predict)
    for callback in settings.callbacks:
        if isinstance(callback, StatusStreamingCallback):
            relay.status.append(pickled_or_named(callback, "callback", PROVIDER_NOT_SENT, LET_IT_MAKE_THEM))
    return Listening(settings.send_stream, predict_ids, relay)


def beside_stream() -> bool:
    """Whether the caller has a stream, and this is a thread that its loop has started, which can send to it."""
    if sys.modules["dspy"].settings.send_stream is None:
        return False
    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True


async def relayed(steps: Steps[T], awaited: Callable[[Steps[Any]], Awaitable[Any]], to: Listening) -> T:
    """Run a streamed call, and send its pieces.

    Args:
        steps: the call's.
        awaited: how steps are driven here.
        to: where the pieces go.
    """
    try:
        while True:
            event, end = await awaited(until_piece(steps))
            if event is None:
                value: T = end
                return value
            await to.stream.send(_sent(event, to.predict_ids))
    finally:
        guarded(steps.close)()


def _sent(event: Event, predict_ids: list[int]) -> Any:
    data = event.data
    if not isinstance(data, LMChunk):
        return piece_of(event)
    from dspy.clients.call_result import attributes
    from dspy.clients.engines.streaming import EngineChunk

    predict_id = None  # of a predictor that the program made on the way
    if data.predictor is not None and 0 <= data.predictor < len(predict_ids):
        predict_id = predict_ids[data.predictor]
    return EngineChunk({**attributes(data.data), "predict_id": predict_id})
