"""Output fields as they are written: what DSPy's streaming gives, sorted into pieces.

DSPy's own streamify() is not used, but all it is made of: its listeners, its status messages, the `send_stream` of its
settings. streamify leaves a cancelled program's thread behind, running, and its slot would be lent again meanwhile.

Knows no pipes. Imported with DSPy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import cloudpickle
import dspy
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamListener, StreamResponse
from dspy.streaming.messages import StatusStreamingCallback

from dspool.protocol import values
from dspool.protocol.messages import FieldChunk, Piece, Status, StreamArgs
from dspool.worker.call_loop import Outlet
from dspool.worker.running import CallRefused, item_of

T = TypeVar("T")


class FieldStream:
    """What DSPy sends its chunks and status messages to: `settings.send_stream` of one call.

    Args:
        listeners: which fields are wanted, of which predictors.
        outlet: where their pieces go.
    """

    def __init__(self, listeners: Sequence[StreamListener], outlet: Outlet) -> None:
        self.listeners = list(listeners)
        self._by_predictor: dict[int, list[StreamListener]] = {}
        for listener in self.listeners:
            self._by_predictor.setdefault(id(listener.predict), []).append(listener)
        self._outlet = outlet

    async def send(self, value: Any) -> None:
        """Take what DSPy sends, or a program of its own accord; waits as long as the caller doesn't read."""
        for piece in self._pieces(value):
            await self._outlet.put(piece)

    async def finish(self) -> None:
        """The program has ended: give what the listeners still hold."""
        for listener in self.listeners:
            if rest := listener.finalize():
                await self._outlet.put(chunk_of(rest))

    def _pieces(self, value: Any) -> Iterator[Piece]:
        if isinstance(value, StatusMessage):
            yield Status(str(value.message))
        elif isinstance(value, StreamResponse):
            yield chunk_of(value)
        elif hasattr(value, "choices"):  # a chunk of an LM's answer, DSPy's or litellm's
            for listener in self._by_predictor.get(getattr(value, "predict_id", None) or 0, ()):
                if response := listener.receive(value):
                    yield chunk_of(response)
        else:
            yield item_of(value)


def chunk_of(response: StreamResponse) -> FieldChunk:
    """A listener's piece as it is sent."""
    text = response.chunk
    if text.__class__ is not str:
        text = "" if text is None else values.to_plain(text, "chunk")
    return FieldChunk(response.predict_name or "", response.signature_field_name, text, bool(response.is_last_chunk))


def listeners_of(module: Any, fields: Sequence[str] | None) -> list[StreamListener]:
    """Listeners for the fields that are wanted; in the call's context.

    Args:
        module: the program.
        fields: "answer" (of every predictor that has it) or "predictor.answer"; None: all that are text.

    Raises:
        CallRefused: there is no such field, or its adapter can't be streamed. Nothing was executed.
    """
    known: dict[str, list[tuple[str, Any, str]]] = {}
    wanted: list[tuple[str, Any, str]] = []
    for name, predictor in module.named_predictors():
        for field, info in predictor.signature.output_fields.items():
            found = (name, predictor, field)
            known.setdefault(field, []).append(found)
            known.setdefault(f"{name}.{field}", []).append(found)
            if fields is None and _is_text(info.annotation):
                wanted.append(found)
    for field in dict.fromkeys(fields or ()):
        if field not in known:
            raise CallRefused(
                "invalid_fields", f"it has no output field {field!r} to stream; it has {', '.join(known) or 'none'}"
            )
        wanted += [found for found in known[field] if found not in wanted]
    listeners = [
        StreamListener(field, predict=predictor, predict_name=name, allow_reuse=True)
        for name, predictor, field in wanted
    ]
    adapter = type(dspy.settings.adapter or dspy.ChatAdapter()).__name__
    if listeners and adapter not in listeners[0].adapter_identifiers:
        if fields is not None:
            supported = ", ".join(listeners[0].adapter_identifiers)
            raise CallRefused("invalid_fields", f"fields can't be streamed with {adapter}, only with {supported}")
        return []
    return listeners


def _is_text(annotation: Any) -> bool:
    """Whether a field is written out as it is: a str, or one of DSPy's own types that can be streamed."""
    if annotation is str:
        return True
    kind: Any = annotation if isinstance(annotation, type) else None
    return kind is not None and issubclass(kind, dspy.Type) and bool(kind.is_streamable())


def stream_settings(stream: FieldStream, args: StreamArgs) -> dict[str, Any]:
    """DSPy's settings for a call whose pieces go to this stream; in the call's context."""
    settings: dict[str, Any] = {"send_stream": stream, "stream_listeners": stream.listeners}
    if args.status is not False:
        settings["callbacks"] = [*dspy.settings.callbacks, StatusStreamingCallback(_provider(args.status))]
    return settings


def _provider(status: Any) -> StatusMessageProvider:
    if status is True:
        return StatusMessageProvider()
    if isinstance(status, bytes):
        provider = cloudpickle.loads(status)
    else:
        from dspool.worker.import_paths import import_attribute

        provider = import_attribute(str(status))
    return provider if isinstance(provider, StatusMessageProvider) else provider()


async def on_thread(work: Callable[[], T]) -> T:
    """Run it on a thread that can give pieces, and wait for its end also when cancelled, which it can't be itself."""
    running = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # looked at: nobody is told of it
        raise
