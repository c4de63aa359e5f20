"""A request to the stub server in one form, whichever protocol it came by.

Rules: pure; deterministic, token counts included (one token is four characters). This module must not know how any
protocol writes it down: `stub_openai`, `stub_anthropic` and `stub_gemini` do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from dspool.testing.prompts import Layout, content_text, read_inputs, read_layout

__all__ = ["Heard", "Provider", "StubCall", "StubRequest", "Target", "cut", "last_message", "tokens"]

Provider = Literal["openai", "anthropic", "gemini"]

_PIECE = re.compile(r"\S+\s*|\s+")


class Target(NamedTuple):
    """What a request is addressed to, and with which key: all that its head says.

    ``endpoint`` is ``chat/completions``, ``responses``, ``completions``, ``messages`` or ``generateContent``; ``model``
    and ``stream`` are known here for Gemini alone, which writes both into the address.
    """

    provider: Provider
    endpoint: str
    key: str = ""
    model: str = ""
    stream: bool = False


class Heard(NamedTuple):
    """What a body asks for, read by its protocol's module."""

    model: str
    system: str
    user: str
    stream: bool = False
    include_usage: bool = False
    choices: int = 1


class StubCall(msgspec.Struct, frozen=True):
    """Who asked whom: one request as `StubLM.calls` lists it.

    Attributes:
        provider: Whose protocol it came by: ``openai``, ``anthropic`` or ``gemini``.
        endpoint: As in `StubRequest`.
        model: The model's name in the request, without DSPy's provider prefix.
        key: The API key that was sent; empty if there was none.
    """

    provider: str
    endpoint: str
    model: str
    key: str


class StubRequest(msgspec.Struct):
    """One request to the stub, as functions given for ``answers`` and ``faults`` see it.

    Attributes:
        number: 0 for the first request that the server got, then 1, ...
        endpoint: OpenAI's ``chat/completions``, ``responses`` or ``completions``, Anthropic's ``messages``, Gemini's
            ``generateContent``, whether it streams or not.
        model: The model's name in the request, without DSPy's provider prefix.
        system: The system message; empty if there is none.
        user: The last user message.
        stream: Whether the answer is wanted as SSE events.
        include_usage: Whether an OpenAI stream is to end with an event of token counts.
        choices: How many answers are wanted (``n``).
        raw: The body as it came.
        provider: Whose protocol it came by: ``openai``, ``anthropic`` or ``gemini``.
        key: The API key that was sent; empty if there was none.
    """

    number: int
    endpoint: str
    model: str
    system: str
    user: str
    stream: bool
    include_usage: bool
    choices: int
    raw: bytes
    provider: str = "openai"
    key: str = ""

    @property
    def text(self) -> str:
        """All text of the request that the stub reads: the system message and the last user message."""
        return f"{self.system}\n{self.user}"

    @property
    def body(self) -> dict[str, Any]:
        """The body, decoded."""
        decoded: dict[str, Any] = msgspec.json.decode(self.raw)
        return decoded

    @property
    def layout(self) -> Layout:
        """Which fields the prompt asks for, and how."""
        return read_layout(self.system)

    @property
    def inputs(self) -> dict[str, str]:
        """The program's inputs by name, as text; empty where the prompt is not from a DSPy adapter."""
        return read_inputs(self.layout, self.user)

    @property
    def call(self) -> StubCall:
        """Who asked whom."""
        return StubCall(self.provider, self.endpoint, self.model, self.key)


def cut(content: str) -> list[str]:
    """Return a text as the pieces in which it is streamed: one for each word."""
    return _PIECE.findall(content)


def last_message(messages: Sequence[dict[str, Any]], text: str = "content") -> str:
    """Return the last user message; what lies before it is history and examples.

    Args:
        messages: In order, each with a ``role``.
        text: Under which name a message has its text.
    """
    for message in reversed(messages):
        if message.get("role", "user") == "user":
            return content_text(message.get(text))
    return ""


def tokens(request: StubRequest, contents: Sequence[str]) -> tuple[int, int]:
    """Return how many tokens were asked with, and answered with."""
    return _tokens(request.system) + _tokens(request.user), sum(map(_tokens, contents))


def _tokens(text: str) -> int:
    return len(text) // 4 + 1
