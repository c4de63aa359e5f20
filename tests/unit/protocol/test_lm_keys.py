"""Which LMs are known to lack a key, and the tables behind that against DSPy's own."""

from __future__ import annotations

from typing import Any

import pytest

from dspool.pool.lm_specs import lm_spec
from dspool.protocol.lm_keys import LITELLM, LITELLM_ALSO, NATIVE, missing_key, provider_of
from dspool.protocol.messages import LMSpec

pytestmark = pytest.mark.unit

KEY = "sk-0123456789abcdef"
EVERY = {**LITELLM, **NATIVE}


@pytest.mark.parametrize("provider", EVERY)
def test_a_provider_without_its_variable_lacks_a_key(provider: str) -> None:
    text = missing_key(lm_spec(f"{provider}/some-model"), {"PATH": "/bin", "OTHER_API_KEY": KEY})
    assert text is not None
    assert f"'{provider}/some-model' has no key: {' or '.join(EVERY[provider])} is not set" in text
    assert "env= of the pool" in text
    assert "give the LM an api_key" in text


@pytest.mark.parametrize(
    ("provider", "variable"), [(provider, variable) for provider in EVERY for variable in EVERY[provider]]
)
def test_each_of_a_providers_variables_is_enough(provider: str, variable: str) -> None:
    spec = lm_spec(f"{provider}/some-model")
    assert missing_key(spec, {variable: KEY}) is None
    assert missing_key(spec, {variable: ""}) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY},
        {"extra_headers": {"Authorization": f"Bearer {KEY}"}},
        {"headers": {"x-api-key": KEY}},
        {"custom_llm_provider": "hosted_vllm"},
        {"engine": "own"},
    ],
)
def test_where_a_key_is_given_or_may_not_be_needed_nothing_is_said(settings: dict[str, Any]) -> None:
    assert missing_key(lm_spec({"model": "openai/m", **settings}), {}) is None


@pytest.mark.parametrize("name", ["api_base", "base_url"])
def test_a_server_of_ones_own_may_need_no_key_but_openais_clients_want_one(name: str) -> None:
    settings = {name: "http://127.0.0.1:1/v1"}
    assert missing_key(lm_spec({"model": "mistral/m", **settings}), {}) is None
    assert missing_key(lm_spec({"model": "openai/m", **settings}), {}) is not None
    assert missing_key(lm_spec({"model": "openai/m", "api_key": "none", **settings}), {}) is None


@pytest.mark.parametrize("name", ["api_key", "api_base"])
def test_an_empty_argument_is_none(name: str) -> None:
    assert missing_key(lm_spec({"model": "openai/m", name: ""}), {}) is not None


@pytest.mark.parametrize(
    "model",
    [
        "ollama/llama3",
        "ollama_chat/llama3",
        "hosted_vllm/m",
        "lm_studio/m",
        "bedrock/m",
        "vertex_ai/m",
        "azure/deployment",
        "databricks/m",
        "my-own/m",
        "some-model",
    ],
)
def test_a_provider_that_needs_none_or_is_not_known_lacks_none(model: str) -> None:
    assert missing_key(LMSpec("d", model), {}) is None


def test_a_gateway_in_the_environment_may_need_no_key() -> None:
    for variable in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        assert missing_key(lm_spec("openai/m"), {variable: "http://127.0.0.1:1/v1"}) is None
        assert missing_key(lm_spec("gemini/m"), {variable: "http://127.0.0.1:1/v1"}) is not None


def test_an_lm_object_of_ones_own_is_not_looked_into() -> None:
    assert missing_key(LMSpec("d", "openai/m", pickled=b"..."), {}) is None


@pytest.mark.parametrize(
    ("model", "variable"),
    [("gpt-4o", "OPENAI"), ("o4-mini", "OPENAI"), ("claude-x", "ANTHROPIC"), ("gemini-x", "GEMINI"), ("grok-4", "XAI")],
)
def test_a_model_without_provider_is_its_providers(model: str, variable: str) -> None:
    text = missing_key(lm_spec({"model": model}), {})
    assert text is not None
    assert f"{variable}_API_KEY" in text


@pytest.mark.parametrize("provider", LITELLM_ALSO)
def test_what_litellm_alone_reads_counts_where_it_is_used(provider: str) -> None:
    (variable,) = LITELLM_ALSO[provider]
    assert missing_key(lm_spec(f"{provider}/m"), {variable: KEY}) is not None
    assert missing_key(lm_spec({"model": f"{provider}/m", "engine": "litellm"}), {variable: KEY}) is None


def test_a_long_model_is_cut_and_no_value_is_shown() -> None:
    text = missing_key(LMSpec("d", "openai/" + "m" * 500, {"temperature": 0.5}), {"OTHER": KEY})
    assert text is not None
    assert len(text) < 400
    assert KEY not in text


# The tables against DSPy's own; what the clients really send is in tests/integration/test_lm_clients.py.


@pytest.mark.slow
def test_the_table_of_dspys_own_client_is_dspys() -> None:
    registry = pytest.importorskip("dspy._vendor.lm15.registry")
    router = pytest.importorskip("dspy._vendor.lm15.router")
    keyless = ("azure", "ollama", "ollama_chat", "hosted_vllm")
    theirs = {
        prefix: registry.PROVIDERS[provider].env_keys
        for prefix, provider in router.LITELLM_PROVIDER_PREFIXES.items()
        if prefix not in keyless
    }
    assert theirs == NATIVE
    for prefix in keyless:
        definition = registry.PROVIDERS[router.LITELLM_PROVIDER_PREFIXES[prefix]]
        assert definition.placeholder_key or definition.credential_policy != "key"


@pytest.mark.slow
def test_the_models_that_need_no_provider_are_dspys() -> None:
    router = pytest.importorskip("dspy._vendor.lm15.router")
    theirs = {rule.prefix.rstrip("-"): rule.provider for rule in router.DEFAULT_RULES if rule.provider in NATIVE}
    assert theirs
    assert {word: provider_of(f"{word}-1") for word in theirs} == {word: provider_of(word) for word in theirs} == theirs
    assert provider_of("o1secret") == provider_of("some-model") == ""
