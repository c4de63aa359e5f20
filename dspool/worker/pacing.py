"""When the next request to a model may be sent. Pure: what time it is, and what was let through before, is given.

A limit is kept as by the generic cell rate algorithm (ITU-T I.371): what was let through is paid off at the limit's
pace, and a request's turn comes when no more than a burst is still owed. So a turn is a time of its own for each
request: those who wait need no queue, and don't all wake at once. Who gives up gives a turn back: at the end of the
line it makes that shorter, elsewhere it leaves a gap, of which the longest is remembered and filled first. Who is
killed leaves a turn unused.

Tokens are owed from the moment that a request is let through, too, but nobody knows how many: the average of those
that were answered before is owed until its own answer says what it was.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dspool.protocol.messages import LimitSpec

MAX_HOLD_S = 300.0
"""The longest that one request can hold up all others, by its size, by what its answer says it used, or by the pause
that the provider asks for in it: none of them is to be trusted further. After it, the provider is asked again."""
_SHARE = 8
"""Of the average, a new request's tokens are one in so many."""


class Limit(NamedTuple):
    """A model's limit. A request or token that costs no time is not limited."""

    s_per_request: float = 0.0
    s_per_token: float = 0.0
    burst_s: float = 0.0

    @property
    def slack_s(self) -> float:
        """How much of requests may be owed when another one is sent."""
        return max(0.0, self.burst_s - self.s_per_request)


UNLIMITED = Limit()


class State(NamedTuple):
    """What is known of a model, in times of the monotonic clock, which is one for all processes of a machine."""

    requests_paid_at: float = 0.0
    """When the requests that were let through are paid off."""
    tokens_paid_at: float = 0.0
    not_before: float = 0.0
    """When the pause ends that the provider asked for."""
    tokens_each: float = 0.0
    """What a request uses, on average."""
    touched_at: float = 0.0
    """When this was written."""
    free_from: float = 0.0
    """Where in the line of requests turns were given back."""
    free_s: float = 0.0
    """How long a part of it they are."""


class Turn(NamedTuple):
    """When one request may be sent, and why not before."""

    at: float
    reason: str = ""
    """hold, requests or tokens; empty: it may be sent now."""
    tokens: float = 0.0
    """What it is taken to use."""
    paid_from: float = 0.0
    """Its place in the line of requests."""
    paid_s: float = 0.0
    """How long a part of it it takes."""


def limit_of(spec: LimitSpec | None) -> Limit:
    """A limit as the handshake has it, in seconds."""
    if spec is None:
        return UNLIMITED
    requests, tokens = spec.requests_per_minute, spec.tokens_per_minute
    return Limit(60 / requests if requests else 0.0, 60 / tokens if tokens else 0.0, spec.burst_s)


def turn(state: State, limit: Limit, now: float, requests: int = 1) -> tuple[Turn, State]:
    """The next turn, and the state once it is taken.

    Args:
        state: what is known.
        limit: the model's.
        now: the time.
        requests: how many it is: each completion that is asked for may be sent as one.
    """
    times = {"": now, "hold": state.not_before}
    if limit.s_per_token:
        times["tokens"] = state.tokens_paid_at - limit.burst_s
    requests_s = min(requests * limit.s_per_request, max(limit.s_per_request, MAX_HOLD_S))
    free_to = state.free_from + state.free_s
    filling = state.free_s > 0 and max(state.free_from, *times.values()) + requests_s <= free_to + _nearly(limit)
    paid_at = state.free_from if filling else state.requests_paid_at
    if limit.s_per_request:
        times["requests"] = paid_at - limit.slack_s
    reason, at = max(times.items(), key=lambda entry: entry[1])
    tokens = _bounded(requests * state.tokens_each, limit)
    paid_from = max(paid_at, at)
    paid_to = paid_from + requests_s
    taken = state._replace(
        tokens_paid_at=max(state.tokens_paid_at, at) + tokens * limit.s_per_token,
        touched_at=now,
        **({"free_from": paid_to, "free_s": max(0.0, free_to - paid_to)} if filling else {"requests_paid_at": paid_to}),
    )
    return Turn(at, reason, tokens, paid_from, requests_s), taken


def given_back(state: State, limit: Limit, now: float, unused: Turn) -> State:
    """The state once a turn is given back that was waited for, and not used.

    Args:
        state: what is known.
        limit: the model's.
        now: the time.
        unused: the turn.
    """
    state = state._replace(tokens_paid_at=state.tokens_paid_at - unused.tokens * limit.s_per_token, touched_at=now)
    free_from, free_to, last = unused.paid_from, unused.paid_from + unused.paid_s, state.requests_paid_at
    if free_to <= now or not unused.paid_s:
        return state
    known_from, known_to = state.free_from, state.free_from + state.free_s
    if known_to > now and state.free_s:
        if abs(known_to - free_from) < _nearly(limit):
            free_from = known_from
        elif abs(free_to - known_from) < _nearly(limit):
            free_to = known_to
        elif abs(free_to - last) < _nearly(limit):
            last, free_from, free_to = free_from, known_from, known_to
        elif free_to - free_from < known_to - known_from:
            free_from, free_to = known_from, known_to
    if abs(free_to - last) < _nearly(limit):  # the end of the line
        last, free_to = free_from, free_from
    return state._replace(requests_paid_at=last, free_from=free_from, free_s=free_to - free_from)


def _nearly(limit: Limit) -> float:
    """What is too short to count."""
    return limit.s_per_request / 100


def used(state: State, limit: Limit, now: float, expected: float, tokens: int, requests: int = 1) -> State:
    """The state once it is known what a request has used; 0 tokens: it failed, and used none as far as is known.

    Args:
        state: what is known.
        limit: the model's.
        now: the time.
        expected: what the request was taken to use.
        tokens: what it used.
        requests: how many it was.
    """
    most = _bounded(tokens, limit)
    more = most - expected
    # What was owed may be paid off by now: what it used beyond that is owed from now on, not from back then.
    paid_at = max(state.tokens_paid_at, now) if more > 0 else state.tokens_paid_at
    each = most / requests
    average = state.tokens_each + (each - state.tokens_each) / _SHARE if state.tokens_each else each
    return state._replace(
        tokens_paid_at=paid_at + more * limit.s_per_token,
        tokens_each=average if tokens else state.tokens_each,
        touched_at=now,
    )


def _bounded(tokens: float, limit: Limit) -> float:
    return min(tokens, MAX_HOLD_S / limit.s_per_token) if limit.s_per_token else tokens


def held(state: State, limit: Limit, now: float, pause_s: float) -> State:
    """The state once a provider has asked for a pause. After it there is no burst: one request shows how it is."""
    until = max(state.not_before, now + min(pause_s, MAX_HOLD_S))
    return state._replace(
        not_before=until,
        requests_paid_at=max(state.requests_paid_at, until + limit.slack_s),
        tokens_paid_at=max(state.tokens_paid_at, until + limit.burst_s),
        touched_at=now,
        free_s=0.0,
    )


def ahead(limit: Limit, taken: Turn, now: float) -> int:
    """How many requests have an earlier turn that is still to come, where the limit of requests is what holds it."""
    return max(0, math.ceil((taken.at - now) / limit.s_per_request) - 1)
