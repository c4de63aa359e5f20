"""The LMs of sessions, and when they are forgotten."""

from __future__ import annotations

import pytest

from dspool.pool.session_lms import SessionLMs
from dspool.protocol.messages import LMSpec

pytestmark = pytest.mark.unit

RED, BLUE = LMSpec("red"), LMSpec("blue")


class Clock:
    """Time that a test tells."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known() -> set[str]:
    """Sessions that the pool knows."""
    return set()


@pytest.fixture
def lms(clock: Clock, known: set[str]) -> SessionLMs:
    """Room for two, ten seconds each."""
    return SessionLMs(10, 2, known.__contains__, clock)


def test_a_session_has_what_was_said_last(lms: SessionLMs) -> None:
    lms.set("ann", RED)
    assert (lms.of("ann"), lms.of("bob"), lms.of(None), lms.of(["ann"])) == (RED, None, None, None)
    lms.set("ann", BLUE)
    assert lms.of("ann") is BLUE
    lms.set("ann", None)
    lms.set("bob", None)
    assert (lms.of("ann"), len(lms)) == (None, 0)


def test_it_is_forgotten_its_time_after_its_last_use(lms: SessionLMs, clock: Clock) -> None:
    lms.set("ann", RED)
    clock.now += 9
    assert lms.of("ann") is RED
    clock.now += 9
    assert lms.of("ann") is RED
    clock.now += 10
    assert lms.of("ann") is None
    assert len(lms) == 0


def test_a_session_that_the_pool_knows_is_never_too_old(lms: SessionLMs, clock: Clock, known: set[str]) -> None:
    lms.set("ann", RED)
    lms.set("bob", BLUE)
    known.add("ann")
    clock.now += 1000
    assert (lms.of("bob"), lms.of("ann")) == (None, RED)
    known.clear()
    clock.now += 10
    assert lms.of("ann") is None


def test_the_least_recently_used_make_room(lms: SessionLMs, known: set[str]) -> None:
    known.add("bob")
    lms.set("ann", RED)
    lms.set("bob", RED)
    assert lms.of("ann") is RED
    lms.set("eve", BLUE)
    assert (lms.of("ann"), lms.of("bob"), lms.of("eve")) == (RED, None, BLUE)
