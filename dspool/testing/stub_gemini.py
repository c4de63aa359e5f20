"""Gemini's bodies, as the stub server reads and writes them: ``generateContent`` and ``streamGenerateContent``.

The model and whether to stream are in the request's address, not in its body. How long to wait after a 429 is in the
error's text and details, not in a ``Retry-After`` header: that is how Google's server says it.

Rules: pure functions over bytes; deterministic. This module must not know about sockets, timing or what an answer
should say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dspool.testing.prompts import content_text, read_layout
from dspool.testing.stub_request import Heard, StubRequest, Target, cut, last_message, tokens

__all__ = ["answer_body", "answer_events", "error_body", "read"]

_encode = msgspec.json.encode
_ERROR_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class _Body(msgspec.Struct):
    """What the stub reads of a request. Protocol buffers in JSON may be written in either case."""

    contents: list[dict[str, Any]]
    systemInstruction: dict[str, Any] | None = None
    system_instruction: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Body)


def read(target: Target, raw: bytes) -> Heard:
    """Read a request's body.

    Raises:
        ValueError: It isn't JSON, or not that of this endpoint; the message says what is missing.
    """
    body = _decoder.decode(raw)
    if not body.contents:
        raise ValueError("contents is not specified")
    instruction = body.systemInstruction or body.system_instruction
    if instruction is not None:
        system, user = content_text(instruction.get("parts")), last_message(body.contents, text="parts")
    else:
        system, user = _without_instruction(body.contents)
    return Heard(target.model, system, user, target.stream)


def answer_body(request: StubRequest, contents: list[str]) -> bytes:
    """Return the whole answer of a request that doesn't stream, one candidate for each of ``contents``."""
    candidates = [_candidate(content, index, "STOP") for index, content in enumerate(contents)]
    return _encode(_part_of_answer(request, candidates, contents))


def answer_events(request: StubRequest, content: str) -> Iterator[bytes]:
    """Yield the SSE events of a request that streams, the text cut after each word."""
    for piece in cut(content):
        yield b"data: " + _encode(_part_of_answer(request, [_candidate(piece)])) + b"\r\n\r\n"
    yield b"data: " + _encode(_part_of_answer(request, [_candidate("", 0, "STOP")], [content])) + b"\r\n\r\n"


def error_body(status: int, message: str, retry_after_s: float | None = None) -> bytes:
    """Return an error in Google's form."""
    kind = _ERROR_STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    error: dict[str, Any] = {"code": status, "message": message, "status": kind}
    if retry_after_s is not None:
        error["message"] += f" Please retry in {retry_after_s:g}s."
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after_s:g}s"}]
    return _encode({"error": error})


def _without_instruction(contents: list[dict[str, Any]]) -> tuple[str, str]:
    """LiteLLM puts the system message before the first user message where it doesn't know that a model takes one."""
    first = contents[0].get("parts")
    system = content_text(first[:1]) if isinstance(first, list) else ""
    if not read_layout(system).inputs:
        return "", last_message(contents, text="parts")
    rest = [{**contents[0], "parts": first[1:] if isinstance(first, list) else first}, *contents[1:]]
    return system, last_message(rest, text="parts")


def _candidate(text: str, index: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
    finished = {} if finish_reason is None else {"finishReason": finish_reason}
    return {"content": {"role": "model", "parts": [{"text": text}]}, "index": index, **finished}


def _part_of_answer(
    request: StubRequest, candidates: list[dict[str, Any]], said: list[str] | None = None
) -> dict[str, Any]:
    """A whole answer, or an event of a streamed one: the last one has the token counts."""
    answer: dict[str, Any] = {
        "candidates": candidates,
        "modelVersion": request.model,
        "responseId": f"stub-{request.number}",
    }
    if said is not None:
        asked, answered = tokens(request, said)
        counts = {"promptTokenCount": asked, "candidatesTokenCount": answered, "totalTokenCount": asked + answered}
        answer["usageMetadata"] = counts
    return answer
