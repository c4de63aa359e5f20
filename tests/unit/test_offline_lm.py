"""The offline LM on real text: the topics of Python's own language reference, and DSPy's real adapters."""

from __future__ import annotations

import asyncio
import enum
import pickle
import socket
import time
from pydoc_data.topics import topics
from typing import Any, Literal

import dspy
import pydantic
import pytest

from dspool.testing.offline_lm import OFFLINE_MODEL, OfflineEngine, complete_text, offline_lm
from dspool.testing.offline_text import Document, terms_of

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
JSON = dspy.JSONAdapter()
XML = dspy.XMLAdapter(use_json_adapter_fallback=False)


class Topic(dspy.Signature):
    """Read a topic of the language reference."""

    text: str = dspy.InputField()
    title: str = dspy.OutputField()
    summary: str = dspy.OutputField(desc="one sentence")
    keywords: list[str] = dspy.OutputField()


class Kind(enum.Enum):
    STATEMENT = "statement"
    OPERATOR = "operator"
    DEBUGGER = "debugger"


class Card(pydantic.BaseModel):
    title: str
    points: list[str]
    word_count: int


class Typed(dspy.Signature):
    """Answer in many types."""

    text: str = dspy.InputField()
    word_count: int = dspy.OutputField()
    sentences: int = dspy.OutputField()
    section_count: int = dspy.OutputField()
    minutes: int = dspy.OutputField(ge=2, le=5)
    confidence: float = dspy.OutputField()
    mentions_exceptions: bool = dspy.OutputField()
    mentions_zebras: bool = dspy.OutputField()
    kind: Kind = dspy.OutputField()
    place: Literal["kitchen", "clause", "bath"] = dspy.OutputField()
    card: Card = dspy.OutputField()


@pytest.fixture(scope="module", autouse=True)
def _dspy_is_warm() -> None:
    """Pay for DSPy's first call outside the tests."""
    ask("question -> answer", question="warm?")


def ask(signature: Any, *, adapter: Any = CHAT, lm: Any = None, **inputs: Any) -> Any:
    with dspy.context(lm=lm or offline_lm(), adapter=adapter):
        return dspy.Predict(signature)(**inputs)


@pytest.mark.parametrize("adapter", [CHAT, JSON, XML], ids=["chat", "json", "xml"])
def test_a_topic_gets_its_heading_a_telling_sentence_and_its_terms(adapter: Any) -> None:
    answer = ask(Topic, adapter=adapter, text=topics["break"])
    assert answer.title == 'The "break" statement'
    assert answer.summary.startswith('"break" may only occur syntactically nested in a "for" or "while" loop')
    assert answer.keywords == ["loop", "break", "clause", "statement", "nested"]


@pytest.mark.slow
def test_every_topic_is_answered_in_its_own_words() -> None:
    for name, text in topics.items():
        answer = ask(Topic, text=text)
        flat = " ".join(text.split())
        assert answer.title in flat, name
        assert answer.summary in flat, name
        assert answer.summary.endswith((".", ")", '"')), name
        assert len(answer.keywords) == len(set(answer.keywords)) == 5, name
        assert all(keyword in flat.lower() for keyword in answer.keywords), name


@pytest.mark.parametrize("adapter", [CHAT, JSON], ids=["chat", "json"])
def test_types_get_sensible_values(adapter: Any) -> None:
    text = topics["try"]
    answer = ask(Typed, adapter=adapter, text=text)
    assert answer.word_count == len(text.split())
    assert 1 < answer.sentences < answer.word_count
    assert answer.section_count == len(Document(text).headings) >= 1
    assert answer.minutes in range(2, 6)
    assert 0 < answer.confidence < 1
    assert answer.mentions_exceptions is True
    assert answer.mentions_zebras is False
    assert answer.kind is Kind.STATEMENT
    assert answer.place == "clause"
    assert isinstance(answer.card, Card)
    assert answer.card.title == Document(text).title()
    assert len(answer.card.points) == 5
    assert set(answer.card.points) <= set(Document(text).sentences)


def test_other_text_fields_follow_their_description_and_the_question() -> None:
    text = topics["assert"]
    about = dspy.Signature({"text": (str, dspy.InputField()), "note": (str, dspy.OutputField(desc="an assignment"))})
    assert ask(about, text=text).note == 'Assignments to "__debug__" are illegal.'
    answer = ask("context, question -> answer", context=text, question="When is no code emitted?").answer
    assert answer.startswith("The current code generator emits no code")


def test_reasoning_says_what_was_done() -> None:
    with dspy.context(lm=offline_lm(), adapter=CHAT):
        prediction = dspy.ChainOfThought("text -> summary")(text=topics["pass"])
    assert "Extractive and offline" in prediction.reasoning
    assert prediction.summary in " ".join(topics["pass"].split())


@pytest.mark.parametrize("text", ["", "why?", "no end of a sentence", "...", "\n\n", "Wörter über Öl."])
def test_short_and_odd_texts_are_answered_too(text: str) -> None:
    answer = ask(Topic, text=text)
    assert isinstance(answer.title, str)
    assert isinstance(answer.summary, str)
    assert isinstance(answer.keywords, list)


def test_equal_prompts_have_equal_answers() -> None:
    first, second = (ask(Typed, text=topics["with"]) for _ in range(2))
    assert dict(first.items()) == dict(second.items())


def test_free_text_is_summarised() -> None:
    assert offline_lm()(topics["break"])[0].startswith('"break" may only occur')
    assert complete_text("", "") == ""


def test_it_says_that_it_is_offline() -> None:
    lm = offline_lm(OFFLINE_MODEL)
    with dspy.context(lm=lm, adapter=CHAT, track_usage=True):
        prediction = dspy.Predict("text -> summary")(text=topics["break"])
    assert lm.model == "offline/extractive"
    usage = prediction.get_lm_usage()["offline/extractive"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    response = lm.history[-1]["response"]
    assert response.model == "offline/extractive"
    assert response.provider_data == {"offline": True, "usage_estimated": True, "characters_per_token": 4}


def test_it_never_opens_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the offline LM opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert ask(Topic, text=topics["break"]).title


def test_another_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="offline/generative"):
        offline_lm("offline/generative")


def test_acall_and_streams_work() -> None:
    async def collect() -> list[Any]:
        with dspy.context(lm=offline_lm(), adapter=CHAT):
            predict = dspy.Predict("text -> summary")
            answer = await predict.acall(text=topics["break"])
            listeners = [dspy.streaming.StreamListener("summary")]
            program = dspy.streamify(predict, stream_listeners=listeners, is_async_program=True)
            return [answer, *[piece async for piece in program(text=topics["break"])]]

    answer, *pieces, prediction = asyncio.run(collect())
    assert answer.summary == prediction.summary == "".join(piece.chunk for piece in pieces)
    assert len(pieces) > 5


def test_a_sync_stream_carries_the_usage() -> None:
    from dspy.lm15 import Message, Request

    request = Request(model=OFFLINE_MODEL, messages=(Message.user(topics["break"]),))
    engine = OfflineEngine()
    first, *deltas, end = engine.stream(request)
    response = engine.complete(request)
    assert first.model == OFFLINE_MODEL
    assert "".join(event.delta.text for event in deltas) == response.text
    assert end.usage == response.usage


def test_it_can_be_pickled_and_saved() -> None:
    lm = offline_lm()
    for copy in (
        pickle.loads(pickle.dumps(lm)),
        lm.copy(),
        type(lm).load_state(lm.dump_state(), allow_custom_lm_class=True),
    ):
        assert ask(Topic, lm=copy, text=topics["break"]).title == 'The "break" statement'


# -- reading documents


def test_headings_tables_and_code_are_no_sentences() -> None:
    document = Document(
        "Title\n=====\n\nThe first sentence has six words. See e.g. Abbreviations that end nothing at all.\n\n"
        "   def code(): pass\n\n+---+---+\n| A table of cells. |\n+---+---+\n\n"
        "## Part two ##\n\n* A bullet is a sentence too.\n* and this one is none.\n\nrule ::= a grammar of words.\n"
    )
    assert document.headings == ["Title", "Part two"]
    assert document.sentences == [
        "The first sentence has six words.",
        "See e.g. Abbreviations that end nothing at all.",
        "A bullet is a sentence too.",
    ]


def test_a_title_is_a_heading_or_a_short_first_line_or_the_most_frequent_phrase() -> None:
    assert Document("# Marked\n\nText of some words here.").title() == "Marked"
    assert Document("A short line\nText of some words here, and more.").title() == "A short line"
    prose = "The worker pool waits for work. Each worker pool has some workers. A pool closes at the end of it."
    assert Document(prose).title() == "Worker pool"
    assert Document("").title() == ""


def test_a_closed_quotation_belongs_to_its_sentence() -> None:
    assert Document('She said it was "all right." Then she left the room.').sentences == [
        'She said it was "all right."',
        "Then she left the room.",
    ]


def test_terms_are_lower_case_singulars_without_stop_words() -> None:
    assert terms_of("The Modules' classes, and their boxes; a city, cities: this is us. Classes") == [
        *["module", "class", "box", "city", "city", "class"],
    ]


@pytest.mark.slow
def test_ten_kilobytes_take_milliseconds() -> None:
    """About 3.5 ms where nothing else runs; the bound is loose, for a busy machine."""
    text = (topics["typesseq"] * 2)[:10_000]
    begun = time.thread_time()
    for _ in range(20):
        Document(text)
    assert (time.thread_time() - begun) / 20 < 0.025
