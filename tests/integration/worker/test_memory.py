"""Nothing in a worker grows with its calls."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import pytest
from dspy.utils import DummyLM

from dspool.protocol.messages import LMSpec

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Channel, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CALLS = 2_000
OBJECTS_PER_CALL = 0.1
"""What may stay: caches that fill up. One object kept per call would be ten times as much."""


def count_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def growth(slot: Channel, program_id: str, inputs: dict[str, Any], failing: bool) -> float:
    """Objects that each of CALLS calls leaves behind."""
    slot.create(count_objects, "count")
    slot.execute(inputs, program_id)
    before: int = slot.execute({}, "count").result["value"]
    for _ in range(CALLS):
        assert slot.execute(inputs, program_id, deadline_ms=60_000).success is not failing
    after: int = slot.execute({}, "count").result["value"]
    return (after - before) / CALLS


def test_calls_of_callables_leave_nothing_behind(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.create(lambda text: {"text": text})
    assert growth(worker.slot, "p", {"text": "x" * 1000}, failing=False) < OBJECTS_PER_CALL


def test_calls_that_fail_leave_nothing_behind(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.create(lambda text: text.nothing_there)
    assert growth(worker.slot, "p", {"text": "x" * 1000}, failing=True) < OBJECTS_PER_CALL


def test_calls_of_dspy_programs_leave_nothing_behind(spawn: Spawn) -> None:
    lm = LMSpec("dummy", pickled=cloudpickle.dumps(DummyLM({"": {"reasoning": "r", "answer": "a"}})))
    worker = spawn(lm=lm)
    worker.slot.create(dspy.ChainOfThought("question -> answer"))
    assert growth(worker.slot, "p", {"question": "?"}, failing=False) < OBJECTS_PER_CALL
