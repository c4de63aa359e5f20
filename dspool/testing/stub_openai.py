"""OpenAI's bodies, as the stub server reads and writes them: plain answers, SSE events, errors.

Three endpoints are spoken, because DSPy 3.4 uses three: ``chat/completions`` by default, ``responses`` for
``model_type="responses"``, ``completions`` (through litellm) for ``model_type="text"``.

Rules: pure functions over bytes; deterministic, ids included. This module must not know about sockets, timing or
what an answer should say.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import msgspec

from dspool.testing.prompts import content_text, read_layout
from dspool.testing.stub_request import Heard, StubRequest, Target, cut, last_message, tokens

__all__ = ["answer_body", "answer_events", "error_body", "models_body", "read"]

_CREATED = 1_700_000_000
_encode = msgspec.json.encode
_ERROR_TYPES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "model_not_found"),
    408: ("timeout_error", "request_timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "overloaded"),
}


class _Body(msgspec.Struct):
    """What the stub reads of a request; the rest is ignored, as unknown settings are by most servers."""

    model: str = "stub"
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    input: str | list[Any] | None = None
    instructions: str | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: int | None = 1


_decoder = msgspec.json.Decoder(_Body)


def read(target: Target, raw: bytes) -> Heard:
    """Read a request's body.

    Raises:
        ValueError: It isn't JSON, or not the JSON of this endpoint; the message says what is missing.
    """
    body, endpoint = _decoder.decode(raw), target.endpoint
    if endpoint == "chat/completions":
        if not body.messages:
            raise ValueError("Missing required parameter: 'messages'.")
        system, user = _read_messages(body.messages)
    elif endpoint == "responses":
        if body.input is None:
            raise ValueError("Missing required parameter: 'input'.")
        messages = body.input if isinstance(body.input, list) else [{"role": "user", "content": body.input}]
        system, user = _read_messages([message for message in messages if isinstance(message, dict)])
        system = body.instructions or system
    else:
        if body.prompt is None:
            raise ValueError("Missing required parameter: 'prompt'.")
        prompt = body.prompt if isinstance(body.prompt, str) else "\n\n".join(map(str, body.prompt))
        system, user = _split_prompt(prompt)
    choices = min(max(body.n or 1, 1), 128)
    usage = bool(body.stream_options and body.stream_options.get("include_usage"))
    return Heard(body.model, system, user, bool(body.stream), usage, choices)


def answer_body(request: StubRequest, contents: list[str]) -> bytes:
    """Return the whole answer of a request that doesn't stream, one choice for each of ``contents``."""
    if request.endpoint == "responses":
        return _encode(_response(request, contents[0]))
    chat = request.endpoint == "chat/completions"
    choices = []
    for index, content in enumerate(contents):
        said: dict[str, Any] = {"message": {"role": "assistant", "content": content}} if chat else {"text": content}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": "stop"})
    body = {
        "id": f"stub-{request.number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": _CREATED,
        "model": request.model,
        "choices": choices,
        "usage": _usage(request, contents),
    }
    return _encode(body)


def answer_events(request: StubRequest, content: str) -> Iterator[bytes]:
    """Yield the SSE events of a request that streams, the text cut after each word."""
    if request.endpoint == "responses":
        yield from _response_events(request, content)
        return
    chat = request.endpoint == "chat/completions"
    head = {
        "id": f"stub-{request.number}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": _CREATED,
        "model": request.model,
    }
    prefix = b"data: " + _encode(head)[:-1] + b',"choices":[{"index":0,'
    if chat:
        yield prefix + b'"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    for piece in cut(content):
        said = b'"delta":{"content":' + _encode(piece) + b"}" if chat else b'"text":' + _encode(piece)
        yield prefix + said + b',"finish_reason":null}]}\n\n'
    yield prefix + (b'"delta":{}' if chat else b'"text":""') + b',"finish_reason":"stop"}]}\n\n'
    if request.include_usage:
        yield b"data: " + _encode({**head, "choices": [], "usage": _usage(request, [content])}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def error_body(status: int, message: str) -> bytes:
    """Return an error in OpenAI's form."""
    kind, code = _ERROR_TYPES.get(status, _ERROR_TYPES[500 if status >= 500 else 400])
    return _encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


@functools.cache
def models_body() -> bytes:
    """Return the list of models: one, called ``stub``."""
    model = {"id": "stub", "object": "model", "created": _CREATED, "owned_by": "dspool.testing"}
    return _encode({"object": "list", "data": [model]})


def _read_messages(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the system message and the last user message."""
    first = messages[0] if messages else {}
    system = content_text(first.get("content")) if first.get("role") in ("system", "developer") else ""
    return system, last_message(messages)


def _split_prompt(prompt: str) -> tuple[str, str]:
    """Return a text completion's prompt as system and user message: DSPy joins all its messages into one text."""
    layout = read_layout(prompt)
    if not layout.inputs:
        return "", prompt
    name = layout.inputs[0].name
    mark = f"<{name}>\n" if layout.style == "xml" else f"[[ ## {name} ## ]]\n"
    return prompt, prompt[max(prompt.rfind("\n" + mark), 0) :].lstrip("\n")


def _usage(request: StubRequest, contents: list[str]) -> dict[str, int]:
    prompt, completion = tokens(request, contents)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _response(request: StubRequest, content: str, *, status: str = "completed") -> dict[str, Any]:
    usage = _usage(request, [content])
    item = {"type": "output_text", "text": content, "annotations": []}
    message = {"type": "message", "id": "msg-0", "status": status, "role": "assistant", "content": [item]}
    done = status == "completed"
    return {
        "id": f"stub-{request.number}",
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "model": request.model,
        "output": [message] if done else [],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        }
        if done
        else None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _response_events(request: StubRequest, content: str) -> Iterator[bytes]:
    sequence = 0

    def event(kind: str, **data: Any) -> bytes:
        nonlocal sequence
        sequence += 1
        body = _encode({"type": kind, "sequence_number": sequence, **data})
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"

    place = {"item_id": "msg-0", "output_index": 0, "content_index": 0}
    done = _response(request, content)
    item = done["output"][0]
    yield event("response.created", response=_response(request, "", status="in_progress"))
    yield event("response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
    yield event("response.content_part.added", **place, part={"type": "output_text", "text": "", "annotations": []})
    for piece in cut(content):
        yield event("response.output_text.delta", **place, delta=piece)
    yield event("response.output_text.done", **place, text=content)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=done)
