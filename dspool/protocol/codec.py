"""Codecs: the same messages as MessagePack (a pool's pipes) or JSON (the bridge).

Rules:
    1. Encoding gives a whole frame, header included, so that nothing is copied again before it is written.
    2. Encoding raises EncodeError or FrameTooLarge, decoding InvalidMessage, and nothing else, whatever it is given.
    3. Decoding takes memory in proportion to the bytes there are: msgspec takes no header's word for how many items
       follow, and refuses what is nested deeper than Python's stack.
    4. MessagePack carries results as they are, so callers put them through values.to_plain first; enc_hook is only a
       safety net. JSON puts them through values.to_json itself, which refuses NaN where msgspec would write null.

Knows nothing of pipes, and of commands only that each has a name and args.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from dspool.errors import EncodeError, InvalidMessage
from dspool.protocol import values
from dspool.protocol.frames import DEFAULT_MAX_FRAME_BYTES, HEADER_BYTES, seal_frame
from dspool.protocol.messages import Event, Request, Response, Status, validate_request
from dspool.signals import let_through

_INITIAL_BYTES = 128
"""Fits most answers. What is more than twice as long as its message is moved when msgspec cuts it: 0.3 us."""


class _Encoder(Protocol):
    def encode_into(self, obj: Any, buffer: bytearray, offset: int = ..., /) -> None: ...


class Codec:
    """Messages <-> frames' bodies in one notation. Safe to share between threads.

    Args:
        encoder: msgspec encoder of the notation.
        requests: decoder for Request.
        responses: decoder for Response.
        events: decoder for Event.
        anything: untyped decoder without hooks, to find out what is wrong with a body and whose it is.
    """

    def __init__(self, encoder: _Encoder, requests: Any, responses: Any, events: Any, anything: Any) -> None:
        self._encoder = encoder
        self._requests = requests
        self._responses = responses
        self._events = events
        self._anything = anything

    def encode(self, message: Request | Response | Event, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> bytearray:
        """The message as a frame.

        Raises:
            EncodeError: it holds a value that has no plain form.
            FrameTooLarge: it is over the cap.
        """
        return self._encode(message, max_frame_bytes)

    def _encode(self, message: Any, max_frame_bytes: int) -> bytearray:
        frame = bytearray(_INITIAL_BYTES)
        try:
            self._encoder.encode_into(message, frame, HEADER_BYTES)
        except EncodeError:
            raise
        except (TypeError, ValueError, ArithmeticError, RecursionError, msgspec.MsgspecError) as error:
            let_through(error)
            raise EncodeError(f"can't be sent as plain data: {error}") from error
        seal_frame(frame, max_frame_bytes)
        return frame

    def decode_request(self, body: bytes | bytearray | memoryview) -> Request:
        """A request.

        Raises:
            InvalidMessage: with its code, and the id where it could be read.
        """
        try:
            request: Request = self._requests.decode(body)
        except Exception as error:
            let_through(error)
            request = validate_request(self._decode_anything(body))
            raise InvalidMessage(f"args can't be read: {error}", "invalid_args", request.id) from error
        if not request.command:
            raise InvalidMessage("a command is a non-empty string", "invalid_command", request.id)
        return request

    def decode_response(self, body: bytes | bytearray | memoryview) -> Response:
        """A response: a successful one with a result, a failed one with an error.

        Raises:
            InvalidMessage: with code invalid_response.
        """
        try:
            response: Response = self._responses.decode(body)
        except Exception as error:
            let_through(error)
            raise InvalidMessage(f"not a response: {error}", "invalid_response") from error
        if response.success and response.result is msgspec.UNSET:
            raise InvalidMessage("a successful response needs a result", "invalid_response", response.id)
        if not response.success and response.error is None:
            raise InvalidMessage("a failed response needs an error", "invalid_response", response.id)
        return response

    def decode_streamed(self, body: bytes | bytearray | memoryview) -> Event | Response:
        """What a streamed call's pipe carries: an event, or the response that ends it.

        Raises:
            InvalidMessage: with code invalid_response.
        """
        try:
            event: Event = self._events.decode(body)
        except Exception as error:
            let_through(error)
            return self._decode_no_event(body, error)
        if (event.event == "status") is not isinstance(event.data, Status):
            raise InvalidMessage(f"an event of kind {event.event} with other data", "invalid_response", event.id)
        return event

    def _decode_no_event(self, body: bytes | bytearray | memoryview, reason: Exception) -> Response:
        try:
            return self.decode_response(body)
        except InvalidMessage as error:
            raise InvalidMessage(
                f"{error}, and not an event: {reason}", "invalid_response", error.request_id
            ) from error

    def _decode_anything(self, body: bytes | bytearray | memoryview) -> Any:
        try:
            return self._anything.decode(body)
        except Exception as error:
            let_through(error)
            raise InvalidMessage(f"the body can't be decoded: {error}", "invalid_json") from error


class _JSONCodec(Codec):
    def encode(self, message: Request | Response | Event, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> bytearray:
        return self._encode(_plain_json(message), max_frame_bytes)


_ALWAYS_TOLD = {"code": "", "type": "", "traceback": "", "retryable": False}
"""What a client may read in any error_info, without asking first whether it is there."""


def _plain_json(message: Request | Response | Event) -> Any:
    if isinstance(message, Request):
        return msgspec.structs.replace(message, args=values.to_json(message.args, "args"))
    if isinstance(message, Event):
        data = {"of": message.data.__struct_config__.tag, **msgspec.structs.asdict(message.data)}
        return {"id": message.id, "event": message.event, "data": values.to_json(data, "data")}
    body: dict[str, Any] = {"id": message.id, "success": message.success}
    if message.result is not msgspec.UNSET:
        body["result"] = values.to_json(message.result, "result")
    if message.usage is not None:
        body["usage"] = values.to_json(message.usage, "usage")
    if message.error is not None:
        body["error"] = message.error
    if message.error_info is not None:
        details = values.to_json(message.error_info.details, "details")
        info = msgspec.structs.replace(message.error_info, details=details)
        body["error_info"] = {**_ALWAYS_TOLD, **msgspec.to_builtins(info)}
    body["timestamp"] = message.timestamp
    return body


MSGPACK = Codec(
    msgspec.msgpack.Encoder(enc_hook=values.to_plain_once),
    msgspec.msgpack.Decoder(Request, ext_hook=values.from_ext),
    msgspec.msgpack.Decoder(Response, ext_hook=values.from_ext),
    msgspec.msgpack.Decoder(Event, ext_hook=values.from_ext),
    msgspec.msgpack.Decoder(),
)
JSON = _JSONCodec(
    msgspec.json.Encoder(),
    msgspec.json.Decoder(Request),
    msgspec.json.Decoder(Response),
    msgspec.json.Decoder(Event),
    msgspec.json.Decoder(),
)
