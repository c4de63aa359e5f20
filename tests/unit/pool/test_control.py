"""What opening a pool refuses, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import dspool
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import Census

pytestmark = pytest.mark.unit

WRONG = [{"lm": {"model": ""}}, {"lm": 5}, {"adapter": "yaml"}, {"warm": "no such program"}, {"warm": 5}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_option_that_is_refused_at_open_leaves_no_descriptor(
    no_leaks: None, pool_name: Callable[[], str], wrong: dict[str, Any]
) -> None:
    pool = dspool.Pool(name=pool_name(), workers=1, launcher=FakeLauncher(), **wrong)
    before = Census()
    with pytest.raises(dspool.DspoolError) as caught:
        pool.open()
    assert before.new() == []  # while the exception holds whatever the constructor had made
    assert not isinstance(caught.value, dspool.WorkerStartError)
