"""A contestant looks the same in every panel of a figure."""

from __future__ import annotations

import pytest

from benchmarks.harness.plots import Panel, numbered

pytestmark = pytest.mark.unit


def test_a_line_that_is_missing_from_a_panel_shifts_no_other() -> None:
    line = ([1.0], [2.0])
    first = Panel("a", "x", lines={"one": (*line, "peer"), "two": (*line, "peer"), "Pool": (*line, "dspool")})
    second = Panel("b", "x", lines={"two": (*line, "peer"), "three": (*line, "peer"), "Pool": (*line, "dspool")})
    assert numbered([first, second]) == {"one": 0, "two": 1, "Pool": 0, "three": 2}
