"""What a call's deadline leaves for a request to an LM, and how long a retry waits."""

from __future__ import annotations

import types
from typing import Any

import pytest

from dspool.worker.deadlines import pause_asked, request_timeout, retry_pause

pytestmark = pytest.mark.unit


def test_a_request_gets_at_most_what_is_left_and_at_least_four_fifths_of_it() -> None:
    lefts = [0.011 * 1.013**step for step in range(1000)]
    for left in lefts:
        assert 0.8 * left <= request_timeout(left) <= left
    within_ten_minutes = {request_timeout(left) for left in lefts if left <= 600}
    assert len(within_ten_minutes) < 70


def test_calls_with_equal_deadlines_get_equal_timeouts() -> None:
    assert {request_timeout(120 - late) for late in (0.0001, 0.01, 1, 7)} == {112}


@pytest.mark.parametrize(
    ("attempt", "retry_after", "expected"),
    [(0, None, 1), (2, None, 4), (50, None, 60), (0, 7.5, 7.5), (1, 0, 0), (1, float("nan"), 2), (1, "soon", 2)],
)
def test_a_retry_waits_as_long_as_the_provider_asks_or_ever_longer(
    attempt: int, retry_after: Any, expected: float
) -> None:
    assert retry_pause(attempt, retry_after) == expected


@pytest.mark.parametrize(
    ("retry_after", "message", "expected"),
    [
        (3.0, "Please retry in 9s.", 3.0),
        (None, "You exceeded your quota. Please retry in 34.07s.", 34.07),
        (None, "please Retry in 5 seconds", 5.0),
        (float("nan"), "retry in 2s", 2.0),
        (None, "retry in a while", None),
        (None, "retry in 12345678901234567890s", None),
        (None, None, None),
    ],
)
def test_how_long_to_wait_may_be_in_the_errors_text(retry_after: Any, message: Any, expected: float | None) -> None:
    error: Any = Exception(message)
    error.message, error.retry_after = message, retry_after
    assert pause_asked(error) == expected
    assert pause_asked(Exception("retry in 9s")) is None  # not an LM's error


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
        (5, None),
    ],
)
@pytest.mark.parametrize("at", ["litellm_response_headers", "response"])
def test_how_long_to_wait_may_be_in_the_response_behind_an_error(headers: Any, expected: float | None, at: str) -> None:
    behind: Any = Exception("of an SDK")
    setattr(behind, at, types.SimpleNamespace(headers=headers) if at == "response" else headers)
    middle = Exception("DSPy's")
    middle.__cause__ = behind
    error = Exception("the LM's")
    error.__context__ = middle
    assert pause_asked(error) == expected
    behind.__cause__ = error  # in a circle
    assert pause_asked(error) == expected
