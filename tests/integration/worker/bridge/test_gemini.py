"""The bridge's Gemini commands over HTTP, to a stub of Gemini's endpoint on loopback; and the other providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.worker.bridge.client import QA

if TYPE_CHECKING:
    from dspool.testing.stub_lm import StubLM
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_gemini_programs_run_on_their_own_model_or_the_configured_one(start: Start, stub: StubLM) -> None:
    client = start()
    base = stub.url_for("gemini")
    access = {"api_base": base, "api_key": "configured-key"}
    client.result("configure_lm", provider="google", model="gemini-configured", **access)
    created = {"program_id": "g", "status": "created"}
    assert client.result("create_gemini_program", id="g", signature=QA) == created
    own = {"model": "gemini-own", "api_base": base, "api_key": "the-programs-key"}
    client.result("create_gemini_program", id="own", signature=QA, **own)
    client.result("create_program", id="plain", signature=QA)

    def run(command: str, program_id: str) -> tuple[str, str]:
        """Whom the stub heard: model and key."""
        inputs = {"question": f"{command} of {program_id}, the {len(stub.calls)}th"}
        assert client.result(command, program_id=program_id, inputs=inputs) == {"answer": f"echo: {inputs['question']}"}
        heard = stub.calls[-1]
        assert (heard.provider, heard.endpoint) == ("gemini", "generateContent")
        return heard.model, heard.key

    assert run("execute_gemini_program", "g") == ("gemini-configured", "configured-key")
    assert run("execute_gemini_program", "own") == ("gemini-own", "the-programs-key")
    assert run("execute_program", "own") == ("gemini-own", "the-programs-key")
    assert run("execute_program", "plain") == ("gemini-configured", "configured-key")
    client.result("configure_lm", provider="gemini", model="gemini-later", **access)
    assert run("execute_gemini_program", "g") == ("gemini-later", "configured-key")
    assert client.result("get_program_info", program_id="own")["model"] == "gemini/gemini-own"


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_every_provider_by_its_own_protocol(start: Start, stub: StubLM, provider: str) -> None:
    client = start()
    base = stub.url_for(provider)  # type: ignore[arg-type]
    client.result("configure_lm", provider=provider, model="stub", api_base=base, api_key="some-key")
    client.result("create_program", id="qa", signature="question -> answer")
    answer = client.ask("execute_program", program_id="qa", inputs={"question": "Who?"})
    assert answer["result"] == {"answer": "echo: Who?"}
    assert answer["usage"]
    (heard,) = stub.calls
    assert (heard.provider, heard.model, heard.key) == (provider, "stub", "some-key")
