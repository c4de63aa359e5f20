"""Rows as text."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.harness.tables import table

pytestmark = pytest.mark.unit


def test_words_stand_left_numbers_right_and_what_is_missing_is_a_dash() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "us": 1.25, "n": 10},
        {"name": "long", "us": 1234.5, "n": None},
        {"name": "b"},
    ]
    assert table(rows, {"name": "", "us": "p50 us", "n": "n"}).splitlines() == [
        "      p50 us   n",
        "a       1.25  10",
        "long   1,234   -",
        "b          -   -",
    ]


def test_truth_is_said_in_words() -> None:
    assert table([{"kills": True}, {"kills": False}], {"kills": "kills"}).split() == ["kills", "yes", "no"]
