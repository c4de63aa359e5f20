"""The bridge under many requests: bodies with accidents in them, and programs that come and go."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.worker.bridge.client import QA
from tests.mutations import mutated

if TYPE_CHECKING:
    from tests.integration.worker.bridge.client import Client
    from tests.integration.worker.bridge.conftest import Start

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS: list[dict[str, Any]] = [
    {"command": "ping", "args": {"initialization": True}},
    {"command": "get_session_data", "args": {"session_id": "s"}},
    {"command": "update_session_data", "args": {"session_id": "s", "data": {"a": [1, 2.5, None, "x"]}}},
    {"command": "create_program", "args": {"id": "p", "signature": QA, "replace": True}},
    {"command": "execute_program", "args": {"program_id": "p", "inputs": {"question": "x"}}},
    {"command": "list_programs", "args": {}, "session_id": "s", "deadline_ms": 1000},
    {"command": "get_program_info", "args": {"program_id": "p"}, "timestamp": "2026-01-31T12:00:00Z"},
    {"command": "configure_lm", "args": {"model": "openai/m", "temperature": 0.5}},
]
PIECES = 10
"""Sent before any is read: few enough that both directions fit into their pipes."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_body_has_one_answer_whatever_is_wrong_with_it(shared: Client, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        for _ in range(PIECES):
            request = {"id": rng.randrange(10**6), **rng.choice(REQUESTS)}
            shared.send_body(mutated(json.dumps(request).encode(), rng))
        for _ in range(PIECES):
            answer = shared.receive()
            if not answer["success"]:
                assert answer["error_info"]["code"] != "internal_error", answer
    assert shared.ask("ping")["success"]


def test_a_thousand_programs_made_replaced_and_deleted_leave_nothing(start: Start) -> None:
    client = start("--max-programs", "20")

    def turn(count: int) -> None:
        for number in range(count):
            client.send("create_program", id=f"p{number % 20}", signature=QA, replace=True)
            client.send("delete_program", program_id=f"p{(number + 7) % 20}")
            client.receive()
            client.receive()

    turn(300)
    client.result("cleanup")
    before = client.result("get_stats")["memory_usage"]["rss"]
    turn(1000)
    client.result("cleanup")
    stats = client.result("get_stats")
    assert stats["programs_count"] == 0
    assert stats["memory_usage"]["rss"] - before < 20 * 2**20
