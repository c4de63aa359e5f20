"""Every scenario once, short. `make chaos` does more of each, `make soak` all of it."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import catalogue, report
from tests.chaos.finding import Plan

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scenarios look into /proc"),
]


@pytest.mark.parametrize("name", catalogue.names())
def test_nothing_is_lost_and_nothing_left(name: str, no_leaks: None) -> None:
    finding = catalogue.scenario(name)(Plan(seed=1))
    assert not finding.failed, "\n" + report.table([finding])
