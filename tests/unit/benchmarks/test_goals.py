"""Goals, and the rows that they are judged by."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.harness.goals import Goal, best, figure, pick, quotient

pytestmark = pytest.mark.unit

ROWS: list[dict[str, Any]] = [
    {"contestant": "a", "kind": "peer", "p50_us": 3.0, "kills": False},
    {"contestant": "b", "kind": "peer", "p50_us": 5.0, "kills": True},
    {"contestant": "c", "kind": "peer", "p50_us": None, "kills": True},
    {"contestant": "Pool", "kind": "dspool", "p50_us": 2.0, "kills": True},
]


@pytest.mark.parametrize(
    ("measured", "at_least", "verdict"),
    [
        (1.9, False, "met"),
        (2.0, False, "met"),
        (2.1, False, "missed"),
        (1.9, True, "missed"),
        (2.0, True, "met"),
        (2.1, True, "met"),
        (None, False, "not measured"),
        (None, True, "not measured"),
        (math.nan, False, "not measured"),
        (0.0, False, "met"),
    ],
)
def test_a_value_at_the_limit_meets_it_and_none_is_no_verdict(
    measured: float | None, at_least: bool, verdict: str
) -> None:
    assert Goal("x", 2.0, measured, at_least=at_least).verdict == verdict


def test_a_goal_says_what_was_wanted_and_fits_json() -> None:
    row = Goal("speed", 85.0, 90.0, at_least=True, unit="%", against="floor").row()
    assert row["wanted"] == ">= 85 %"
    assert row["verdict"] == "met"
    assert json.loads(json.dumps(row)) == row


def test_the_best_row_is_the_lowest_or_the_highest_of_those_asked_for() -> None:
    assert best(ROWS, "p50_us") == ROWS[3]
    assert best(ROWS, "p50_us", kind="peer") == ROWS[0]
    assert best(ROWS, "p50_us", kind="peer", kills=True) == ROWS[1]
    assert best(ROWS, "p50_us", kind="peer", most=True) == ROWS[1]


def test_there_is_no_best_of_nothing_or_of_what_was_not_measured() -> None:
    assert best(ROWS, "p50_us", kind="floor") is None
    assert best(ROWS, "p50_us", contestant="c") is None
    assert best(ROWS, "p99_us") is None


def test_rows_are_picked_by_all_conditions() -> None:
    assert [row["contestant"] for row in pick(ROWS, kind="peer", kills=True)] == ["b", "c"]


def test_a_quotient_of_what_is_missing_is_none() -> None:
    assert quotient(ROWS[3], ROWS[0], "p50_us") == pytest.approx(2 / 3)
    assert quotient(ROWS[3], None, "p50_us") is None
    assert quotient(None, ROWS[0], "p50_us") is None
    assert quotient(ROWS[3], ROWS[2], "p50_us") is None
    assert quotient(ROWS[3], {"p50_us": 0.0}, "p50_us") is None
    assert figure(None, "p50_us") is None
    assert figure(ROWS[2], "p50_us") is None
    assert figure(ROWS[0], "p50_us") == 3.0
