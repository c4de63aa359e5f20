"""What opening a pool refuses, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import dspool
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import Census

pytestmark = pytest.mark.unit

WRONG = [
    {"lm": {"model": ""}},
    {"lm": "gpt-4o-mini"},
    {"lm": 5},
    {"adapter": "yaml"},
    {"warm": "no such program"},
    {"warm": 5},
]


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


def test_warm_programs_that_one_frame_cannot_carry_are_refused_before_a_worker_is_started(
    no_leaks: None, pool_name: Callable[[], str]
) -> None:
    launcher = FakeLauncher()
    warm = [f"question -> {'answer' * 2000}{number}" for number in range(3)]  # each of them fits
    pool = dspool.Pool(name=pool_name(), workers=1, launcher=launcher, warm=warm, max_frame_bytes=30_000)
    with pytest.raises(dspool.OptionsError, match=r"warm= programs.* a message of .* max_frame_bytes=30,000; raise"):
        pool.open()
    assert not launcher.workers
