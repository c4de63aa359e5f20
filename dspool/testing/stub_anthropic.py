"""Anthropic's bodies, as the stub server reads and writes them: the Messages API.

Rules: pure functions over bytes; deterministic. This module must not know about sockets, timing or what an answer
should say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dspool.testing.prompts import content_text
from dspool.testing.stub_request import Heard, StubRequest, Target, cut, last_message, tokens

__all__ = ["answer_body", "answer_events", "error_body", "read"]

_encode = msgspec.json.encode
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class _Body(msgspec.Struct):
    """What the stub reads of a request."""

    model: str
    max_tokens: int
    messages: list[dict[str, Any]]
    system: str | list[Any] | None = None
    stream: bool | None = False


_decoder = msgspec.json.Decoder(_Body)


def read(target: Target, raw: bytes) -> Heard:
    """Read a request's body.

    Raises:
        ValueError: It isn't JSON, or not that of this endpoint; the message says what is missing.
    """
    body = _decoder.decode(raw)
    if not body.messages:
        raise ValueError("messages: at least one message is required")
    return Heard(body.model, content_text(body.system), last_message(body.messages), bool(body.stream))


def answer_body(request: StubRequest, contents: list[str]) -> bytes:
    """Return the whole answer of a request that doesn't stream. The Messages API knows no further choices."""
    return _encode(_message(request, [{"type": "text", "text": contents[0]}], "end_turn", contents))


def answer_events(request: StubRequest, content: str) -> Iterator[bytes]:
    """Yield the SSE events of a request that streams, the text cut after each word."""
    yield _event("message_start", message=_message(request, [], None, []))
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for piece in cut(content):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield _event("content_block_stop", index=0)
    stopped = {"stop_reason": "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=stopped, usage=_usage(request, [content]))
    yield _event("message_stop")


def error_body(status: int, message: str) -> bytes:
    """Return an error in Anthropic's form."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return _encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": "stub"})


def _message(
    request: StubRequest, content: list[dict[str, Any]], stop_reason: str | None, said: list[str]
) -> dict[str, Any]:
    return {
        "id": f"stub-{request.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": _usage(request, said),
    }


def _usage(request: StubRequest, contents: list[str]) -> dict[str, int]:
    asked, said = tokens(request, contents)
    return {"input_tokens": asked, "output_tokens": said}


def _event(kind: str, **data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **data}) + b"\n\n"
