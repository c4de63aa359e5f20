"""The bridge's Gemini commands over HTTP, to a server on loopback that answers as Gemini's does."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.integration.worker.bridge.client import QA

if TYPE_CHECKING:
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Gemini(http.server.BaseHTTPRequestHandler):
    """Answers each generateContent, and says in the answer which model and which key it was for."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        model = self.path.partition("?")[0].rpartition("/")[2]
        self.asked.append(f"{model} {self.headers['x-goog-api-key']}")
        text = f"[[ ## answer ## ]]\n{model}\n\n[[ ## completed ## ]]"
        body: dict[str, Any] = {
            "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12},
        }
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def base() -> Iterator[str]:
    """The server's api_base."""
    Gemini.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gemini) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1beta"
        server.shutdown()
        thread.join()


def test_gemini_programs_run_on_their_own_model_or_the_configured_one(start: Start, base: str) -> None:
    client = start()
    access = {"api_base": base, "api_key": "configured-key"}
    client.result("configure_lm", provider="google", model="gemini-configured", **access)
    created = {"program_id": "g", "status": "created"}
    assert client.result("create_gemini_program", id="g", signature=QA) == created
    own = {"model": "gemini-own", "api_base": base, "api_key": "the-programs-key"}
    client.result("create_gemini_program", id="own", signature=QA, **own)
    client.result("create_program", id="plain", signature=QA)

    def answer(command: str, program_id: str) -> str:
        found: str = client.result(command, program_id=program_id, inputs={"question": command})["answer"]
        return found

    assert answer("execute_gemini_program", "g") == "gemini-configured:generateContent"
    assert answer("execute_gemini_program", "own") == "gemini-own:generateContent"
    assert answer("execute_program", "own") == "gemini-own:generateContent"
    assert answer("execute_program", "plain") == "gemini-configured:generateContent"
    client.result("configure_lm", provider="gemini", model="gemini-later", **access)
    assert answer("execute_gemini_program", "g") == "gemini-later:generateContent"
    assert Gemini.asked[:2] == [
        "gemini-configured:generateContent configured-key",
        "gemini-own:generateContent the-programs-key",
    ]
    assert client.result("get_program_info", program_id="own")["model"] == "gemini/gemini-own"
