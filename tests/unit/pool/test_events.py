"""Events: the table names each one that the code tells, with its fields, and gives its log level."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import dspool
from dspool.pool.events import EVENTS, Events

pytestmark = pytest.mark.unit

_TELLERS = {"_publish", "_report", "report", "Report", "publish", "start_method_event"}
_UNSAID = {"worker.lost"}
"""Chosen by an expression at the place where it is told."""


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The lines of the log; the tests' own set-up keeps them quiet."""
    quiet = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    with structlog.testing.capture_logs() as lines:
        yield lines
    structlog.configure(wrapper_class=quiet)


def told() -> dict[str, set[str]]:
    """Event -> the keywords that it is told with somewhere in the source, where they stand there."""
    found: dict[str, set[str]] = {}
    for path in Path(dspool.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            event = node.args[0]
            if name in _TELLERS and isinstance(event, ast.Constant) and "." in str(event.value):
                keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                found.setdefault(str(event.value), set()).update(keywords)
    return found


def test_every_event_of_the_source_is_in_the_table_and_every_one_of_the_table_in_the_source() -> None:
    assert set(told()) | _UNSAID | {"worker.ended"} == set(EVENTS)


def test_an_event_is_told_with_the_fields_of_the_table() -> None:
    for event, keywords in told().items():
        assert keywords <= set(EVENTS[event].fields), f"{event} is told with {keywords}"


@pytest.mark.parametrize(
    ("event", "fields", "level"),
    [
        ("worker.ready", {"worker_id": 1}, "debug"),
        ("worker.lost", {"worker_id": 1}, "warning"),
        ("pool.shedding_began", {"waiting": 7}, "warning"),
        ("pool.shedding_ended", {"shed": 7}, "info"),
        ("pool.health", {"status": "degraded"}, "info"),
        ("pool.health", {"status": "unhealthy"}, "warning"),
        ("pool.broken", {"error": "x"}, "error"),
    ],
)
def test_an_event_is_logged_at_its_level_with_its_fields(
    event: str, fields: dict[str, Any], level: str, logged: list[Any]
) -> None:
    Events("p", None).publish(event, fields)
    assert logged == [{"event": event, "log_level": level, "pool": "p", **fields}]


def test_an_event_that_nobody_listed_is_told_all_the_same(logged: list[Any]) -> None:
    Events("p", None).publish("pool.unheard_of", {})
    assert [line["log_level"] for line in logged] == ["warning"]
