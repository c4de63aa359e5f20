"""The recipe of a web service: the example under uvicorn, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

import dspool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWER_S = 20.0
"""How long anything here may take."""

_SERVE = """
import json, sys, uvicorn
from app import create_app
uvicorn.run(create_app(**json.loads(sys.argv[1])), port=0, timeout_graceful_shutdown=10)
"""


class Service:
    """The web service of the examples, under uvicorn in a process of its own."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SERVE, json.dumps(self._options)],
            cwd=EXAMPLES / "web_service",
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            if found := re.search(r"running on (http://\S+)", line):
                self.client = httpx.Client(base_url=found[1], timeout=ANSWER_S, trust_env=False)
                return self
        self._process.wait(ANSWER_S)
        raise AssertionError(said)

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self._process.kill()
        self._process.communicate()

    def ask(self, question: str) -> httpx.Response:
        return self.client.post("/answer", json={"question": question})

    def terminate(self) -> list[psutil.Process]:
        """Ask it to end. Returns what it has started."""
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        return started

    def ended(self) -> str:
        """Its log, once it has ended."""
        return self._process.communicate(timeout=ANSWER_S)[1]


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Server-sent events as they come."""
    kind = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[StubLM, Service]]:
    """The service over a stub of an LM, for all its tests: it takes seconds to start."""
    faults = {"hang": "forever", "429": "busy", "400": "broken"}
    with (
        StubLM(piece_interval_s=0.01, faults=faults, retry_after_s=7) as stub,
        Service(lm=stub.settings(num_retries=0), workers=1) as service,
    ):
        yield stub, service


def test_the_web_service_answers_and_streams(web: tuple[StubLM, Service]) -> None:
    service = web[1]
    assert service.ask("why?").json() == {"reasoning": "echo: why?", "answer": "echo: why?"}
    with service.client.stream("POST", "/stream", json={"question": "why is the sky blue?"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *pieces, last = events(response)
    assert last == ("answer", "echo: why is the sky blue?")
    assert len(pieces) > 3
    assert {kind for kind, _ in pieces} == {"piece"}
    assert "".join(text for _, text in pieces) == "echo: why is the sky blue?"


def test_what_a_client_of_the_web_service_leaves_is_closed_in_the_worker(web: tuple[StubLM, Service]) -> None:
    stub, service = web
    before = stub.stats().aborted
    with service.client.stream("POST", "/stream", json={"question": "what is enough? " * 50}) as response:
        assert next(events(response))[0] == "piece"
    stub.wait(lambda stats: stats.aborted == before + 1)
    for number, path in enumerate(["/answer", "/stream"], before + 2):  # before there is any answer
        leaving = http.client.HTTPConnection(service.client.base_url.host, service.client.base_url.port)
        body = json.dumps({"question": "forever"})
        leaving.request("POST", path, body, {"Content-Type": "application/json"})
        stub.wait(lambda stats: stats.in_flight == 1)
        leaving.close()
        stub.wait(lambda stats, number=number: stats.aborted == number)  # type: ignore[misc]
    assert service.ask("and you?").status_code == 200
    health = service.client.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (200, "healthy")  # no worker was lost for it


def test_the_web_services_errors_have_statuses(web: tuple[StubLM, Service]) -> None:
    service = web[1]
    busy = service.ask("busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "7")
    assert busy.json() == {"error": "ProgramError", "retryable": True}
    refused = service.client.post("/stream", json={"question": "broken"})
    assert refused.status_code == 502  # not 200, and an error then
    assert service.client.post("/answer", json={}).status_code == 422


def test_the_web_service_ends_with_the_last_stream_and_leaves_nothing(web: tuple[StubLM, Service]) -> None:
    service = web[1]
    with service.client.stream("POST", "/stream", json={"question": "what is enough? " * 50}) as response:
        pieces = events(response)
        assert next(pieces)[0] == "piece"
        started = service.terminate()
        assert list(pieces)[-1][0] == "answer"
    assert "Application shutdown complete" in service.ended()
    assert started
    assert psutil.wait_procs(started, timeout=ANSWER_S)[1] == []


def test_each_error_of_the_pool_has_a_status() -> None:
    status_of = runpy.run_path(str(EXAMPLES / "web_service" / "app.py"))["status_of"]
    statuses: list[tuple[dspool.DspoolError, tuple[int, float | None]]] = [
        (dspool.PoolSaturated("full"), (503, 1)),
        (dspool.QueueTimeout("late"), (503, 1)),
        (dspool.PoolClosed("closed"), (503, None)),
        (dspool.ProgramQuarantined("crashes", 30), (503, 30)),
        (dspool.CallTimeout("late"), (504, None)),
        (dspool.WorkerLost("crashed"), (502, None)),
        (dspool.EncodeError("what is this"), (422, None)),
        (dspool.ProgramError("bug"), (500, None)),
        (dspool.ProgramError("no key", code="lm_error"), (502, None)),
        (dspool.ProgramError("busy", code="lm_error", retryable=True, retry_after_s=7), (503, 7)),
    ]
    for error, status in statuses:
        assert status_of(error) == status, error
