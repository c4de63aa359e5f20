"""Real bridges, driven by hand with struct and json, and a stub LM server for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspool.testing.stub_lm import StubLM
from tests.integration.worker.bridge.client import Client

Start = Callable[..., Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*arguments, env=None, merged=False): a bridge; ended with the test."""
    started: list[Client] = []

    def make(*arguments: str, **settings: Any) -> Client:
        started.append(Client(*arguments, folder=tmp_path, **settings))
        return started[-1]

    yield make
    for client in started:
        client.dispose()


@pytest.fixture
def stub() -> Iterator[StubLM]:
    """A stub LM server that echoes questions."""
    with StubLM() as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A bridge without LM that a module's tests share; importing DSPy takes it a second."""
    client = Client(folder=tmp_path_factory.mktemp("shared"))
    yield client
    client.dispose()


def use(client: Client, stub: StubLM, **settings: Any) -> None:
    """Configure a bridge's LM to be the stub; the model's name tells calls apart in DSPy's cache."""
    arguments = {"provider": "openai", "model": "stub", "api_base": stub.url, "api_key": "stub-key-1234", **settings}
    assert client.result("configure_lm", **arguments)["status"] == "configured"
