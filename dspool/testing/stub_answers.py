"""What the stub server says: by default the caller's own question, in every field that is asked for.

Because an answer repeats the question it belongs to, a test sees at once when one caller got another's answer.
Every value is a function of the request's text alone, so equal requests have equal answers in every process.
This module must not know about sockets or time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspool.testing.prompts import render, value_text
from dspool.testing.schema_values import build
from dspool.testing.stub_request import StubRequest

__all__ = ["Answers", "answer", "echo"]

Answers = Mapping[str, Any] | Callable[[StubRequest], str] | None
"""By field a value or a function of the inputs; or a function that writes the whole message; None to echo."""

ECHO_LIMIT = 2000
"""How much of a question an answer repeats, in characters: an echo of a long document would only cost time."""


def echo(inputs: Mapping[str, str]) -> str:
    """Return what a text field says by default: ``echo: `` and the caller's question.

    Args:
        inputs: The program's inputs. The one called ``question`` is the question; without it all of them, joined
            by `` | ``.
    """
    question = inputs.get("question")
    if question is None:
        question = " | ".join(inputs.values())
    return f"echo: {question[:ECHO_LIMIT].strip()}"


def answer(request: StubRequest, answers: Answers) -> str:
    """Return the assistant's message.

    Args:
        request: What is asked.
        answers: What the user of the stub wants said; fields without an entry are echoed.

    Returns:
        A message that the adapter of the request parses. Free text echoes the last message; with a dict of answers
        that has ``text`` it says that.
    """
    if callable(answers):
        return answers(request)
    layout = request.layout
    if layout.style == "plain":
        value = answers.get("text") if answers else None
        return echo({"question": request.user}) if value is None else _said(value, {"question": request.user})
    inputs = read = request.inputs
    maker: _Echo | None = None
    values: dict[str, Any] = {}
    for field in layout.outputs:
        if answers and field.name in answers:
            value = answers[field.name]
            values[field.name] = value(dict(read)) if callable(value) else value
            continue
        maker = maker or _Echo(echo(inputs))
        if field.schema == {"type": "string"}:  # the common case, without the walk
            values[field.name] = maker.said
        else:
            values[field.name] = build(field.schema, maker, field.name, field.desc)
    return render(layout, values)


def _said(value: Any, inputs: dict[str, str]) -> str:
    return value_text(value(inputs) if callable(value) else value)


class _Echo:
    """Fills the leaves of a schema with the question, or with numbers that depend on it."""

    __slots__ = ("_number", "said")

    def __init__(self, said: str) -> None:
        self.said = said
        self._number = zlib.crc32(said.encode(errors="replace"))

    def text(self, name: str, hint: str) -> str:
        return self.said

    def texts(self, name: str, hint: str, count: int) -> list[str]:
        return [self.said, *(f"{self.said} ({index})" for index in range(2, count + 1))][:count]

    def integer(self, name: str, hint: str, low: int, high: int) -> int:
        return low + self._number % (high - low + 1)

    def number(self, name: str, hint: str, low: float, high: float) -> float:
        return round(low + (high - low) * (self._number % 1000) / 1000, 6)

    def boolean(self, name: str, hint: str) -> bool:
        return self._number % 2 == 1

    def choose(self, name: str, hint: str, options: Sequence[Any]) -> Any:
        # An agent that is offered its end takes it; by chance alone it would run to its limit of steps.
        return "finish" if "finish" in options else options[self._number % len(options)]
