"""The offline LM: a language model for DSPy that summarises by quoting, without network, key or model file.

It is for demonstrations and tests that should read real text and give real, checkable answers on any machine. It
reads the prompt as a model would, takes the longest input as its document, and fills the output fields that the
prompt asks for:

    title, headline, ...        the document's heading
    summary, abstract, ...      its most telling sentence
    keywords, tags, ...         its five most frequent terms (any ``list[str]``; sentences for ``points``, ``facts``)
    reasoning                   what it did, in a sentence
    any other text              the sentence closest to the field's name and description, and to the other inputs
    int, float, bool, choices   a count, a share, a test, the option that the document mentions most

Rules: deterministic. It says what it is: its model is called ``offline/extractive`` in usage and history, and each
response's ``provider_data`` says that the token counts are estimates. **Nothing may choose it silently**: it is used
where a caller has named it.

It is written as a DSPy *engine*, the contract that outlives DSPy 3.5 (``BaseLM.forward`` subclasses don't). dspy is
imported inside functions only. This module must not know about pools or HTTP.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from dspool.testing.offline_text import Document, terms_of
from dspool.testing.prompts import read_inputs, read_layout, render
from dspool.testing.schema_values import build

__all__ = ["OFFLINE_MODEL", "AsyncOfflineEngine", "OfflineEngine", "complete_text", "offline_lm"]

OFFLINE_MODEL = "offline/extractive"
"""The model's name, and what the commands take for it beside "offline"."""

_TITLES = frozenset(("title", "headline", "heading", "subject", "topic"))
_SUMMARIES = frozenset(("summary", "abstract", "gist", "tldr", "synopsis", "overview"))
_REASONINGS = frozenset(("reasoning", "rationale"))
_SENTENCE_LISTS = frozenset(("point", "fact", "highlight", "sentence", "bullet", "quote", "takeaway", "claim"))
_KEYWORDS = 5
_WORDS_A_MINUTE = 200
_COUNT_SPAN = 10**9
_PIECE = re.compile(r"\S+\s*|\s+")


def offline_lm(spec: str = OFFLINE_MODEL) -> Any:
    """Return the offline LM.

    Args:
        spec: The spec string it was asked for by; there is one model so far.

    Returns:
        A ``dspy.LM`` without cache or retries. It is cheap to build, keeps nothing between calls, and may be shared
        between threads; it can be pickled and saved with a program.

    Raises:
        ValueError: The spec names another model.
    """
    if spec != OFFLINE_MODEL:
        raise ValueError(f"unknown offline model {spec!r}: there is {OFFLINE_MODEL!r}")
    import dspy

    return dspy.LM(OFFLINE_MODEL, engine=OfflineEngine(), async_engine=AsyncOfflineEngine(), cache=False, num_retries=0)


def complete_text(system: str, user: str) -> str:
    """Answer a prompt.

    Args:
        system: The system message of a DSPy adapter; anything else is answered with a summary of ``user``.
        user: The last user message.

    Returns:
        The assistant's message, in the form that the adapter parses. About 2 ms for a document of 10 KB.
    """
    layout = read_layout(system)
    inputs = read_inputs(layout, user)
    if layout.style == "plain":
        return "".join(Document(user).best(1))
    name = max(inputs, key=lambda one: len(inputs[one]), default=None)
    document = Document(inputs.pop(name) if name is not None else "")
    reader = _Reader(document, " ".join(inputs.values()))
    values = {
        field.name: build(
            field.schema, reader, field.name, field.desc, array_length=_KEYWORDS, integer_span=_COUNT_SPAN
        )
        for field in layout.outputs
    }
    return render(layout, values)


class OfflineEngine:
    """The offline LM as DSPy's engine: one ``dspy.lm15.Request`` in, one ``dspy.lm15.Response`` out."""

    def complete(self, request: Any) -> Any:
        """Answer a request. Settings such as temperature have no effect; requests with tools are answered in text."""
        from dspy.lm15 import Message, Response, Usage

        system, user = _read_request(request)
        text = complete_text(system, user)
        read, written = _tokens(system + user), _tokens(text)
        return Response(
            id=None,
            model=OFFLINE_MODEL,
            message=Message.assistant(text),
            finish_reason="stop",
            usage=Usage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            provider_data={"offline": True, "usage_estimated": True, "characters_per_token": 4},
        )

    def stream(self, request: Any) -> Iterator[Any]:
        """Answer a request word by word."""
        from dspy.lm15 import StreamDeltaEvent, StreamEndEvent, StreamStartEvent, TextDelta

        response = self.complete(request)
        yield StreamStartEvent(id=response.id, model=response.model)
        for piece in _PIECE.findall(response.text):
            yield StreamDeltaEvent(delta=TextDelta(text=piece))
        yield StreamEndEvent(finish_reason="stop", usage=response.usage, provider_data=response.provider_data)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def dump_state(self) -> dict[str, Any]:
        """Return the engine's state for a saved program: it has none."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> OfflineEngine:
        """Return the engine of a saved program."""
        return cls()


class AsyncOfflineEngine:
    """The same for ``acall``. It answers on the loop: the few milliseconds are the loop's either way under the GIL."""

    async def complete(self, request: Any) -> Any:
        """Answer a request; see `OfflineEngine.complete`."""
        return OfflineEngine().complete(request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Answer a request word by word."""
        for event in OfflineEngine().stream(request):
            yield event

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

    def dump_state(self) -> dict[str, Any]:
        """Return the engine's state for a saved program: it has none."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AsyncOfflineEngine:
        """Return the engine of a saved program."""
        return cls()


class _Reader:
    """Fills the leaves of a schema from a document; ``question`` is what else the caller sent."""

    __slots__ = ("_document", "_question")

    def __init__(self, document: Document, question: str) -> None:
        self._document = document
        self._question = frozenset(terms_of(question))

    def text(self, name: str, hint: str) -> str:
        document = self._document
        words = frozenset(_name_words(name))
        if words & _TITLES:
            return document.title()
        if words & _SUMMARIES:
            return "".join(document.best(1))
        if words & _REASONINGS:
            count = len(document.sentences)
            return f"Extractive and offline: quoted from {count} sentences, by frequency of terms and position."
        return document.closest(self._question.union(terms_of(hint), words))

    def texts(self, name: str, hint: str, count: int) -> list[str]:
        if _SENTENCE_LISTS.intersection(terms_of(" ".join(_name_words(name)))):
            return self._document.best(count)
        return self._document.keywords(count)

    def integer(self, name: str, hint: str, low: int, high: int) -> int:
        words = frozenset(_name_words(name))
        if words & {"sentence", "sentences"}:
            count = len(self._document.sentences)
        elif words & {"section", "sections", "heading", "headings"}:
            count = len(self._document.headings)
        elif words & {"minute", "minutes"}:
            count = math.ceil(self._document.words / _WORDS_A_MINUTE)
        else:
            count = self._document.words
        return min(max(count, low), high)

    def number(self, name: str, hint: str, low: float, high: float) -> float:
        return round(low + (high - low) * self._document.variety(), 6)

    def boolean(self, name: str, hint: str) -> bool:
        return self._document.share(terms_of(f"{' '.join(_name_words(name))} {hint}")) >= 0.5

    def choose(self, name: str, hint: str, options: Sequence[Any]) -> Any:
        # max() takes the first of equals, so an option that the document doesn't mention never wins by chance.
        return max(options, key=lambda option: self._document.occurrences(terms_of(str(option))))


def _name_words(name: str) -> list[str]:
    """Return the words of a field's name: ``keyPoints_found`` has three."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _read_request(request: Any) -> tuple[str, str]:
    system = request.system or ""
    if not isinstance(system, str):
        system = "".join(part.text for part in system)
    for message in reversed(request.messages):
        if message.role == "user":
            return system, "".join(getattr(part, "text", None) or f"<{part.type}>" for part in message.parts)
    return system, ""


def _tokens(text: str) -> int:
    return len(text) // 4 + 1
