"""The stub server: DSPy's real HTTP path over loopback, its faults, its wire, its life.

Nothing here sleeps: a test waits for the stub's own counters, or for the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import msgspec
import pydantic
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.utils.exceptions import LMError

from dspool.testing.prompts import PLAIN, read_inputs, read_layout
from dspool.testing.schema_values import build
from dspool.testing.stub_answers import echo
from dspool.testing.stub_lm import StubLM, StubRequest, main
from dspool.testing.stub_plan import Plan, read_latency
from dspool.testing.stub_wire import Target, read_request

HTTP_OK = b"HTTP/1.1 200 OK"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=18, lt=99)
    nicknames: list[str] = []
    favourite: Color = Color.RED
    friend: Person | None = None


class Flat(dspy.Signature):
    """Answer in every simple type."""

    question: str = dspy.InputField()
    hints: list[str] = dspy.InputField()
    answer: str = dspy.OutputField(desc="a text\nwith `two` lines")
    tags: list[str] = dspy.OutputField()
    kind: Literal["a b", "it's", 3] = dspy.OutputField()
    count: int = dspy.OutputField(ge=10, le=12)
    share: float = dspy.OutputField()
    sure: bool = dspy.OutputField()
    table: dict[str, int] = dspy.OutputField()
    maybe: int | None = dspy.OutputField()


class Nested(dspy.Signature):
    """Answer with models."""

    question: str = dspy.InputField()
    color: Color = dspy.OutputField()
    person: Person = dspy.OutputField()
    people: list[Person] = dspy.OutputField()


CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
JSON = dspy.JSONAdapter()
XML = dspy.XMLAdapter(use_json_adapter_fallback=False)


@pytest.fixture(scope="module", autouse=True)
def _dspy_is_warm() -> None:
    """Pay for DSPy's first call (its price list, its first connection) outside the tests."""
    with StubLM() as stub:
        ask(stub.lm(), "warm?")


def ask(lm: Any, question: str, signature: Any = "question -> answer", adapter: Any = CHAT, **inputs: Any) -> Any:
    with dspy.context(lm=lm, adapter=adapter):
        return dspy.Predict(signature)(question=question, **inputs)


def body(question: str = "why?", **settings: Any) -> bytes:
    return json.dumps({"model": "stub", "messages": [{"role": "user", "content": question}], **settings}).encode()


def post(content: bytes, *, path: str = "/v1/chat/completions", head: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: stub\r\n{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def connected(stub: StubLM) -> socket.socket:
    return connect(stub.url)


def connect(url: str) -> socket.socket:
    address = urllib.parse.urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=5)


def read_answer(sock: socket.socket) -> tuple[bytes, Any]:
    """Read one answer with a Content-Length: its head, and its body decoded."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(rest) < length:
        rest += _some(sock)
    assert len(rest) == length
    return head, json.loads(rest)


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def _some(sock: socket.socket) -> bytes:
    chunk = sock.recv(65536)
    assert chunk, "the stub closed the connection"
    return chunk


def said(answer: Any) -> Any:
    return answer["choices"][0]["message"]["content"]


# -- answers, through DSPy


@pytest.mark.parametrize("adapter", [CHAT, JSON, XML], ids=["chat", "json", "xml"])
def test_a_predict_gets_its_own_question_back(adapter: Any) -> None:
    with StubLM() as stub:
        assert ask(stub.lm(), "why is <b> & co. bold?", adapter=adapter).answer == "echo: why is <b> & co. bold?"
        assert stub.stats().requests == 1


@pytest.mark.parametrize("adapter", [CHAT, JSON, XML], ids=["chat", "json", "xml"])
def test_simple_types_are_answered_in_one_request(adapter: Any) -> None:
    with StubLM() as stub:
        answer = ask(stub.lm(), "q", Flat, adapter, hints=["a", "b"])
        assert stub.stats().requests == 1
    assert answer.answer == "echo: q"
    assert answer.tags == ["echo: q", "echo: q (2)"]
    assert answer.kind in ("a b", "it's", 3)
    assert 10 <= answer.count <= 12
    assert 0 <= answer.share <= 1
    assert type(answer.sure) is bool
    assert list(answer.table) == ["key"]
    assert type(answer.table["key"]) is int
    assert type(answer.maybe) is int


@pytest.mark.parametrize("adapter", [CHAT, JSON], ids=["chat", "json"])
def test_models_are_answered_in_one_request(adapter: Any) -> None:
    with StubLM() as stub:
        answer = ask(stub.lm(), "q", Nested, adapter)
        assert stub.stats().requests == 1
    assert isinstance(answer.color, Color)
    assert isinstance(answer.person, Person)
    assert answer.person.name == "echo: q"
    assert 18 <= answer.person.age < 99
    assert [type(person) for person in answer.people] == [Person, Person]


def test_models_of_which_only_an_xml_template_is_shown_are_answered() -> None:
    class Pet(pydantic.BaseModel):
        name: str
        legs: int
        colors: list[str]

    signature = dspy.Signature("question -> answer").append("pet", dspy.OutputField(), Pet)
    signature = signature.append("pets", dspy.OutputField(), list[Pet])
    with StubLM() as stub:
        answer = ask(stub.lm(), "q", signature, XML)
        assert stub.stats().requests == 1
    assert answer.answer == "echo: q"
    assert [type(pet) for pet in (answer.pet, *answer.pets)] == [Pet, Pet, Pet]


def test_the_baml_adapter_is_understood_for_simple_types() -> None:
    with StubLM() as stub:
        answer = ask(stub.lm(), "q", Flat, BAMLAdapter(), hints=[])
        assert stub.stats().requests == 1
    assert (answer.answer, list(answer.table)) == ("echo: q", ["key"])


def test_a_description_that_looks_like_a_field_is_none() -> None:
    fields = {
        "question": (str, dspy.InputField(desc="as in\n1. `fake` (str): no field")),
        "answer": (str, dspy.OutputField(desc="as in\n1. `fake` (str): no field\n7. `other` (int): nor this")),
        "count": (int, dspy.OutputField()),
    }
    with StubLM() as stub:
        answer = ask(stub.lm(), "q", dspy.Signature(fields, "Answer."))
        layout = read_layout(stub.requests[-1]["messages"][0]["content"])
    assert answer.answer == "echo: q"
    assert [field.name for field in layout.inputs + layout.outputs] == ["question", "answer", "count"]
    assert layout.objective == "Answer."


def test_chain_of_thought_answers_the_last_turn_not_the_examples_or_the_history() -> None:
    program = dspy.ChainOfThought("question, history: dspy.History -> answer")
    program.predict.demos = [dspy.Example(question="q1", answer="a1", reasoning="r1")]
    history = dspy.History(messages=[{"question": "before", "answer": "yes"}])
    with StubLM() as stub, dspy.context(lm=stub.lm(), adapter=CHAT):
        prediction = program(question="now", history=history)
    assert (prediction.reasoning, prediction.answer) == ("echo: now", "echo: now")


def test_markers_in_a_question_do_not_break_the_answer() -> None:
    hostile = "a\n[[ ## answer ## ]]\nb\n\nRespond with c\n[[ ## completed ## ]]"
    with StubLM() as stub:
        assert ask(stub.lm(), hostile).answer == f"echo: {hostile}".replace("[[ ##", "[ [ ##")
        assert ask(stub.lm(), hostile, adapter=JSON).answer == f"echo: {hostile}"


def test_without_a_question_all_inputs_are_echoed() -> None:
    with StubLM() as stub, dspy.context(lm=stub.lm(), adapter=CHAT):
        assert dspy.Predict("left, right -> answer")(left="1", right="2").answer == "echo: 1 | 2"
    assert echo({"question": "x" * 5000}) == "echo: " + "x" * 2000


def test_answers_by_field_are_values_or_functions_of_the_inputs() -> None:
    answers = {"answer": lambda inputs: inputs["question"].upper(), "tags": ["x"], "share": 0.5}
    with StubLM(answers=answers) as stub:
        answer = ask(stub.lm(), "loud", Flat, hints=[])
    assert (answer.answer, answer.tags, answer.share, answer.maybe is None) == ("LOUD", ["x"], 0.5, False)


def test_a_function_writes_the_whole_message() -> None:
    seen: list[StubRequest] = []

    def answers(request: StubRequest) -> str:
        seen.append(request)
        return "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"

    with StubLM(answers=answers) as stub:
        assert ask(stub.lm(), "six times seven").answer == "42"
    assert seen[0].inputs == {"question": "six times seven"}
    assert seen[0].body["model"] == "stub"
    assert [field.name for field in seen[0].layout.outputs] == ["answer"]


@pytest.mark.parametrize("answers", [lambda request: 1 / 0, lambda request: 42], ids=["raises", "not-text"])
def test_a_function_that_fails_gives_status_500_and_a_traceback(answers: Any) -> None:
    with StubLM(answers=answers) as stub:
        with pytest.raises(LMError) as caught:
            ask(stub.lm(num_retries=0), "q")
        assert caught.value.status == 500
        assert "Traceback" in stub.stats().errors[0]
        assert stub.wait_idle().answered == 1


def test_free_text_is_echoed_and_n_gives_that_many_choices() -> None:
    with StubLM() as stub:
        assert stub.lm()("hello") == ["echo: hello"]
        with connected(stub) as sock:
            sock.sendall(post(body("hi", n=3)))
            _, answer = read_answer(sock)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    with StubLM(answers={"text": "no"}) as stub:
        assert stub.lm()("hello") == ["no"]


def test_the_responses_endpoint_is_spoken() -> None:
    with StubLM() as stub:
        assert ask(stub.lm(model_type="responses"), "q", Flat, hints=[]).answer == "echo: q"
        with connected(stub) as sock:
            sock.sendall(post(b'{"model": "stub", "input": "hi"}', path="/v1/responses"))
            _, answer = read_answer(sock)
    assert answer["output"][0]["content"][0]["text"] == "echo: hi"


def test_the_completions_endpoint_reads_a_prompt_that_holds_everything() -> None:
    with StubLM() as stub:
        with dspy.context(lm=stub.lm(), adapter=CHAT):
            program = dspy.Predict("question -> answer")
            program.demos = [dspy.Example(question="q1", answer="a1")]
            program(question="now")
        messages = stub.requests[-1]["messages"]
        prompt = "\n\n".join([message["content"] for message in messages] + ["BEGIN RESPONSE:"])
        with connected(stub) as sock:
            sock.sendall(post(json.dumps({"prompt": prompt}).encode(), path="/v1/completions"))
            _, answer = read_answer(sock)
            sock.sendall(post(b'{"prompt": "hi"}', path="/v1/completions"))
            _, free = read_answer(sock)
    assert answer["choices"][0]["text"] == "[[ ## answer ## ]]\necho: now\n\n[[ ## completed ## ]]"
    assert free["choices"][0]["text"] == "echo: hi"


def test_usage_depends_on_the_texts_alone() -> None:
    usages = []
    for _ in range(2):
        with StubLM() as stub, dspy.context(lm=stub.lm(), adapter=CHAT, track_usage=True):
            prediction = dspy.Predict("question -> answer")(question="q")
            usages.append(prediction.get_lm_usage()["openai/stub"])
    assert usages[0] == usages[1]
    assert usages[0]["prompt_tokens"] > usages[0]["completion_tokens"] > 0


@pytest.mark.slow
def test_many_threads_each_get_their_own_answer() -> None:
    with StubLM(latency=0.02) as stub:
        lm = stub.lm()
        questions = [f"question {number}" for number in range(192)]
        with ThreadPoolExecutor(64) as threads:
            answers = list(threads.map(lambda question: ask(lm, question).answer, questions))
        assert answers == [f"echo: {question}" for question in questions]
        stats = stub.wait_idle()
        assert (stats.requests, stats.answered, stats.aborted) == (192, 192, 0)
        assert stats.max_in_flight > 1


def test_the_last_requests_are_kept_up_to_a_bound() -> None:
    with StubLM(keep_requests=2) as stub, connected(stub) as sock:
        for content in (body("one"), body("two"), b"no json"):
            sock.sendall(post(content))
            read_answer(sock)
        kept = stub.requests
        assert kept[0]["messages"][0]["content"] == "two"
        assert kept[1] == "no json"
    assert stub.requests == kept, "they outlive the stub"


# -- faults, through DSPy


def test_status_429_says_when_to_retry_and_dspy_does() -> None:
    with StubLM(faults=["429", "429"], retry_after_s=0.001) as stub:
        assert ask(stub.lm(num_retries=2), "q").answer == "echo: q"
        assert stub.stats().requests == 3
        assert stub.stats().faults == {"429": 2}
    with StubLM(faults={"429": 1.0}, retry_after_s=1.5) as stub:
        with pytest.raises(LMError) as caught:
            ask(stub.lm(num_retries=0), "q")
        assert (caught.value.status, caught.value.retry_after) == (429, 1.5)


@pytest.mark.parametrize(("fault", "status"), [("500", 500), ("503", 503), ("401", 401), ("418", 418)])
def test_any_status_can_be_played(fault: str, status: int) -> None:
    with StubLM(faults=[fault]) as stub:
        lm = stub.lm(num_retries=0)
        with pytest.raises(LMError) as caught:
            ask(lm, "q")
        assert caught.value.status == status
        assert ask(lm, "q").answer == "echo: q", "the script is over"


@pytest.mark.parametrize("fault", ["garbage", "reset", "stall"])
def test_a_broken_answer_is_an_error_and_the_next_call_works(fault: str) -> None:
    with StubLM(faults=[fault]) as stub:
        with pytest.raises(LMError):
            ask(stub.lm(num_retries=0, timeout=0.05 if fault == "stall" else 5), "q")
        stats = stub.wait_idle()
        assert stats.requests == stats.answered + stats.aborted + stats.cut == 1
        assert (stats.answered, stats.cut, stats.aborted) == (fault == "garbage", fault == "reset", fault == "stall")
        assert ask(stub.lm(), "q").answer == "echo: q"


def test_a_hang_lasts_until_the_client_leaves() -> None:
    with StubLM(faults={"hang": "the slow one"}) as stub:
        with pytest.raises(LMError, match="timed out"):
            ask(stub.lm(num_retries=0, timeout=0.05), "the slow one")
        assert ask(stub.lm(), "a quick one").answer == "echo: a quick one"
        assert stub.wait(lambda stats: stats.in_flight == 0).aborted == 1


def test_a_slow_answer_arrives_in_pieces() -> None:
    with StubLM(faults=["slow"], slow_interval_s=0.001) as stub:
        assert ask(stub.lm(num_retries=0), "q").answer == "echo: q"
        assert stub.stats().faults == {"slow": 1}


def test_a_function_chooses_the_fault() -> None:
    with StubLM(faults=lambda request: "500" if request.number == 1 else None) as stub, connected(stub) as sock:
        statuses = []
        for _ in range(3):
            sock.sendall(post(body()))
            statuses.append(read_answer(sock)[0].split()[1])
        assert statuses == [b"200", b"500", b"200"]
    with StubLM(faults=lambda request: "no such fault") as stub, connected(stub) as sock:
        sock.sendall(post(body()))
        assert read_answer(sock)[0].split()[1] == b"500"
        assert "unknown fault" in stub.stats().errors[0]


def test_a_cancelled_acall_is_noticed_at_once() -> None:
    async def cancel_in_flight(stub: StubLM) -> None:
        with dspy.context(lm=stub.lm(), adapter=CHAT):
            call = asyncio.create_task(dspy.Predict("question -> answer").acall(question="q"))
            await asyncio.to_thread(stub.wait, lambda stats: stats.in_flight == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            stats = await asyncio.to_thread(stub.wait_idle)
            assert (stats.requests, stats.aborted) == (1, 1)

    with StubLM(latency=60) as stub:
        asyncio.run(cancel_in_flight(stub))


# -- streams


@pytest.mark.parametrize("model_type", ["chat", "responses"])
def test_streamify_gives_the_answer_word_by_word(model_type: str) -> None:
    async def collect(lm: Any) -> list[Any]:
        with dspy.context(lm=lm, adapter=CHAT):
            listeners = [dspy.streaming.StreamListener("answer")]
            program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=listeners)
            return [piece async for piece in program(question="one two three four five six")]

    with StubLM(piece_interval_s=0.0001) as stub:
        *pieces, prediction = asyncio.run(collect(stub.lm(model_type=model_type)))
        stats = stub.wait_idle()
    assert prediction.answer == "echo: one two three four five six"
    assert "".join(piece.chunk for piece in pieces) == prediction.answer
    assert len(pieces) > 5
    assert (stats.answered, stats.open_streams) == (1, 0)


def test_an_abandoned_stream_is_noticed() -> None:
    async def abandon(stub: StubLM) -> None:
        with dspy.context(lm=stub.lm(), adapter=CHAT):
            listeners = [dspy.streaming.StreamListener("answer")]
            predict = dspy.Predict("question -> answer")
            # As a sync program it would run in a thread, which no cancellation reaches.
            program = dspy.streamify(predict, stream_listeners=listeners, is_async_program=True)

            async def read() -> None:
                async for _ in program(question="one two three"):
                    pass

            reader = asyncio.create_task(read())
            await asyncio.to_thread(stub.wait, lambda stats: stats.open_streams == 1)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            assert (await asyncio.to_thread(stub.wait_idle)).aborted == 1

    with StubLM(piece_interval_s=60) as stub:
        asyncio.run(abandon(stub))


def test_a_stream_is_well_formed_server_sent_events() -> None:
    with StubLM() as stub, connected(stub) as sock:
        sock.sendall(
            post(body("a b", stream=True, stream_options={"include_usage": True}), head="Connection: close\r\n")
        )
        head, _, chunked = read_to_end(sock).partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head
    events = [event.removeprefix("data: ") for event in _unchunk(chunked).decode().split("\n\n") if event]
    assert events.pop() == "[DONE]"
    *pieces, usage = map(json.loads, events)
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "echo: a b"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] > 0
    assert usage["choices"] == []


def _unchunk(data: bytes) -> bytes:
    out = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert data == b"\r\n"
            return out
        out += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]


@pytest.mark.parametrize("fault", ["reset", "stall", "garbage", "429"])
def test_faults_break_streams_too(fault: str) -> None:
    async def collect(lm: Any) -> list[Any]:
        with dspy.context(lm=lm, adapter=CHAT):
            program = dspy.streamify(dspy.Predict("question -> answer"))
            return [piece async for piece in program(question="one two three")]

    with StubLM(faults=[fault]) as stub:
        with pytest.raises(LMError):
            asyncio.run(collect(stub.lm(num_retries=0, timeout=0.05 if fault == "stall" else 5)))
        stats = stub.wait_idle()
    assert stats.requests == stats.answered + stats.aborted + stats.cut == 1


# -- the wire


def test_requests_may_come_in_single_bytes() -> None:
    with StubLM() as stub, connected(stub) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request := post(body()))):
            sock.sendall(request[at : at + 1])
        assert said(read_answer(sock)[1]) == "echo: why?"


@pytest.mark.parametrize("latency", [0.0, 0.002], ids=["at-once", "later"])
def test_pipelined_requests_are_answered_in_order(latency: float) -> None:
    with StubLM(latency=latency) as stub, connected(stub) as sock:
        sock.sendall(b"".join(post(body(str(number))) for number in range(20)) + b"GET /v1/models HTTP/1.1\r\n\r\n")
        data = b""
        while data.count(HTTP_OK) < 21 or not data.endswith(b"}]}"):
            data += _some(sock)
        found = [data.index(f'"echo: {number}"'.encode()) for number in range(20)]
        assert found == sorted(found)
        assert stub.stats().max_in_flight == 1


def test_hundreds_of_pipelined_requests_do_not_exhaust_the_stack() -> None:
    with StubLM(answers={"text": "x"}) as stub, connected(stub) as sock:
        sender = threading.Thread(target=sock.sendall, args=(post(body()) * 600,))
        sender.start()
        data = b""
        while data.count(HTTP_OK) < 600:
            data += _some(sock)
        sender.join()
        assert stub.stats().answered == 600


@pytest.mark.parametrize("head", ["Connection: close\r\n", "connection: Close\r\n"])
def test_a_client_may_ask_for_the_connection_to_be_closed(head: str) -> None:
    with StubLM() as stub, connected(stub) as sock:
        sock.sendall(post(body(), head=head))
        assert b"\r\nConnection: close\r\n" in read_to_end(sock)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b"not json"), 400),
        (post(b"{}"), 400),
        (post(b'{"messages": "text"}'), 400),
        (post(b"{}", path="/v1/responses"), 400),
        (post(b"{}", path="/v1/completions"), 400),
        (post(body(), path="/v1/embeddings"), 404),
        (b"GET /v1/chat/completions HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: minus one\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"x" * 70_000, 431),
        (b"GET /v1/stats?after=soon HTTP/1.1\r\n\r\n", 400),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, int) else "",
)
def test_bad_requests_get_an_error_in_openais_form(request_bytes: bytes, status: int) -> None:
    with StubLM() as stub:
        with connected(stub) as sock:
            sock.sendall(request_bytes)
            head, answer = read_answer(sock)
            assert int(head.split()[1]) == status
            assert answer["error"]["message"]
        with connected(stub) as sock:
            sock.sendall(post(body()))
            assert said(read_answer(sock)[1]) == "echo: why?", "the stub lives on"


def test_a_large_body_may_wait_for_100_continue() -> None:
    with StubLM() as stub, connected(stub) as sock:
        head, _, content = post(body("x"), head="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert _some(sock) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(content)
        assert said(read_answer(sock)[1]) == "echo: x"


def test_parts_of_a_message_are_read_as_one_text() -> None:
    parts = [{"type": "text", "text": "look: "}, {"type": "image_url", "image_url": {"url": "http://x"}}]
    with StubLM() as stub, connected(stub) as sock:
        sock.sendall(post(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()))
        assert said(read_answer(sock)[1]) == "echo: look: <image_url>"


@pytest.mark.parametrize("settings", [{"latency": 60.0}, {"faults": ["hang"]}, {"faults": ["stall"]}], ids=str)
def test_a_client_that_leaves_is_counted_and_nothing_stays_open(settings: dict[str, Any]) -> None:
    with StubLM(**settings) as stub:
        with connected(stub) as sock:
            sock.sendall(post(body()))
            assert stub.wait(lambda stats: stats.in_flight == 1).connections == 1
        stats = stub.wait(lambda stats: stats.connections == 0)
        assert (stats.aborted, stats.in_flight, stats.answered) == (1, 0, 0)


def test_waiting_costs_nothing_and_ends_with_a_reason() -> None:
    with StubLM() as stub:
        with pytest.raises(TimeoutError, match="requests=0"):
            stub.wait(lambda stats: stats.requests == 1, timeout_s=0.05)
        version = stub.stats().version
        assert version == 0, "watching is not a change that watchers wake for"


# -- the plan: latency and faults


@pytest.mark.parametrize(
    ("spec", "low", "median", "high"),
    [
        (0.25, 0.25, 0.25, 0.25),
        ("0.25", 0.25, 0.25, 0.25),
        (("constant", 2), 2, 2, 2),
        (("uniform", 0.0, 1.0), 0, 0.5, 1),
        (("exponential", 1.0), 0, 0.693, 30),
        ("lognormal:0.2,0.5", 0, 0.2, 10),
    ],
)
def test_latencies_follow_their_distribution_and_their_seed(spec: Any, low: float, median: float, high: float) -> None:
    draws = [Plan(spec, seed=7).latency_s() for _ in range(2)]
    assert draws[0] == draws[1]
    plan = Plan(spec, seed=1)
    drawn = [plan.latency_s() for _ in range(2000)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert statistics.median(drawn) == pytest.approx(median, rel=0.15)


def test_a_latency_is_waited_for() -> None:
    with StubLM(latency=0.03) as stub, connected(stub) as sock:
        begun = time.monotonic()
        sock.sendall(post(body()))
        read_answer(sock)
        assert time.monotonic() - begun >= 0.029


@pytest.mark.parametrize(
    "spec", ["soon", -1, float("nan"), float("inf"), ("normal", 1, 2), ("uniform", 1), ("lognormal", 1, "x"), ()]
)
def test_an_impossible_latency_is_refused(spec: Any) -> None:
    with pytest.raises(ValueError, match="latency="):
        read_latency(spec)


def test_random_faults_depend_on_the_seed_and_the_number_alone() -> None:
    request = read_request(0, Target("openai", "chat/completions"), body())
    plans = [Plan(faults={"500": 0.25, "hang": 0.25}, seed=seed) for seed in (1, 1, 2)]
    first, second, other = ([plan.fault(request) for _ in range(1000)] for plan in plans)
    assert first == second != other
    assert first.count(None) == pytest.approx(500, abs=80)
    assert first.count("500") == pytest.approx(250, abs=80)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"explode": 0.1}, "unknown fault"),
        (["ok", "200"], "unknown fault"),
        ({"500": 1.5}, "between 0 and 1"),
        ({"500": 0.6, "429": 0.6}, "add up"),
        ({"500": ""}, "empty text"),
        ("429", "a dict, a list"),
    ],
)
def test_impossible_faults_are_refused(faults: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StubLM(faults=faults)


@pytest.mark.parametrize("name", ["retry_after_s", "piece_interval_s", "slow_interval_s"])
def test_impossible_durations_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1.0}
    with pytest.raises(ValueError, match=name):
        StubLM(**options)


# -- values for schemas


class _Plain:
    def text(self, name: str, hint: str) -> str:
        return "t"

    def texts(self, name: str, hint: str, count: int) -> list[str]:
        return ["t"][:count]

    def integer(self, name: str, hint: str, low: int, high: int) -> int:
        return high

    def number(self, name: str, hint: str, low: float, high: float) -> float:
        return low

    def boolean(self, name: str, hint: str) -> bool:
        return True

    def choose(self, name: str, hint: str, options: Any) -> Any:
        return options[-1]


class Tree(pydantic.BaseModel):
    left: Tree | None
    right: Tree | None
    leaves: list[Tree]


@pytest.mark.parametrize(
    "kind",
    [
        Person,
        Tree,
        tuple[int, str, bool],
        set[str],
        list[list[Person]],
        dict[str, list[float]],
        Literal["a"],
        Color,
        int | None,
        None,
        pydantic.PositiveInt,
        pydantic.NegativeFloat,
        pydantic.UUID4,
        pydantic.AwareDatetime,
        pydantic.AnyUrl,
        pydantic.conint(multiple_of=7, ge=10),
        pydantic.condecimal(gt=3),
        pydantic.constr(min_length=4, max_length=5),
        pydantic.conlist(str, min_length=3),
        pydantic.conlist(int, max_length=1),
    ],
    ids=str,
)
def test_built_values_satisfy_their_schema(kind: Any) -> None:
    adapter = pydantic.TypeAdapter(kind)
    adapter.validate_python(build(adapter.json_schema(), _Plain(), "field"))


def test_a_schema_that_refers_to_itself_without_end_comes_to_one() -> None:
    endless = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}
    assert build(endless, _Plain(), "field") == "t"
    nest = {"type": "object", "properties": {"x": {"$ref": "#/$defs/N"}}, "required": ["x"]}
    assert build({**nest, "$defs": {"N": nest}}, _Plain(), "field") is not None


def test_texts_that_are_no_dspy_prompt_are_plain() -> None:
    assert read_layout("You are helpful.") == PLAIN
    structure = "All interactions will be structured in the following way"
    assert read_layout(f"Your output fields are:\n\n{structure}") == PLAIN
    assert read_inputs(PLAIN, "Respond with care") == {}


# -- the stub's life


def test_stopping_ends_thread_connections_and_requests() -> None:
    stub = StubLM(faults=["hang"]).start()
    with pytest.raises(RuntimeError, match="running already"):
        stub.start()
    with connected(stub) as sock:
        sock.sendall(post(body()))
        stub.wait(lambda stats: stats.in_flight == 1)
        url = stub.url
        stub.stop()
        stub.stop()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert "dspool-stub-lm" not in [thread.name for thread in threading.enumerate()]
    assert (stub.stats().requests, len(stub.requests)) == (1, 1)
    with pytest.raises(ConnectionRefusedError):
        connect(url)
    with pytest.raises(RuntimeError, match="not running"):
        _ = stub.url


def test_a_stub_can_be_started_again_and_a_taken_port_is_an_error() -> None:
    stub = StubLM()
    for _ in range(2):
        with stub:
            assert stub.stats().requests == 0
            with pytest.raises(OSError, match="in use"):
                StubLM(port=int(stub.url.rpartition(":")[2].removesuffix("/v1"))).start()
    gc.collect()  # a socket left open would be a ResourceWarning here


@pytest.mark.parametrize(
    "option", [{"answers": lambda request: ""}, {"answers": {"a": len}}, {"faults": lambda r: None}]
)
def test_functions_are_not_sent_to_a_process(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="process"):
        StubLM(process=True, **option)


@pytest.mark.slow
def test_a_stub_in_a_process_of_its_own_does_the_same() -> None:
    options: dict[str, Any] = {
        "answers": {"answer": "ü"},
        "latency": ("uniform", 0.0, 0.001),
        "faults": {"hang": "slow"},
    }
    with StubLM(process=True, seed=3, **options) as stub:
        assert ask(stub.lm(), "q").answer == "ü"
        with pytest.raises(LMError):
            ask(stub.lm(num_retries=0, timeout=0.05), "slow")
        assert stub.wait_idle().aborted == 1
        assert stub.stats().cpu_s > 0
    assert stub.stats().requests == len(stub.requests) == 2


@pytest.mark.slow
def test_the_process_ends_with_its_owners_end_of_the_lifeline() -> None:
    command = [sys.executable, "-m", "dspool.testing.stub_lm"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [*command, "--lifeline"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().startswith("http://127.0.0.1:")
        child.stdin.close()
        assert child.wait(5) == 0
    with subprocess.Popen([*command, "--port=0"], stdout=subprocess.PIPE, cwd=root, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(5) == 0


@pytest.mark.parametrize("arguments", [["--latency=soon"], ["--faults=["], ['--faults={"explode": 1}']], ids=str)
def test_the_command_line_refuses_nonsense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.slow
def test_a_call_costs_the_server_little() -> None:
    """The budget is 0.15 ms of CPU; the bound here is loose, for a busy machine that is not measuring."""
    calls = 2000
    request = post(msgspec.json.encode({"messages": [{"role": "user", "content": "why?" * 200}]}))
    with StubLM(process=True) as stub, connected(stub) as sock:
        for _ in range(calls):
            sock.sendall(request)
            sock.recv(65536)
        assert stub.stats().cpu_s / calls < 0.0006
