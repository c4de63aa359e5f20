"""OpenAI, Anthropic and Gemini over real HTTP, by DSPy's own client and by LiteLLM: answers, tokens, errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.stub_lm import StubLM
from dspool.testing.stub_request import Provider

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROVIDERS: list[Provider] = ["openai", "anthropic", "gemini"]
KEY = "sk-canary-0123456789"


@pytest.fixture
def stub() -> Iterator[StubLM]:
    """A server that does what the question says: the status that is its first word, or else an echo."""

    def fault(request: Any) -> str | None:
        word = request.inputs.get("question", "").partition(" ")[0]
        return word if word.isdecimal() else None

    with StubLM(faults=fault, retry_after_s=7) as server:
        yield server


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_answers_tokens_and_errors_of_each_provider(make_pool: MakePool, stub: StubLM, engine: str) -> None:
    pool = make_pool(workers=1, timeout_s=60)
    for provider in PROVIDERS:
        lm = stub.settings(provider, api_key=KEY, engine=engine, num_retries=0)
        _answers_tokens_and_errors(functools.partial(pool.run, "question -> answer", lm=lm), stub, provider)
    assert pool.stats().exits == {}


def _answers_tokens_and_errors(ask: Callable[[dict[str, str]], Any], stub: StubLM, provider: Provider) -> None:
    prediction = ask({"question": "why?"})
    assert prediction.answer == "echo: why?"
    (usage,) = prediction.get_lm_usage().values()
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert (stub.calls[-1].provider, stub.calls[-1].key) == (provider, KEY)
    for status, retryable, advice in (
        (429, True, "The provider asks to try again after 7 s."),
        (401, False, "set the provider's key in the workers' environment (env= of the pool"),
        (500, True, "The same call may succeed later."),
        (503, True, "The provider asks to try again after 7 s."),
        (400, False, "see to the key, the model's name or the request"),
    ):
        with pytest.raises(dspool.ProgramError) as caught:
            ask({"question": f"{status} please"})
        error = caught.value
        assert (error.code, error.status, error.retryable) == ("lm_error", status, retryable)
        assert error.retry_after_s == (7 if status in (429, 503) else None)
        assert advice in str(error)
        assert KEY not in f"{error} {error!r} {error.remote_traceback} {error.details}"
    assert ask({"question": "still there?"}).answer == "echo: still there?"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_that_is_busy_is_asked_again(make_pool: MakePool, provider: Provider) -> None:
    with StubLM(faults=["429", "503"], retry_after_s=0.01) as stub:
        pool = make_pool(workers=1, lm=stub.settings(provider, num_retries=2))
        assert pool.run("question -> answer", {"question": "why?"}).answer == "echo: why?"
        assert stub.stats().faults == {"429": 1, "503": 1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_typed_outputs_come_from_each_provider(make_pool: MakePool, provider: Provider) -> None:
    with StubLM(answers={"count": 3, "names": ["a", "b"]}) as stub:
        pool = make_pool(workers=1, lm=stub.settings(provider), adapter="json")
        found = pool.run("question -> count: int, names: list[str]", {"question": "?"})
        assert (found.count, found.names) == (3, ["a", "b"])


# What goes wrong before a provider says anything.


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_call_without_a_key_says_which_variable_and_where(
    make_pool: MakePool, stub: StubLM, provider: Provider
) -> None:
    gone = {f"{provider.upper()}_API_KEY": None, "GOOGLE_API_KEY": None}
    settings = {name: value for name, value in stub.settings(provider).items() if name != "api_key"}
    pool = make_pool(workers=1, lm=settings, env=gone)
    with pytest.raises(dspool.ProgramError) as caught:
        pool.run("question -> answer", {"question": "why?"})
    assert f"{provider.upper()}_API_KEY" in str(caught.value)
    assert "set the provider's key in the workers' environment (env= of the pool" in str(caught.value)
    assert (caught.value.code, caught.value.details["lm_code"]) == ("lm_error", "not_configured")
    assert stub.calls == []


@pytest.mark.parametrize("lm", ["nobody/model", {"model": "nobody/model", "api_key": KEY}, {"model": "no-such-model"}])
def test_a_provider_that_nobody_knows_is_told_with_what_to_write(make_pool: MakePool, lm: Any) -> None:
    pool = make_pool(workers=1, lm=lm, timeout_s=60)
    with pytest.raises(dspool.ProgramError) as caught:
        pool.run("question -> answer", {"question": "why?"})
    text = str(caught.value)
    assert "LLM Provider NOT provided" in text
    assert 'An LM is written "provider/model", as in "openai/gpt-4o-mini"' in text
    assert KEY not in text + caught.value.remote_traceback
    assert (caught.value.code, caught.value.retryable) == ("lm_error", False)


def test_arguments_that_dspy_refuses_are_told_at_each_level(make_pool: MakePool) -> None:
    bad = {"model": "openai/gpt-5", "temperature": 0.5, "api_key": KEY}
    with pytest.raises(dspool.WorkerStartError, match=r"reasoning models require .*temperature=1\.0") as started:
        make_pool(workers=1, lm=bad, name="bad")
    pool = make_pool(workers=1)
    with pytest.raises(dspool.ProgramError, match=r"reasoning models require .*temperature=1\.0") as called:
        pool.run("question -> answer", {"question": "?"}, lm=bad)
    assert KEY not in f"{started.value} {called.value} {called.value.remote_traceback}"
    assert pool.run("builtins:dict", {"still": "there"}) == {"still": "there"}


def test_a_predictors_lm_of_a_wrong_type_is_told(make_pool: MakePool, stub: StubLM) -> None:
    import dspy

    program = dspy.Predict("question -> answer")
    program.lm = "openai/gpt-4o-mini"
    pool = make_pool(workers=1, lm=stub.settings())
    with pytest.raises(dspool.ProgramError, match=r"LM must be an instance of `dspy\.BaseLM`"):
        pool.run(program, {"question": "?"})
    program.lm = dspy.LM("openai/m", response_format=object())
    with pytest.raises((dspool.EncodeError, dspool.ProgramError)):
        pool.run(program, {"question": "?"})


@pytest.mark.parametrize(
    ("lm", "reason"),
    [
        (5, "it is a int"),
        (["openai/m"], "it is a list"),
        ("gpt-4o-mini", 'write "openai/gpt-4o-mini"'),
        ("openai/", "has a provider but no model after it"),
        (f"https://user:{KEY}@example.org/v1", "lm is an address, not a model"),
        (
            {"model": "openai/m", "api_key": lambda: KEY},
            r"lm\['api_key'\] is, or holds, something other",
        ),
        ({"api_key": KEY}, 'lm has no "model"'),
    ],
)
def test_a_wrong_lm_is_refused_at_the_pool_and_at_the_call(make_pool: MakePool, lm: Any, reason: str) -> None:
    with pytest.raises(dspool.OptionsError, match=reason) as at_the_pool:
        make_pool(workers=1, lm=lm, name="bad")
    pool = make_pool(workers=1, lazy=True)
    with pytest.raises(dspool.OptionsError, match=reason) as at_the_call:
        pool.run("question -> answer", {"question": "?"}, lm=lm)
    with pytest.raises(dspool.OptionsError, match=reason):
        list(pool.map("question -> answer", [{"question": "?"}], lm=lm))
    assert KEY not in f"{at_the_pool.value} {at_the_call.value}"
