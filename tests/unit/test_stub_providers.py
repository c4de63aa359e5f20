"""The stub server as OpenAI's, Anthropic's and Gemini's: what DSPy's own client makes of it."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMError

from dspool.testing.stub_lm import StubCall, StubLM
from dspool.testing.stub_request import Provider
from dspool.testing.stub_wire import Target, read_request, read_target

PROVIDERS: list[Provider] = ["openai", "anthropic", "gemini"]
ENDPOINTS = {"openai": "chat/completions", "anthropic": "messages", "gemini": "generateContent"}
CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)


@pytest.fixture(scope="module", autouse=True)
def _dspy_is_warm() -> None:
    """Pay for DSPy's first call outside the tests."""
    with StubLM() as stub:
        ask(stub.lm(), "warm?")


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each of them."""
    found: Provider = request.param
    return found


def ask(lm: Any, question: str) -> Any:
    with dspy.context(lm=lm, adapter=CHAT, track_usage=True):
        return dspy.Predict("question -> answer")(question=question)


def test_dspys_own_client_gets_an_answer_and_its_tokens(provider: Provider) -> None:
    with StubLM() as stub:
        prediction = ask(stub.lm(provider, model=f"{provider}/small", api_key="a-key", max_tokens=50), "why?")
        assert prediction.answer == "echo: why?"
        (usage,) = prediction.get_lm_usage().values()
        assert usage["prompt_tokens"] > usage["completion_tokens"] > 0
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert stub.calls == [StubCall(provider, ENDPOINTS[provider], "small", "a-key")]
        assert stub.stats().rejected == 0
    assert [call.key for call in stub.calls] == ["a-key"]


def test_a_stream_comes_in_pieces(provider: Provider) -> None:
    async def pieces(lm: Any) -> tuple[list[str], Any]:
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
        said, last = [], None
        with dspy.context(lm=lm, adapter=CHAT):
            async for item in program(question="one two three four five six seven eight nine ten eleven twelve"):
                if isinstance(item, dspy.Prediction):
                    last = item
                else:
                    said.append(item.chunk)
        return said, last

    with StubLM() as stub:
        said, prediction = asyncio.run(pieces(stub.lm(provider)))
        stub.wait_idle()
    assert len(said) > 2
    assert prediction.answer == "echo: one two three four five six seven eight nine ten eleven twelve"
    assert "".join(said).strip() == prediction.answer


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, dspy.LMInvalidRequestError),
        (401, dspy.LMAuthError),
        (403, dspy.LMAuthError),
        (429, dspy.LMRateLimitError),
        (500, dspy.LMServerError),
        (503, dspy.LMServerError),
    ],
)
def test_failures_arrive_as_what_they_are(provider: Provider, status: int, kind: type[LMError]) -> None:
    with StubLM(faults=[str(status)], retry_after_s=7) as stub:
        with pytest.raises(kind) as caught:
            ask(stub.lm(provider, num_retries=0), "why?")
        error: Any = caught.value
        assert error.status == status
        if provider == "gemini":
            assert ("Please retry in 7s." in str(error)) == (status in (429, 503))
            assert error.retry_after is None
        else:
            assert error.retry_after == (7 if status in (429, 503) else None)


@pytest.mark.parametrize("fault", ["garbage", "reset"])
def test_a_broken_answer_is_an_error_of_the_lm(provider: Provider, fault: str) -> None:
    with StubLM(faults=[fault]) as stub, pytest.raises(LMError):
        ask(stub.lm(provider, num_retries=0), "why?")


def test_a_plan_may_tell_providers_and_keys_apart() -> None:
    def only_mine(request: Any) -> str | None:
        return None if request.key == "mine" and request.provider == "gemini" else "401"

    with StubLM(faults=only_mine) as stub:
        assert ask(stub.lm("gemini", api_key="mine"), "why?").answer == "echo: why?"
        for name, key in (("gemini", "theirs"), ("anthropic", "mine")):
            with pytest.raises(dspy.LMAuthError):
                ask(stub.lm(name, api_key=key), "why?")  # type: ignore[arg-type]


def test_a_stub_in_a_process_of_its_own_tells_its_calls_too() -> None:
    with StubLM(process=True) as stub:
        assert ask(stub.lm("gemini", api_key="k"), "why?").answer == "echo: why?"
        assert stub.calls == [StubCall("gemini", "generateContent", "stub", "k")]


# The wire, without a client.


@pytest.fixture
def stub() -> Iterator[StubLM]:
    """An echo."""
    with StubLM() as server:
        yield server


def post(stub: StubLM, path: str, body: Any, *headers: str, method: str = "POST") -> tuple[int, Any]:
    """Send one request; its answer's status and body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: stub", "Connection: close", *headers])
    address = urllib.parse.urlsplit(stub.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as sock:
        sock.sendall(f"{head}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head_sent, _, answer = data.partition(b"\r\n\r\n")
    return int(head_sent.split()[1]), json.loads(answer)


ASK_GEMINI = {"contents": [{"role": "user", "parts": [{"text": "why?"}]}]}
ASK_ANTHROPIC = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "why?"}]}


def test_gemini_answers_in_its_own_form(stub: StubLM) -> None:
    body = {**ASK_GEMINI, "system_instruction": {"parts": [{"text": "Be brief."}]}}
    status, answer = post(stub, "/v1beta/models/tuned%2Fm:generateContent?key=from-the-query", body)
    assert status == 200
    (candidate,) = answer["candidates"]
    assert candidate["content"] == {"role": "model", "parts": [{"text": "echo: why?"}]}
    assert candidate["finishReason"] == "STOP"
    counts = answer["usageMetadata"]
    assert counts["totalTokenCount"] == counts["promptTokenCount"] + counts["candidatesTokenCount"]
    assert stub.calls == [StubCall("gemini", "generateContent", "tuned/m", "from-the-query")]


def test_a_system_message_may_come_before_geminis_first_message(stub: StubLM) -> None:
    with dspy.context(lm=stub.lm("gemini"), adapter=CHAT):
        dspy.Predict("question -> answer")(question="why?")
    sent = stub.requests[-1]
    (turn,) = sent["contents"]
    merged = {"contents": [{"role": "user", "parts": [*sent["systemInstruction"]["parts"], *turn["parts"]]}]}
    _, answer = post(stub, "/v1beta/models/m:generateContent", merged)
    assert "[[ ## answer ## ]]\necho: why?" in answer["candidates"][0]["content"]["parts"][0]["text"]


def test_anthropic_answers_in_its_own_form(stub: StubLM) -> None:
    body = {**ASK_ANTHROPIC, "system": [{"type": "text", "text": "Be brief."}]}
    status, answer = post(stub, "/v1/messages", body, "x-api-key: k", "anthropic-version: 2023-06-01")
    assert status == 200
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "end_turn")
    assert answer["content"] == [{"type": "text", "text": "echo: why?"}]
    assert answer["usage"].keys() == {"input_tokens", "output_tokens"}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1beta/models/m:generateContent", {"contents": []}, "contents is not specified"),
        ("/v1beta/models/m:generateContent", {}, "contents"),
        ("/v1beta/models/m:generateContent", b"{", "truncated"),
        ("/v1/messages", {"model": "m", "max_tokens": 1, "messages": []}, "at least one message is required"),
        ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": "?"}]}, "max_tokens"),
    ],
)
def test_a_request_that_the_provider_would_refuse_is_refused(stub: StubLM, path: str, body: Any, reason: str) -> None:
    status, answer = post(stub, path, body)
    assert status == 400
    assert reason in answer["error"]["message"]
    assert stub.stats().rejected == 1
    assert stub.calls == []


def test_errors_are_written_as_the_provider_writes_them() -> None:
    with StubLM(faults={"429": 1.0}, retry_after_s=2.5) as stub:
        status, answer = post(stub, "/v1/messages", ASK_ANTHROPIC)
        assert (status, answer["type"], answer["error"]["type"]) == (429, "error", "rate_limit_error")
        status, answer = post(stub, "/v1beta/models/m:generateContent", ASK_GEMINI)
        error = answer["error"]
        assert (status, error["code"], error["status"]) == (429, 429, "RESOURCE_EXHAUSTED")
        assert error["details"][0]["retryDelay"] == "2.5s"
    with StubLM() as stub:
        for path in ("/v1/messages", "/v1beta/models/m:generateContent"):
            status, answer = post(stub, path, b"", method="GET")
            assert status == 405
            assert path in answer["error"]["message"]


def test_a_requests_head_says_whom_it_is_for() -> None:
    assert read_target("/v1/chat/completions", "", {"authorization": "Bearer k"}) == Target(
        "openai", "chat/completions", "k"
    )
    assert read_target("/v1/messages", "", {"authorization": "Bearer t"}) == Target("anthropic", "messages", "t")
    streamed = read_target("/v1beta/models/m:streamGenerateContent", "alt=sse", {"x-goog-api-key": "g"})
    assert streamed == Target("gemini", "generateContent", "g", "m", True)
    for path in ("/v1/models", "/v1beta/models/m", "/v1beta/models/m:countTokens", "/", "/stats"):
        assert read_target(path, "", {}) is None
    request = read_request(3, streamed, json.dumps(ASK_GEMINI).encode())
    assert (request.model, request.stream, request.user, request.key) == ("m", True, "why?", "g")
