"""What one request has to pass, by a clock that the tests set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspool.protocol.messages import LimitSpec, LimitsSpec
from dspool.worker import limits as module
from dspool.worker.limit_records import Busy, LimitRecords
from dspool.worker.limits import BUSY_S, SPREAD_S, Gate, Limits, TurnTooLate

pytestmark = pytest.mark.unit

NEVER = math.inf
MODEL = "openai/m"


class Clock:
    """Time, which passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass it."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that limits look at."""
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Limits]:
    """Makes one worker's limits; all of them share a file."""
    path = tmp_path / "limits"
    path.touch()
    return lambda **models: Limits(
        LimitsSpec(str(path), {name.replace("any", "*"): each for name, each in models.items()})
    )


@pytest.fixture
def limits(make: Callable[..., Limits], clock: Clock) -> Limits:
    """Of any model one request a second, two at once."""
    return make(any=LimitSpec(requests_per_minute=60, burst_s=2))


def gate_of(limits: Limits, model: str = MODEL, **settings: Any) -> Gate:
    """A request's, which has one."""
    gate = limits.gate(model, settings)
    assert gate is not None
    return gate


def waited(gate: Gate, clock: Clock, deadline: float = NEVER) -> float:
    """Pass the gate; how long that took."""
    began = clock.now
    for pause_s in gate.pauses(deadline):
        assert pause_s > 0
        clock.sleep(pause_s)
    return round(clock.now - began, 6)


def test_requests_of_several_workers_have_turns_one_after_the_other(make: Callable[..., Limits], clock: Clock) -> None:
    one, two = (make(any=LimitSpec(requests_per_minute=60, burst_s=2)) for _ in range(2))
    gates = [gate_of(worker) for worker in (one, two, one, two, one)]
    waiting = [gate.pauses(NEVER) for gate in gates]
    pauses = [next(each, 0.0) for each in waiting]
    assert pauses == [0, 0, 1, 2, 3]
    assert [gate.held_back for gate in gates] == [False, False, True, True, True]


@pytest.mark.parametrize(
    "other",
    [{"model": "openai/n"}, {"api_key": "another"}, {"api_base": "http://elsewhere"}, {"base_url": "http://elsewhere"}],
)
def test_each_model_key_and_address_is_limited_by_itself(limits: Limits, clock: Clock, other: dict[str, Any]) -> None:
    for _ in range(2):
        assert waited(gate_of(limits), clock) == 0
    assert next(gate_of(limits).pauses(NEVER)) == 1
    assert waited(gate_of(limits, **other), clock) == 0


def test_a_key_from_the_environment_is_one_too(limits: Limits, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("one", "two", "\udcff"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        assert [next(gate_of(limits).pauses(NEVER), 0.0) for _ in range(3)] == [0, 0, 1]


def test_what_is_named_is_limited_and_else_nothing(make: Callable[..., Limits], clock: Clock) -> None:
    named = make(m=LimitSpec(requests_per_minute=60, burst_s=0))
    assert named.gate("n", {}) is None
    assert [next(gate_of(named, "m").pauses(NEVER), 0.0) for _ in range(2)] == [0, 1]


def test_a_turn_after_the_deadline_is_refused_at_once_and_not_taken(limits: Limits, clock: Clock) -> None:
    waiting = [gate_of(limits).pauses(NEVER) for _ in range(4)]
    for each in waiting:
        next(each, None)
    gate = gate_of(limits)
    for _ in range(3):
        with pytest.raises(TurnTooLate):
            next(gate.pauses(clock.now + 2.5))
    with pytest.raises(TurnTooLate) as caught:
        next(gate.pauses(clock.now + 2.5))
    assert caught.value.wait_s == 3
    assert gate.held_back
    assert str(caught.value) == (
        "lm_limits allow requests_per_minute=60: the next turn is in 3.0 s, behind 2 that wait already; "
        "the call's deadline comes in 2.5 s. The request was not sent. Try again then, allow a longer timeout_s, send "
        "fewer calls at a time, or raise the limit"
    )
    assert waited(gate_of(limits), clock) == 3


def test_tokens_that_were_used_are_waited_for(make: Callable[..., Limits], clock: Clock) -> None:
    limits = make(any=LimitSpec(tokens_per_minute=600, burst_s=0))
    first = gate_of(limits)
    assert waited(first, clock) == 0
    first.used(100)
    with pytest.raises(
        TurnTooLate, match=r"tokens_per_minute=600: what others used is paid off in 10\.0 s; the call's"
    ):
        next(gate_of(limits).pauses(clock.now + 1))
    second = gate_of(limits)
    assert waited(second, clock) == 10
    second.used(0)  # it failed, and used none
    assert waited(gate_of(limits), clock) == 0


def test_a_request_that_took_no_turn_has_nothing_to_give_back(make: Callable[..., Limits], clock: Clock) -> None:
    limits = make(any=LimitSpec(tokens_per_minute=600, burst_s=0))
    first = gate_of(limits)
    assert waited(first, clock) == 0
    first.used(100)
    gate_of(limits).used(0)  # a cache had its answer
    assert waited(gate_of(limits), clock) == 10


def test_what_several_completions_used_is_their_average_each(make: Callable[..., Limits], clock: Clock) -> None:
    limits = make(any=LimitSpec(tokens_per_minute=600, burst_s=0))
    gate = limits.gate(MODEL, {}, 4)
    assert gate is not None
    assert waited(gate, clock) == 0
    gate.used(400)
    assert waited(gate_of(limits), clock) == 40
    assert waited(gate_of(limits), clock) == 10


def test_a_providers_pause_holds_back_all_workers_without_any_limit(make: Callable[..., Limits], clock: Clock) -> None:
    one, two = make(), make()
    assert two.gate(MODEL, {}) is None
    one.hold(MODEL, {}, 5)
    assert two.gate("openai/n", {}) is None
    assert two.gate(MODEL, {"api_key": "another"}) is None
    with pytest.raises(TurnTooLate, match=r"asked this pool for a pause, which ends in 5\.0 s; the call's"):
        next(gate_of(two).pauses(clock.now + 4))
    gate = gate_of(two)
    assert 5 <= waited(gate, clock) <= 5 + SPREAD_S
    assert gate.held_back
    assert two.gate(MODEL, {}) is None


def test_the_requests_that_a_pause_held_back_are_not_all_sent_at_its_end(
    make: Callable[..., Limits], clock: Clock
) -> None:
    limits = make()
    limits.hold(MODEL, {}, 5)
    pauses = {next(gate_of(limits).pauses(NEVER)) for _ in range(20)}
    assert len(pauses) > 10
    assert 5 <= min(pauses) <= max(pauses) <= 5 + SPREAD_S
    assert next(gate_of(limits).pauses(clock.now + 5.02)) <= 5.02


def test_a_pause_that_comes_while_a_request_waits_gives_it_another_turn(limits: Limits, clock: Clock) -> None:
    waiting: list[Iterator[float]] = []
    for _ in range(4):
        pauses = gate_of(limits).pauses(NEVER)
        if next(pauses, None) is not None:
            waiting.append(pauses)
    assert len(waiting) == 2
    limits.hold(MODEL, {}, 10)
    clock.sleep(2)
    assert [next(pauses) for pauses in waiting] == [8, 9]
    clock.sleep(9)
    assert [next(pauses, None) for pauses in waiting] == [None, None]


def test_a_lock_that_another_holds_is_tried_again_until_the_deadline(
    limits: Limits, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = LimitRecords.change, iter([Busy, Busy])

    def change(self: LimitRecords, digest: bytes, step: Any) -> Any:
        if (busy := next(tries, None)) is not None:
            raise busy
        return real(self, digest, step)

    monkeypatch.setattr(LimitRecords, "change", change)
    assert waited(gate_of(limits), clock) == round(2 * BUSY_S, 6)
    tries = iter([Busy] * 1000)
    with pytest.raises(TurnTooLate, match="another worker"):
        waited(gate_of(limits), clock, deadline=clock.now + 0.02)
    limits.hold(MODEL, {}, 5)  # can't be noted, which stops nobody
    tries = iter([Busy])
    limits.hold(MODEL, {}, 5)
    assert next(gate_of(limits).pauses(NEVER)) == pytest.approx(5, abs=2 * BUSY_S)
