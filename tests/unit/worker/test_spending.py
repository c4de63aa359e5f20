"""What a call used of LMs, as a worker counts it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from dspool.errors import InvalidMessage
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES
from dspool.protocol.messages import MAX_MODEL_CHARS, MAX_TOKENS, ErrorInfo, ModelUse, answered, refused

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # whichever comes first imports dspy

ENTRY = {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}


@pytest.fixture
def tracker() -> Any:
    """A call's tracker."""
    from dspool.worker.spending import CallTracker

    return CallTracker()


def test_a_call_without_requests_has_spent_nothing(tracker: Any) -> None:
    assert tracker.spent() is None


def test_requests_are_summed_by_model(tracker: Any) -> None:
    tracker.add_usage("a", ENTRY)
    tracker.add_usage("a", ENTRY | {"prompt_tokens_details": {"cached_tokens": 5}})
    tracker.add_usage("b", {"prompt_tokens": 1})
    tracker.costs.append(("a", 0.5))
    assert tracker.spent() == [ModelUse("a", 2, 16, 4, 20, 5, 1, 0.5), ModelUse("b", 1, 1, 0, 1)]


@pytest.mark.parametrize(
    ("entry", "use"),
    [
        ({"input_tokens": 3, "output_tokens": 4}, ModelUse("m", 1, 3, 4, 7)),
        ({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}, ModelUse("m", 1, 3, 0, 3, 2)),
        ({"prompt_tokens": 9, "cache_read_input_tokens": 6}, ModelUse("m", 1, 9, 0, 9, 6)),
        ({"prompt_tokens": "many", "completion_tokens": True, "total_tokens": None}, ModelUse("m", 1)),
        ({"prompt_tokens": -1, "completion_tokens": float("nan"), "total_tokens": 1e300}, ModelUse("m", 1)),
        ({"prompt_tokens": 2.0, "prompt_tokens_details": [1]}, ModelUse("m", 1, 2, 0, 2)),
    ],
)
def test_counts_are_read_however_a_provider_writes_them(tracker: Any, entry: dict[str, Any], use: ModelUse) -> None:
    tracker.add_usage("m", entry)
    assert tracker.spent() == [use]


def test_copies_count_for_the_call_and_not_for_dspy(tracker: Any) -> None:
    tracker.add_usage("m", ENTRY)
    copied = copy.deepcopy(tracker)
    copied.add_usage("m", ENTRY)
    copy.deepcopy(copied).add_usage("n", ENTRY)
    assert {use.model: use.total_tokens for use in tracker.spent()} == {"m": 20, "n": 10}
    assert tracker.get_total_tokens() == {"m": ENTRY}


def test_models_beyond_the_first_are_one_and_names_are_cut(tracker: Any) -> None:
    from dspool.worker.spending import MAX_MODELS, OTHERS

    for number in range(MAX_MODELS + 3):
        tracker.add_usage(f"{number}-" + "m" * 1000, {"prompt_tokens": MAX_TOKENS})
    spent = tracker.spent()
    assert [use.model for use in spent[MAX_MODELS:]] == [OTHERS]
    assert (spent[-1].requests, spent[-1].prompt_tokens) == (3, MAX_TOKENS)
    assert {len(use.model) for use in spent[:-1]} == {MAX_MODEL_CHARS}
    body = bytes(MSGPACK.encode(answered(1, {}, spent=spent))[HEADER_BYTES:])
    assert MSGPACK.decode_response(body).spent == spent


def test_no_model_has_more_prices_than_requests_and_those_of_the_others_are_together(tracker: Any) -> None:
    from dspool.worker.spending import MAX_MODELS

    for number in range(MAX_MODELS + 2):
        tracker.add_usage(str(number), ENTRY)
    tracker.costs += [("0", 0.5), ("0", 0.5), (str(MAX_MODELS), 1.0), (str(MAX_MODELS + 1), 2.0), ("nobody", 4.0)]
    first, *_, others = tracker.spent()
    assert (first.requests, first.priced, first.cost_usd) == (1, 1, 0.5)
    assert (others.requests, others.priced, others.cost_usd) == (2, 2, 3.0)


@pytest.mark.parametrize("cost", [None, -1.0, float("nan"), float("inf"), "dear"])
def test_a_price_that_is_none_is_not_counted(tracker: Any, cost: Any) -> None:
    import dspy

    from dspool.worker.spending import COSTS, note_cost

    with dspy.context(**{COSTS: tracker.costs}):
        note_cost("m", SimpleNamespace(cost=cost, cache_hit=False))
        note_cost("m", SimpleNamespace(cost=1.0, cache_hit=True))
        assert tracker.costs == []
        note_cost("m", SimpleNamespace(cost=1, cache_hit=False))
    assert tracker.costs == [("m", 1.0)]
    note_cost("m", SimpleNamespace(cost=1.0, cache_hit=False))  # outside of any call
    assert tracker.costs == [("m", 1.0)]


def test_an_exception_that_takes_no_attributes_says_nothing(tracker: Any) -> None:
    from dspool.worker.programs import SPENT
    from dspool.worker.spending import attach

    class Sealed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError("sealed")

    tracker.add_usage("m", ENTRY)
    sealed, usual = Sealed(), LookupError()
    attach(sealed, tracker)
    attach(usual, tracker)
    assert not hasattr(sealed, SPENT)
    assert getattr(usual, SPENT) == tracker.spent()


@pytest.mark.parametrize("wrong", [{"requests": -1}, {"total_tokens": 2**60}, {"cost_usd": -0.5}, {"model": "m" * 300}])
def test_a_worker_that_counts_backwards_is_not_believed(wrong: dict[str, Any]) -> None:
    use = ModelUse(**({"model": "m"} | wrong))
    body = bytes(MSGPACK.encode(refused(1, ErrorInfo("program_error"), [use]))[HEADER_BYTES:])
    with pytest.raises(InvalidMessage):
        MSGPACK.decode_response(body)


def test_requests_that_were_held_back_are_counted_with_their_models(tracker: Any) -> None:
    import dspy

    from dspool.worker.spending import WAITS, note_wait

    with dspy.context(**{WAITS: tracker.waits}):
        note_wait("a", 1.5)
        note_wait("b", 0.0)
    with dspy.context(**{WAITS: copy.deepcopy(tracker).waits}):  # of dspy.Parallel
        note_wait("a", 0.25)
    with dspy.context(**{WAITS: None}):
        note_wait("a", 9.0)
    tracker.add_usage("a", ENTRY)
    uses = {use.model: use for use in tracker.spent()}
    assert uses == {
        "a": ModelUse("a", 1, 8, 2, 10, throttled=2, throttled_s=1.75),
        "b": ModelUse("b", throttled=1),
    }


def test_the_tokens_of_one_answer() -> None:
    from dspool.worker.spending import tokens_in

    assert [tokens_in(usage) for usage in (ENTRY, {"input_tokens": 3, "output_tokens": 4}, {})] == [10, 7, 0]
