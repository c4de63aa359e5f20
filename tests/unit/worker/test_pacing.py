"""When a model's next request may be sent: the arithmetic, with times that the tests choose."""

from __future__ import annotations

import random

import pytest

from dspool.protocol.messages import LimitSpec
from dspool.worker.pacing import (
    MAX_HOLD_S,
    UNLIMITED,
    Limit,
    State,
    Turn,
    ahead,
    given_back,
    held,
    limit_of,
    turn,
    used,
)

pytestmark = pytest.mark.unit

NOW = 1000.0
SIXTY = limit_of(LimitSpec(requests_per_minute=60, burst_s=3))
TOKENS = limit_of(LimitSpec(tokens_per_minute=600, burst_s=10))


def turns(state: State, limit: Limit, count: int, now: float = NOW) -> tuple[list[float], State]:
    """When so many requests that come at once may be sent, counted from then."""
    times = []
    for _ in range(count):
        taken, state = turn(state, limit, now)
        times.append(round(taken.at - now, 6))
    return times, state


def test_a_burst_goes_at_once_and_then_each_has_a_time_of_its_own() -> None:
    assert turns(State(), SIXTY, 6)[0] == [0, 0, 0, 1, 2, 3]


def test_a_limit_without_a_burst_spaces_all_but_the_first() -> None:
    assert turns(State(), limit_of(LimitSpec(requests_per_minute=30, burst_s=0)), 3)[0] == [0, 2, 4]


def test_a_pause_earns_a_burst_and_no_more() -> None:
    _, state = turns(State(), SIXTY, 10)
    assert turns(state, SIXTY, 1, NOW + 9)[0] == [0]
    assert turns(state, SIXTY, 5, NOW + 1000)[0] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("gap", [0.0, 0.3, 0.9, 1.7])
def test_no_minute_has_more_than_the_limit_and_a_burst(gap: float) -> None:
    state, now, sent = State(), NOW, []
    for _ in range(300):
        taken, state = turn(state, SIXTY, now)
        sent.append(taken.at)
        now = now + gap
    most = max(sum(begin <= time < begin + 60 for time in sent) for begin in sent)
    assert most <= 60 + 3
    if gap < 1:
        assert most >= 60


def test_several_completions_are_as_many_requests() -> None:
    taken, state = turn(State(), SIXTY, NOW, requests=5)
    assert taken[:3] == Turn(NOW)[:3]
    assert turns(state, SIXTY, 2)[0] == [3, 4]


def test_why_a_request_waits_and_behind_how_many() -> None:
    _, state = turns(State(), SIXTY, 5)
    taken, _ = turn(state, SIXTY, NOW)
    assert (taken.reason, ahead(SIXTY, taken, NOW)) == ("requests", 2)
    assert ahead(SIXTY, Turn(NOW, ""), NOW) == 0


def test_tokens_are_owed_once_they_are_known_and_their_average_before() -> None:
    times, state = turns(State(), TOKENS, 3)
    assert times == [0, 0, 0]
    state = used(state, TOKENS, NOW, 0, 100)  # ten seconds' worth
    assert turns(state, TOKENS, 1)[0] == [0]
    state = used(state, TOKENS, NOW, 0, 100)
    assert state.tokens_each == 100
    times, after = turns(state, TOKENS, 3)
    assert times == [10, 20, 30]
    assert turn(state, TOKENS, NOW)[0][:3] == Turn(NOW + 10, "tokens", 100)[:3]
    # One that used nothing, as it failed, or less than the average, gives back the rest.
    assert turns(used(after, TOKENS, NOW, 100, 0), TOKENS, 1)[0] == [30]
    assert turns(used(after, TOKENS, NOW, 100, 50), TOKENS, 1)[0] == [35]
    assert used(after, TOKENS, NOW, 100, 0).tokens_each == 100
    assert used(after, TOKENS, NOW, 100, 180).tokens_each == 110
    assert used(after, TOKENS, NOW, 100, 180, requests=2).tokens_each == 98.75


def test_tokens_of_a_late_answer_are_owed_from_then_on() -> None:
    _, state = turns(State(), TOKENS, 1)
    state = used(state, TOKENS, NOW + 500, 0, 200)
    assert turns(state, TOKENS, 1, NOW + 500)[0] == [10]


def test_a_providers_pause_stands_before_all_and_no_burst_after_it() -> None:
    state = held(State(), SIXTY, NOW, 5)
    assert turn(state, SIXTY, NOW)[0][:3] == Turn(NOW + 5, "hold")[:3]
    assert turns(state, SIXTY, 3)[0] == [5, 6, 7]
    assert turns(state, SIXTY, 3, NOW + 6)[0] == [0, 0, 1]
    # A shorter one that comes meanwhile shortens nothing, nor what others have taken already.
    _, taken = turns(state, SIXTY, 3)
    assert turns(held(taken, SIXTY, NOW + 1, 1), SIXTY, 1)[0] == [8]


def test_a_pause_is_kept_where_there_is_no_limit_and_for_some_minutes_at_most() -> None:
    state = held(State(), UNLIMITED, NOW, 1e9)
    assert turns(state, UNLIMITED, 2)[0] == [MAX_HOLD_S, MAX_HOLD_S]
    assert turns(state, UNLIMITED, 2, NOW + MAX_HOLD_S)[0] == [0, 0]


def test_both_limits_hold() -> None:
    both = limit_of(LimitSpec(requests_per_minute=60, tokens_per_minute=600, burst_s=0))
    _, state = turns(State(), both, 1)
    assert turn(state, both, NOW)[0].reason == "requests"
    assert turn(used(state, both, NOW, 0, 100), both, NOW)[0][:3] == Turn(NOW + 10, "tokens", 100)[:3]


def test_no_request_holds_up_the_others_for_more_than_some_minutes() -> None:
    _, state = turn(State(), SIXTY, NOW, requests=10**6)
    assert NOW + MAX_HOLD_S - 3 <= turn(state, SIXTY, NOW)[0].at <= NOW + MAX_HOLD_S
    state = used(State(), TOKENS, NOW, expected=0, tokens=2**53, requests=2)
    assert turn(state, TOKENS, NOW)[0].at <= NOW + MAX_HOLD_S
    state = turn(state, TOKENS, NOW + MAX_HOLD_S, requests=10**6)[1]
    assert turn(state, TOKENS, NOW + MAX_HOLD_S)[0].at <= NOW + 2 * MAX_HOLD_S
    rare = limit_of(LimitSpec(requests_per_minute=0.1, burst_s=0))
    assert turns(State(), rare, 2)[0] == [0, 600]


@pytest.mark.parametrize("order", [1, -1], ids=["the first at first", "the last at first"])
def test_turns_that_are_all_given_back_hold_up_nobody(order: int) -> None:
    state, waiting = State(), []
    for _ in range(30):
        taken, state = turn(state, SIXTY, NOW)
        if taken.at > NOW:
            waiting.append(taken)
    for taken in waiting[::order]:
        state = given_back(state, SIXTY, NOW + 0.5, taken)
    assert turns(state, SIXTY, 3)[0] == [1, 2, 3]


def test_a_gap_in_the_line_is_filled_before_the_line_grows() -> None:
    state, waiting = State(), []
    for _ in range(10):
        taken, state = turn(state, SIXTY, NOW)
        waiting.append(taken)
    assert round(waiting[-1].at - NOW, 6) == 7
    for taken in waiting[4:7]:
        state = given_back(state, SIXTY, NOW, taken)
    assert turns(state, SIXTY, 4)[0] == [2, 3, 4, 8]
    assert turns(state, SIXTY, 1, NOW + 6.5)[0] == [1.5]  # what is left of the gap is too short for one


def test_tokens_that_were_only_expected_are_given_back() -> None:
    state = State(tokens_each=100)
    waiting = []
    for _ in range(5):
        taken, state = turn(state, TOKENS, NOW)
        waiting.append(taken)
    for taken in waiting[2:]:
        state = given_back(state, TOKENS, NOW, taken)
    assert turn(state, TOKENS, NOW)[0].at == waiting[2].at


@pytest.mark.parametrize("seed", range(20))
def test_no_minute_has_more_than_the_limit_whoever_gives_up(seed: int) -> None:
    chance = random.Random(seed)
    state, now, waiting, sent = State(), NOW, list[Turn](), []
    for _ in range(600):
        now += chance.choice([0, 0.1, 0.7, 3])
        sent += [taken.at for taken in waiting if taken.at <= now for _ in range(round(taken.paid_s))]
        waiting = [taken for taken in waiting if taken.at > now]
        while waiting and chance.random() < 0.3:
            state = given_back(state, SIXTY, now, waiting.pop(chance.randrange(len(waiting))))
        for _ in range(chance.choice([0, 1, 1, 5])):
            taken, state = turn(state, SIXTY, now, chance.choice([1, 1, 1, 3]))
            waiting.append(taken)
    assert max(sum(begin <= time < begin + 60 for time in sent) for begin in sent) <= 60 + 3 + 2
