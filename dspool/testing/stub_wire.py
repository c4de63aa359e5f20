"""What goes over the stub server's wire: requests read, answers and errors written, by each provider's own module.

    openai       POST /v1/chat/completions, /v1/responses, /v1/completions      Authorization: Bearer KEY
    anthropic    POST /v1/messages                                              x-api-key: KEY
    gemini       POST /v1beta/models/MODEL:generateContent, :streamGenerateContent     x-goog-api-key: KEY

Rules: pure functions over bytes. This module must not know about sockets, timing or what an answer should say.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from types import ModuleType

from dspool.testing import stub_anthropic, stub_gemini, stub_openai
from dspool.testing.stub_openai import models_body
from dspool.testing.stub_request import StubCall, StubRequest, Target

__all__ = [
    "StubCall",
    "StubRequest",
    "Target",
    "answer_body",
    "answer_events",
    "error_body",
    "models_body",
    "read_request",
    "read_target",
]

_OPENAI = frozenset(("chat/completions", "completions", "responses"))
_GEMINI = re.compile(r"/(?:v1(?:beta)?/)?models/(?P<model>.+):(?P<way>generateContent|streamGenerateContent)")
_VERSIONS = re.compile(r"^(/v1)+/")
"""LiteLLM puts one more before an address of Anthropic's."""
_KEY_HEADERS = ("x-api-key", "x-goog-api-key", "api-key")
_WIRES: dict[str, ModuleType] = {"openai": stub_openai, "anthropic": stub_anthropic, "gemini": stub_gemini}


def read_target(path: str, query: str, headers: Mapping[str, str]) -> Target | None:
    """Return whom a request's head addresses, and with which key; None if it is no model's endpoint.

    Args:
        path: The address's path.
        query: What is behind its question mark; Google takes keys from there too.
        headers: By their names in lower case.
    """
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    key = credential if scheme.lower() == "bearer" else ""
    key = next((headers[name] for name in _KEY_HEADERS if name in headers), key)
    if found := _GEMINI.fullmatch(path):
        key = key or dict(urllib.parse.parse_qsl(query)).get("key", "")
        model = urllib.parse.unquote(found["model"])
        return Target("gemini", "generateContent", key, model, found["way"] == "streamGenerateContent")
    endpoint = _VERSIONS.sub("", path).strip("/")
    if endpoint == "messages":
        return Target("anthropic", endpoint, key)
    return Target("openai", endpoint, key) if endpoint in _OPENAI else None


def read_request(number: int, target: Target, raw: bytes) -> StubRequest:
    """Read a request's body.

    Raises:
        ValueError: It isn't JSON, or not the JSON of this endpoint; the message says what is missing.
    """
    heard = _WIRES[target.provider].read(target, raw)  # msgspec.DecodeError is a ValueError
    model, system, user, stream, usage, choices = heard
    return StubRequest(
        number, target.endpoint, model, system, user, stream, usage, choices, raw, target.provider, target.key
    )


def answer_body(request: StubRequest, contents: list[str]) -> bytes:
    """Return the whole answer of a request that doesn't stream, one choice for each of ``contents``."""
    body: bytes = _WIRES[request.provider].answer_body(request, contents)
    return body


def answer_events(request: StubRequest, content: str) -> Iterator[bytes]:
    """Yield the SSE events of a request that streams, the text cut after each word."""
    events: Iterator[bytes] = _WIRES[request.provider].answer_events(request, content)
    return events


def error_body(status: int, message: str, provider: str = "openai", retry_after_s: float | None = None) -> bytes:
    """Return an error in a provider's form.

    Args:
        status: The answer's status.
        message: What is wrong.
        provider: Whose form; OpenAI's also where a request's address is nobody's.
        retry_after_s: When to try again, for who writes that into the body: Google.
    """
    if provider == "gemini":
        return stub_gemini.error_body(status, message, retry_after_s)
    body: bytes = _WIRES[provider].error_body(status, message)
    return body
